"""What a run releases about single examples: read off the clients' rules, their batches and the cohort sampler."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim._src.types import Algorithm, ClientRule, Noise, Stage
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.privacy._ledger import Entry, Ledger, Sampling


class ExampleLedgers(NamedTuple):
    """The ledgers of a population. A client's data are in its own alone, so they are not added up.

    Attributes:
      ledgers: the different ones; one of a client that releases nothing is empty.
      of_client: ``int64[clients]``, which of them a client has.
    """

    ledgers: tuple[Ledger, ...]
    of_client: np.ndarray


def example_ledgers(
    algorithm: Algorithm,
    works: Sequence[LocalWork],
    cohort: Cohort,
    sizes: np.ndarray,
    group: np.ndarray,
    rounds: int,
    first: int = 0,
) -> ExampleLedgers:
    """What ``rounds`` rounds release about one example, whoever sees the clients' messages.

    A client takes part in every round that its sampler allows: that others did not see it train amplifies nothing here.

    Args:
      algorithm: whose rules add noise in their steps.
      works: local work of each stage.
      cohort: the sampler.
      sizes: ``int64[clients]``, their numbers of examples, which are taken to be public.
      group: ``int64[clients]``, which of a stage's rules each follows.
      rounds: how many.
      first: index of the first one.

    Raises:
      ValueError: a rule without noise in its steps, batches or cohorts without a law.
    """
    checks.positive_int("rounds", rounds)
    if cohort.sampling == "with_replacement":
        raise ValueError(
            "cohorts drawn with replacement have no bound on how often a client trains in a round: use "
            "fs.cohorts.uniform(size) or fs.cohorts.poisson(rate)."
        )
    turns = Sampling.of(cohort, len(sizes)).participations(first, rounds)
    kinds, of_kind = np.unique(np.stack([group, sizes], axis=1), axis=0, return_inverse=True)
    found: dict[tuple, int] = {}
    index = np.zeros(len(kinds), np.int64)
    ledgers: list[Ledger] = []
    for number, (own_group, size) in enumerate(kinds):
        entries = []
        for place, (stage, work) in enumerate(zip(algorithm.stages, works, strict=True)):
            noise = _noise(stage, place, int(own_group))
            sampling, releases = _batches(work, int(size), turns, first)
            if releases:
                z = float(noise.multiplier)
                entries.append(
                    Entry(
                        noise.law,
                        z,
                        first,
                        rounds,
                        sampling,
                        dict(noise.details),
                        unit="example",
                        releases=releases,
                    )
                )
        key = tuple((entry.law, entry.multiplier, entry.sampling, entry.releases) for entry in entries)
        if key not in found:
            found[key] = len(ledgers)
            ledgers.append(Ledger(tuple(entries)))
        index[number] = found[key]
    return ExampleLedgers(tuple(ledgers), index[of_kind.reshape(-1)])


def _noise(stage: Stage, place: int, group: int) -> Noise:
    """Of the steps of a stage's rule."""
    rules = (stage.client,) if isinstance(stage.client, ClientRule) else tuple(stage.client.values())
    noise = rules[group].noise
    if noise is None:
        which = "the clients' rule" if place == 0 else f"the clients' rule of stage {place}"
        raise ValueError(
            f"{which} adds no noise to its steps, so there is no epsilon for one example: use rules.dp_sgd(...), as "
            "algorithms.fedavg_dp_sgd does. A chain that clips and adds noise protects whole clients: unit='client'."
        )
    return noise


def _batches(work: LocalWork, size: int, turns: int, first: int) -> tuple[Sampling, int]:
    """How examples come into batches, and into how many releases at most one of them can come."""
    steps = int(work.steps(size))
    if work.poisson_rate is not None:
        if size <= work.batch_size:
            return Sampling("poisson", rate=work.poisson_rate), steps * turns
        return Sampling("truncated_poisson", size, work.poisson_rate, work.batch_size), steps * turns
    if work.rows is not None:
        raise ValueError(
            "LocalWork.rows makes batches by a law that is not known, so there is no epsilon for one example: use "
            "LocalWork(poisson_rate=...), or epochs."
        )
    # A pass looks at each example once at most; who knows the order is not fooled by it.
    of_pass = max(int(work.steps_per_epoch(size)), 1)
    if work.continue_epochs:
        # A stretch that begins somewhere inside a pass touches one more.
        passes = -(-steps * turns // of_pass) + (first > 0)
    else:
        passes = -(-steps // of_pass) * turns
    return Sampling("passes"), int(passes) if steps else 0
