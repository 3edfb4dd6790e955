"""Arguments of a simulation that only make sense together: sampler and chain, a sweep's factory and its columns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src.types import Algorithm
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.engines._problem import aggregate


def check_sampling(algorithm: Algorithm, cohort: Cohort) -> None:
    """Noise is scaled to the bound of one message: a client that is drawn twice would enter the sum twice."""
    if cohort.sampling != "with_replacement":
        return
    for stage in algorithm.stages:
        for fact in aggregate(stage).facts:
            if fact.noise_multiplier is not None:
                raise ValueError(
                    f"{algorithm.name} has {fact.name} in its chain, and the cohort is drawn with replacement: a client "
                    "that is drawn k times adds k messages to the sum, which the noise is not scaled to. Draw without "
                    "replacement: fs.cohorts.poisson(rate) or fs.cohorts.uniform(size)."
                )


def replica_hyperparameters(
    replicas: int,
    factory: Callable[..., Algorithm] | None,
    values: Mapping[str, Sequence[Any]] | None,
    algorithm: Algorithm,
) -> tuple[Any, Callable[[Any], Algorithm]]:
    """A sweep's hyper-parameters, one row per replica, and what makes an algorithm of a row."""
    if replicas == 0:
        raise ValueError("seeds is empty, expected at least one.")
    if (factory is None) != (values is None):
        raise ValueError("algorithm and hyperparameters go together: give both or neither.")
    if factory is None or values is None:
        return (), lambda hyper: algorithm
    try:
        inspect.signature(factory).bind(**values)
    except TypeError as error:
        raise TypeError(
            f"hyperparameters has the names {', '.join(map(repr, values))}, but algorithm is called as "
            f"algorithm{inspect.signature(factory)}: {error}. Give one column for each of its parameters."
        ) from None
    for name, column in values.items():
        if len(column) != replicas:
            raise ValueError(
                f"hyperparameters[{name!r}] has {len(column)} values, expected one per seed, {replicas}."
            )
    return {name: _column(column) for name, column in values.items()}, lambda hyper: factory(**hyper)


def _column(values: Sequence[Any]) -> jax.Array:
    """Values of a hyper-parameter, which compute as Python numbers do: they do not widen a bfloat16 model."""
    array = np.asarray(values)
    return (
        jnp.stack([jnp.asarray(value) for value in array.tolist()]) if array.ndim == 1 else jnp.asarray(array)
    )
