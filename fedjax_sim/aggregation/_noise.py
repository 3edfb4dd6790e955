"""Central noise on the sum over clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks
from fedjax_sim._src.types import Facts, Noise, Transform


def gaussian_noise(
    noise_multiplier: float | Callable[[Any], Any],
    *,
    simulated_cohort: float | None = None,
    simulated_population: int | None = None,
) -> Transform:
    """Adds Gaussian noise to the SUM of the clients' messages (McMahan et al. 2018, algorithm 1).

    Guarantees:
      Every coordinate of every leaf gets independent noise of one standard deviation, ``noise_multiplier`` times the
      bound that holds where the layer stands. It is drawn once per round on the server, whatever the devices.
      With ``simulated_cohort`` it is smaller by expected cohort over simulated cohort, so that the MEAN has the noise that it
      would have in the larger cohort. The run itself is not private then; its price is that of the run it stands for, and is
      reported as simulated (the practice of Granqvist et al. 2024, "pfl-research", section 3).

    Args:
      noise_multiplier: standard deviation over bound; above 0; may be traced. Or a schedule, a function of the round,
        ``int32[]``, to it.
      simulated_cohort: expected clients of a round of the deployment that the run stands for.
      simulated_population: clients of that deployment, who take part with probability cohort over population (Poisson).

    Raises:
      ValueError: ``noise_multiplier`` is not a finite number above 0; one of the simulated sizes without the other, or a
        cohort above its population; the refusals of ``chain``.
    """
    if not callable(noise_multiplier):
        checks.positive("noise_multiplier", noise_multiplier)
    details = _simulated(simulated_cohort, simulated_population)

    def decode(message, server, ctx):
        z = noise_multiplier(ctx.round) if callable(noise_multiplier) else noise_multiplier
        share = 1.0 if simulated_cohort is None else ctx.expected_clients / simulated_cohort
        std = jnp.asarray(z * share * ctx.bound, jnp.float32)
        leaves, structure = jax.tree.flatten(message.value)
        keys = jax.random.split(ctx.key, max(len(leaves), 1))
        noisy = [
            (x + std.astype(x.dtype) * jax.random.normal(key, x.shape, x.dtype))
            for key, x in zip(keys, leaves, strict=False)
        ]
        return message._replace(value=jax.tree.unflatten(structure, noisy)), server, {}

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: jnp.asarray(incoming),
        encode=lambda message, client, server, ctx: (message, client, {}),
        decode=decode,
        facts=(Facts("gaussian_noise", noise=Noise("gaussian", noise_multiplier, details)),),
    )


def _simulated(cohort: float | None, population: int | None) -> dict[str, Any]:
    if cohort is None and population is None:
        return {}
    if cohort is None or population is None:
        raise ValueError(
            "simulated_cohort and simulated_population go together: the price depends on both. Give both or neither."
        )
    checks.positive("simulated_cohort", cohort)
    checks.positive_int("simulated_population", population)
    if cohort > population:
        raise ValueError(f"simulated_cohort is {cohort}, but simulated_population has {population} clients.")
    return {"simulated_cohort": float(cohort), "simulated_population": population}
