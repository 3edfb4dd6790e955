"""Cohort samplers: who takes part in a round.

A sampler is a pure function of (generator, round, population). It says how many clients it can draw at the most,
how many it draws in expectation (a public constant, the divisor of private means), and by which law it draws, which
is what a privacy accountant reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._files import read_npy

Sampling = Literal[
    "poisson", "truncated_poisson", "without_replacement", "with_replacement", "all", "fixed", "shuffled", "weighted",
    "availability", "cyclic", "cyclic_poisson",
]  # fmt: skip


class Cohort(NamedTuple):
    """A cohort sampler.

    Attributes:
      sample: ``(generator, round, population)`` to ``int[cohort]``, clients in the order drawn.
      cap: population to the largest cohort that ``sample`` can return.
      expected: population to the expected cohort.
      sampling: the law, for the accountant. ``"fixed"``, ``"shuffled"``, ``"cyclic"``, ``"weighted"`` and
        ``"availability"`` amplify no privacy.
      rate: probability that a given client takes part in a round, where the law has one.
      key_round: (round, population) to the round whose generator ``sample`` is given: rounds that share one permutation
        name the first of them. Every round its own where it is ``None``.
      separation: population to the fewest rounds from one in which a client takes part to the next such one; 1 where it is
        ``None``. The population is ``None`` where it does not matter.
    """

    sample: Callable[[np.random.Generator, int, int], np.ndarray]
    cap: Callable[[int], int]
    expected: Callable[[int], float]
    sampling: Sampling
    rate: float | None = None
    key_round: Callable[[int, int], int] | None = None
    separation: Callable[[int | None], int] | None = None

    def __repr__(self) -> str:
        return f"Cohort({self.sampling}{'' if self.rate is None else f', rate {self.rate}'})"


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

    law: Sampling = "with_replacement" if replace else "without_replacement"
    cap = (lambda population: size) if replace else _no_more_than_there_are(size)
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


def shuffled(size: int) -> Cohort:
    """Passes over the population: a new order in each, cut into cohorts of ``size``; the last of a pass may be smaller.

    Every client takes part exactly once in ``ceil(population / size)`` rounds.

    Args:
      size: clients in a cohort.

    Raises:
      ValueError: ``size`` below 1, or (when a simulation starts) above the population.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> cohort, rng = fs.cohorts.shuffled(4), lambda: np.random.default_rng(0)
      >>> sorted(np.concatenate([cohort.sample(rng(), round_, 10) for round_ in range(3)]).tolist())
      [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """
    first_round = lambda round_, population: round_ - round_ % -(-population // size)  # noqa: E731
    return _passes(size, "shuffled", first_round)


def cyclic(size: int) -> Cohort:
    """Passes over the population in one order for all of them, drawn from the seed and cut into cohorts of ``size``.

    Every client takes part exactly once in ``ceil(population / size)`` rounds, and so many rounds lie from one time to the
    next: the separation that ``agg.banded_noise`` and ``agg.tree_noise`` are priced by. With ``shuffled`` a client may end
    one pass and begin the next.

    Args:
      size: clients in a cohort; the last of a pass may be smaller.

    Raises:
      ValueError: ``size`` below 1, or (when a simulation starts) above the population.

    Source: Choquette-Choo et al. 2023 (arXiv 2211.06530), multi-epoch training with fixed participation.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> cohort, rng = fs.cohorts.cyclic(4), lambda: np.random.default_rng(0)
      >>> [sorted(cohort.sample(rng(), round_, 10).tolist()) for round_ in (1, 4)]
      [[0, 3, 5, 9], [0, 3, 5, 9]]
    """

    def separation(population: int | None) -> int:
        assert population is not None  # who asks has seen to it
        return -(-population // size)

    return _passes(size, "cyclic", lambda round_, population: 0)._replace(separation=separation)


def cyclic_poisson(rate: float, bands: int) -> Cohort:
    """Groups take turns, and in its turn each client of a group takes part with probability ``rate``, independently.

    Client ``i`` is in group ``i % bands``, whose turn is every round ``r`` with ``r % bands == i % bands``. So there are at
    least ``bands`` rounds between two times that a client takes part, and chance lowers the price of ``agg.banded_noise``.
    The program has room for a whole group: no cohort is cut.

    Args:
      rate: probability in (0, 1] that a client takes part in a turn of its group. For cohorts of ``m`` of ``n`` clients it is
        ``bands * m / n``.
      bands: number of groups; at least the bands of the noise.

    Raises:
      ValueError: a rate outside (0, 1] or ``bands`` below 1.

    Source: Choquette-Choo et al. 2023 (arXiv 2306.08153), algorithm 2.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> cohort = fs.cohorts.cyclic_poisson(rate=0.9, bands=4)
      >>> sorted(cohort.sample(np.random.default_rng(0), 5, 16).tolist())
      [1, 5, 9, 13]
    """
    checks.fraction("participation rate", rate)
    checks.positive_int("bands", bands)

    def sample(generator: np.random.Generator, round_: int, population: int) -> np.ndarray:
        group = np.arange(round_ % bands, population, bands)
        return generator.permutation(group[generator.random(len(group)) < rate])

    return Cohort(
        sample,
        lambda population: -(-population // bands),
        lambda population: population * rate / bands,
        "cyclic_poisson",
        rate,
        separation=lambda population: bands,
    )


def _passes(size: int, law: Sampling, key_round: Callable[[int, int], int]) -> Cohort:
    """Permutations, one for all rounds that name the same ``key_round``, cut into cohorts."""
    checks.positive_int("cohort size", size)

    def sample(generator: np.random.Generator, round_: int, population: int) -> np.ndarray:
        place = round_ % -(-population // size) * size
        return generator.permutation(population)[place : place + size]

    return Cohort(
        sample, _no_more_than_there_are(size), lambda population: float(size), law, key_round=key_round
    )


def weighted(size: int, weights: Sequence[float]) -> Cohort:
    """``size`` different clients, one after the other with probability in proportion to their weights.

    Args:
      size: clients in a cohort.
      weights: ``[population]``, finite, 0 or above; who has 0 never comes.

    Raises:
      ValueError: ``size`` below 1 or above the number of weights that are not 0, or a weight that is none; (when a
        simulation starts) not one weight for each client.

    Source: Efraimidis and Spirakis 2006, weighted random sampling with a reservoir, whose keys this draws as logarithms.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> sorted(fs.cohorts.weighted(2, [1.0, 0.0, 5.0]).sample(np.random.default_rng(0), 0, 3).tolist())
      [0, 2]
    """
    checks.positive_int("cohort size", size)
    chances = np.asarray(weights, np.float64)
    if chances.ndim != 1 or not np.isfinite(chances).all() or (chances < 0).any():
        raise ValueError(
            f"weights has shape {list(chances.shape)}, expected one finite number for each client, 0 or above."
        )
    able = np.flatnonzero(chances)
    if size > len(able):
        raise ValueError(f"cohort size is {size}, but {len(able)} clients have a weight above 0.")

    def sample(generator: np.random.Generator, round_: int, population: int) -> np.ndarray:
        # The first of independent exponentials is client i with probability in proportion to its rate, and so on. Their
        # logarithms come in the same order, and those of tiny rates do not overflow.
        with np.errstate(divide="ignore"):
            times = np.log(generator.standard_exponential(len(able))) - np.log(chances[able])
        return able[np.argsort(times)[:size]]

    def cap(population: int) -> int:
        if population != len(chances):
            raise ValueError(
                f"weights has {len(chances)} entries, but the population has {population} clients."
            )
        return size

    return Cohort(sample, cap, lambda population: float(size), "weighted")


def traced(size: int, trace: np.ndarray | Path, rounds_per_row: int = 1) -> Cohort:
    """``size`` clients uniformly at random among those that a trace says are there; all of them where they are fewer.

    Args:
      size: of a full cohort.
      trace: ``bool[rows, population]``, or an ``.npy`` file that holds it. Row ``round // rounds_per_row`` counts; the
        trace begins anew at its end.
      rounds_per_row: how long a row lasts.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: a number below 1, a trace that is not ``bool[rows, population]``, or (when a simulation starts) of
        another population.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> cohort = fs.cohorts.traced(2, np.array([[True, False, True], [False, True, False]]))
      >>> [sorted(cohort.sample(np.random.default_rng(0), round_, 3).tolist()) for round_ in range(3)]
      [[0, 2], [1], [0, 2]]
    """
    checks.positive_int("cohort size", size)
    checks.positive_int("rounds_per_row", rounds_per_row)
    there = read_npy(trace) if isinstance(trace, str | Path) else np.asarray(trace)
    if there.ndim != 2 or there.dtype != bool or there.size == 0:
        raise ValueError(f"trace is {there.dtype}{list(there.shape)}, expected bool[rows, population].")

    def sample(generator: np.random.Generator, round_: int, population: int) -> np.ndarray:
        return _among(generator, there[round_ // rounds_per_row % len(there)], size)

    def cap(population: int) -> int:
        if population != there.shape[1]:
            raise ValueError(
                f"trace is of {there.shape[1]} clients, but the population has {population} clients."
            )
        return min(size, population)

    return Cohort(sample, cap, lambda population: float(size), "availability")


def diurnal(
    size: int, rounds_per_day: int = 24, available: float = 0.5, amplitude: float = 1.0, longitudes: int = 0
) -> Cohort:
    """``size`` clients uniformly at random among those available; all of them where they are fewer.

    A client is available in a round with probability ``available * (1 + amplitude * sin(2 pi (round / rounds_per_day +
    place)))``, at most 1, independently of the others. Its place in the world is fixed and spread evenly over the
    population, so that cohorts early and late in a day are made of other clients.

    Args:
      size: of a full cohort.
      rounds_per_day: the period.
      available: mean share of the clients, in (0, 1].
      amplitude: of the daily wave, from 0 (none) to 1 (everybody sleeps).
      longitudes: number of different places; 0 gives each client one of its own, 1 lets all sleep at the same time.

    Raises:
      ValueError: a number out of range.

    Source: Eichner et al. 2019 (arXiv 1904.10120), block-cyclic availability, as a wave.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> day = [fs.cohorts.diurnal(100, 24, longitudes=1).sample(np.random.default_rng(0), r, 60) for r in (6, 18)]
      >>> [len(members) for members in day]
      [60, 0]
    """
    checks.positive_int("cohort size", size)
    checks.positive_int("rounds_per_day", rounds_per_day)
    checks.fraction("available", available)
    checks.not_negative_int("longitudes", longitudes)
    if not 0 <= amplitude <= 1:
        raise ValueError(f"amplitude is {amplitude}, expected a number from 0 to 1.")

    def sample(generator: np.random.Generator, round_: int, population: int) -> np.ndarray:
        # Multiples of the golden ratio are spread evenly, and neighbours lie far from each other.
        place = np.arange(population) * ((math.sqrt(5) - 1) / 2) % 1
        if longitudes:
            place = np.floor(place * longitudes) / longitudes
        wave = np.sin(2 * np.pi * (round_ % rounds_per_day / rounds_per_day + place))
        chance = available * (1 + amplitude * wave)
        return _among(generator, generator.random(population) < chance, size)

    return Cohort(
        sample, lambda population: min(size, population), lambda population: float(size), "availability"
    )


def fixed(clients: Sequence[int]) -> Cohort:
    """The same clients in every round, given by their index in the population.

    Raises:
      ValueError: no client, a client named twice or by something else than an integer, or (when a simulation starts) one
        outside the population.
    """
    chosen = np.asarray(clients)
    if chosen.ndim != 1 or chosen.size == 0:
        raise ValueError(f"clients has shape {chosen.shape}, expected a list of at least one client index.")
    if chosen.dtype.kind not in "iu":  # of 1.5 and True, numpy would make 1
        raise ValueError(f"clients holds {chosen[0].item()!r}, expected integers, clients by their index.")
    chosen = chosen.astype(np.int64)
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


def _no_more_than_there_are(size: int) -> Callable[[int], int]:
    def cap(population: int) -> int:
        if size > population:
            raise ValueError(
                f"cohort size is {size}, but the population has {population} clients: draw at most {population}, "
                "use cohorts.all_clients(), or draw with replacement (cohorts.uniform(size, replace=True))."
            )
        return size

    return cap


def _among(generator: np.random.Generator, available: np.ndarray, size: int) -> np.ndarray:
    """``size`` of the available clients, or all of them, in random order."""
    return generator.permutation(np.flatnonzero(available))[:size]
