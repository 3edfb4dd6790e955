"""Exact tests of numbers that are claimed to be independent noise of unit variance."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import numpy as np
import scipy

_OFTEN = 50.0
"""Expected numbers from which on Pearson's test has its limit."""


@dataclasses.dataclass(frozen=True)
class NoiseTest:
    """One exact test of the noise.

    Attributes:
      name: what is tested.
      p_value: probability of a statistic so extreme, if the noise is what the facts claim.
    """

    name: str
    p_value: float


def noise_tests(noise: np.ndarray, sizes: Mapping[str, int], runs: int = 1) -> tuple[NoiseTest, ...]:
    """Tests of numbers that are claimed to be standard Gaussians, independent everywhere.

    Args:
      noise: ``f64[runs * rounds, coordinates]``, run after run.
      sizes: coordinates of each part of a round, such as "leaf 0", one part after the other.
      runs: how many; rounds of one run follow on one another.
    """
    rounds, coordinates = noise.shape
    edges = np.cumsum([0, *sizes.values()])
    leaves = [noise[:, start:stop] for start, stop in itertools.pairwise(edges)]
    found = {"variance over all": chi_square(np.sum(noise**2), noise.size)}
    for name, leaf in zip(sizes, leaves, strict=True):
        found[f"variance in {name}"] = chi_square(np.sum(leaf**2), leaf.size)
    each = [chi_square(np.sum(round_**2), coordinates) for round_ in noise]
    found["variance of the strangest round"] = min(1.0, rounds * min(each))
    finite = bool(np.isfinite(noise).all())
    found["law of the noise"] = kolmogorov(noise.ravel()) if finite else 0.0
    # The sum of n independent numbers over root n is of unit variance again. Equal numbers make it n times too large.
    found["mean over rounds"] = chi_square(np.sum(np.sum(noise, axis=0) ** 2) / rounds, coordinates)
    found["mean over coordinates"] = chi_square(np.sum(np.sum(noise, axis=1) ** 2) / coordinates, rounds)
    if len(leaves) > 1:
        shared = min(sizes.values())
        total = np.sum([leaf[:, :shared] for leaf in leaves], axis=0)
        found["mean over leaves"] = chi_square(np.sum(total**2) / len(leaves), total.size)
    found["largest correlation of two coordinates"] = largest_correlation(noise)
    found["largest correlation of two rounds"] = largest_correlation(noise.T)
    found["largest correlation at one distance"] = at_a_distance(
        noise.reshape(runs, rounds // runs, coordinates)
    )
    return tuple(NoiseTest(name, p_value) for name, p_value in found.items())


def lattice_test(counts: np.ndarray, expected: np.ndarray) -> NoiseTest:
    """Pearson's test of how often each remainder of an integer came; rare ones, which its limit is not for, count as one."""
    order = np.argsort(expected)
    counts, expected = counts[order].astype(np.float64), expected[order]
    rare = int(np.argmax(np.cumsum(expected) >= _OFTEN)) if expected.sum() >= _OFTEN else len(expected) - 1
    got = np.append(counts[: rare + 1].sum(), counts[rare + 1 :])
    claimed = np.append(expected[: rare + 1].sum(), expected[rare + 1 :])
    name = "remainders of the integers"
    if len(got) < 2:
        return NoiseTest(name, 1.0)
    statistic = float(np.sum((got - claimed) ** 2 / claimed))
    return NoiseTest(name, float(scipy.special.chdtrc(len(got) - 1, statistic)))


def chi_square(statistic: float, degrees: int) -> float:
    """Two-sided: too much noise is not what was claimed, either."""
    if not math.isfinite(statistic):
        return 0.0
    tails = scipy.special.chdtr(degrees, statistic), scipy.special.chdtrc(degrees, statistic)
    return float(min(1.0, 2 * min(tails)))


def kolmogorov(values: np.ndarray) -> float:
    """Kolmogorov and Smirnov's test of standard Gaussians, by its limit for many of them."""
    steps = np.arange(len(values) + 1) / len(values)
    below = scipy.special.ndtr(np.sort(values))
    distance = max(float(np.max(steps[1:] - below)), float(np.max(below - steps[:-1])))
    return float(scipy.special.kolmogorov(math.sqrt(len(values)) * distance))


def largest_correlation(noise: np.ndarray) -> float:
    """Of any two columns, by Bonferroni over the pairs; each pair's is exact for independent Gaussians."""
    samples, columns = noise.shape
    if columns < 2 or samples < 4 or not np.isfinite(noise).all():
        return 1.0 if np.isfinite(noise).all() else 0.0
    units = _units(noise)
    largest = float(np.max(np.abs(np.triu(units.T @ units, 1))))
    return _bonferroni(largest, samples, columns * (columns - 1) / 2)


def largest_correlation_with(one: np.ndarray, noise: np.ndarray) -> float:
    """Of one column, ``f64[samples]``, with any of others."""
    samples, columns = noise.shape
    if not (np.isfinite(one).all() and np.isfinite(noise).all()):
        return 0.0
    return _bonferroni(float(np.max(np.abs(_units(one[:, None]).T @ _units(noise)))), samples, columns)


def _units(columns: np.ndarray) -> np.ndarray:
    centred = columns - columns.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    return centred / np.where(norms > 0, norms, 1.0)


def _bonferroni(largest: float, samples: int, pairs: float) -> float:
    if largest >= 1 - 1e-12:
        return 0.0
    t = largest * math.sqrt((samples - 2) / (1 - largest**2))
    return float(min(1.0, 2 * pairs * scipy.special.stdtr(samples - 2, -t)))


def at_a_distance(noise: np.ndarray) -> float:
    """Of rounds so many apart, over all of ``f64[runs, rounds, coordinates]``, by Bonferroni over the distances.

    Rounds are cut into stretches of the distance's length. Each round of an even stretch has its partner in the odd one behind
    it, and given the even ones the sum of the products is exactly Gaussian; then the other way round.
    """
    if not np.isfinite(noise).all():
        return 0.0
    rounds, largest, tests = noise.shape[1], 0.0, 0
    for distance in range(1, rounds // 2 + 1):
        stretch = np.arange(rounds - distance) // distance
        products = np.sum(noise[:, :-distance] * noise[:, distance:], axis=(0, 2))
        squares = np.sum(noise[:, :-distance] ** 2, axis=(0, 2))
        for side in range(2):
            here = stretch % 2 == side
            if squares[here].sum() > 0:
                largest = max(largest, abs(products[here].sum()) / math.sqrt(squares[here].sum()))
                tests += 1
    return float(min(1.0, 2 * tests * scipy.special.ndtr(-largest)))
