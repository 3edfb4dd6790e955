"""Noise of a larger deployment, in a run that stands for it."""

from __future__ import annotations

from fedjax_sim._src import checks
from fedjax_sim._src.types import Transform
from fedjax_sim.data.cohorts import Cohort


def simulated(layer: Transform, cohort: Cohort, population: int) -> Transform:
    """A layer with the noise that the MEAN would have in a larger deployment, and with that deployment's price.

    The noise on the sum is smaller by the run's expected cohort over that of the deployment. So a few clients show what a
    model becomes where many take part (the practice of Granqvist et al. 2024, "pfl-research", section 3).

    Guarantees:
      The run itself is not private: it has less noise than its price says. Every ``Guarantee`` of such a chain is marked as
      simulated, and a chain of which only a part is simulated has no price.

    Args:
      layer: central noise (``gaussian_noise``, ``laplace_noise``, ``tree_noise``, ``banded_noise``), or ``adaptive_clip``, whose
        count is noisy.
      cohort: the sampler of the deployment, which decides the price.
      population: clients of the deployment.

    Raises:
      ValueError: a layer without central noise; a cohort above the population.

    Example:
      >>> import fedjax_sim as fs
      >>> from fedjax_sim import aggregation as agg
      >>> noise = agg.simulated(agg.gaussian_noise(1.0), fs.cohorts.poisson(0.001), population=10**6)
      >>> chain = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), noise)
      >>> print(fs.privacy.price(fs.privacy.ledger_of(chain, fs.cohorts.uniform(20), 500, rounds=1500), 1e-7))
      simulated, not that of this run: epsilon 0.2666 at delta 1e-07 for one client (replace_special), 1500 rounds
      truncated_poisson cohorts, amplified by sampling, PLD accountant
      It covers the models alone: no metric on private data, no choice of settings by them. The seed must stay secret.
    """
    checks.positive_int("population", population)
    cohort.cap(population)
    expected = cohort.expected(population)
    fact = layer.facts[0]
    central = (
        fact.noise is not None and fact.noise.trust == "central" and fact.noise.law != "filtered_gaussian"
    )
    if layer.parts or not (central or fact.count_noise_std is not None):
        raise ValueError(
            f"simulated was given {fact.name if not layer.parts else 'a chain'}, expected one layer with central noise, such as "
            "gaussian_noise(1.0), or adaptive_clip."
        )

    def decode(message, server, ctx):
        return layer.decode(message, server, ctx._replace(noise_scale=ctx.expected_clients / expected))

    return layer._replace(decode=decode, facts=(fact._replace(deployment=(cohort, population)),))
