"""Cohort samplers: who takes part in a round.

A sampler is a pure function of (generator, round, population). It says how many clients it can draw at the most,
how many it draws in expectation (a public constant, the divisor of private means), and by which law it draws, which
is what a privacy accountant reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedjax_sim._src import checks

Sampling = Literal["poisson", "truncated_poisson", "without_replacement", "with_replacement", "all", "fixed"]


class Cohort(NamedTuple):
    """A cohort sampler.

    Attributes:
      sample: ``(generator, round, population)`` to ``int[cohort]``, clients in the order drawn.
      cap: population to the largest cohort that ``sample`` can return.
      expected: population to the expected cohort.
      sampling: the law, for the accountant. ``"fixed"`` amplifies no privacy.
      rate: probability that a given client takes part in a round, where the law has one.
    """

    sample: Callable[[np.random.Generator, int, int], np.ndarray]
    cap: Callable[[int], int]
    expected: Callable[[int], float]
    sampling: Sampling
    rate: float | None = None


def uniform(size: int, *, replace: bool = False) -> Cohort:
    """``size`` clients uniformly at random in every round.

    Args:
      size: clients in a cohort.
      replace: draw with replacement; then a client may stand in a cohort twice, and rules with state refuse it.

    Raises:
      ValueError: ``size`` below 1, or (when a simulation starts) above the population without replacement.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> len(set(fs.cohorts.uniform(10).sample(np.random.default_rng(0), 0, 50)))
      10
    """
    checks.positive_int("cohort size", size)

    def sample(generator: np.random.Generator, round_: int, population: int) -> np.ndarray:
        return generator.choice(population, size, replace=replace)

    def cap(population: int) -> int:
        if size > population and not replace:
            raise ValueError(
                f"cohort size is {size}, but the population has {population} clients: draw at most {population}, "
                "use cohorts.all_clients(), or draw with replacement (replace=True)."
            )
        return size

    law: Sampling = "with_replacement" if replace else "without_replacement"
    return Cohort(sample, cap, lambda population: float(size), law)


def poisson(rate: float, *, cap: int | None = None) -> Cohort:
    """Every client takes part with probability ``rate``, independently of the others.

    The program has room for ``cap`` clients. A round that draws more keeps ``cap`` of them, uniformly at random: the
    law is then a truncated Poisson, and is accounted for as such.

    Args:
      rate: participation rate in (0, 1].
      cap: largest cohort; the default lies six standard deviations above the mean, exceeded about once in 10^9 rounds.

    Raises:
      ValueError: a rate outside (0, 1] or a cap below 1.
    """
    checks.fraction("participation rate", rate)
    if cap is not None:
        checks.positive_int("cohort cap", cap)

    def room(population: int) -> int:
        spread = math.sqrt(population * rate * (1 - rate))
        enough = math.ceil(population * rate + 6 * spread) + 1
        return min(population, enough if cap is None else cap)

    def sample(generator: np.random.Generator, round_: int, population: int) -> np.ndarray:
        drawn = generator.permutation(np.flatnonzero(generator.random(population) < rate))
        return drawn[: room(population)]

    return Cohort(sample, room, lambda population: population * rate, "truncated_poisson", rate)


def fixed(clients: Sequence[int]) -> Cohort:
    """The same clients in every round, given by their index in the population.

    Raises:
      ValueError: no client, a client named twice, or (when a simulation starts) one outside the population.
    """
    chosen = np.asarray(clients, np.int64)
    if chosen.ndim != 1 or chosen.size == 0:
        raise ValueError(f"clients has shape {chosen.shape}, expected a list of at least one client index.")
    if len(np.unique(chosen)) != len(chosen):
        values, counts = np.unique(chosen, return_counts=True)
        raise ValueError(f"clients names client {values[counts > 1][0]} more than once; name each once.")

    def cap(population: int) -> int:
        if chosen.min() < 0 or chosen.max() >= population:
            wrong = chosen[(chosen < 0) | (chosen >= population)][0]
            raise ValueError(
                f"clients names client {wrong}, but the population has clients 0 to {population - 1}."
            )
        return len(chosen)

    return Cohort(
        lambda generator, round_, population: chosen, cap, lambda population: float(len(chosen)), "fixed"
    )


def all_clients() -> Cohort:
    """Everybody, in every round."""
    return Cohort(
        lambda generator, round_, population: np.arange(population),
        lambda population: population,
        float,
        "all",
        1.0,
    )
