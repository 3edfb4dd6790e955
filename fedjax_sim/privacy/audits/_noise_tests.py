"""Exact tests of numbers that are claimed to be independent noise of unit variance."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
from scipy import special


@dataclasses.dataclass(frozen=True)
class NoiseTest:
    """One exact test of the noise.

    Attributes:
      name: what is tested.
      p_value: probability of a statistic so extreme, if the noise is what the facts claim.
    """

    name: str
    p_value: float


def noise_tests(noise: np.ndarray, sizes: list[int], cdf) -> tuple[NoiseTest, ...]:
    """Tests of ``f64[rounds, coordinates]`` that is claimed to be of unit variance, independent everywhere."""
    if cdf is not None:
        with np.errstate(divide="ignore"):
            noise = special.ndtri(cdf(noise))
    rounds, coordinates = noise.shape
    edges = np.cumsum([0, *sizes])
    leaves = [noise[:, start:stop] for start, stop in itertools.pairwise(edges)]
    found = {"variance over all": _chi_square(np.sum(noise**2), noise.size)}
    for index, leaf in enumerate(leaves):
        found[f"variance in leaf {index}"] = _chi_square(np.sum(leaf**2), leaf.size)
    finite = bool(np.isfinite(noise).all())
    found["law of the noise"] = _kolmogorov(noise.ravel()) if finite else 0.0
    # The sum of n independent numbers over root n is of unit variance again. Equal numbers make it n times too large.
    found["mean over rounds"] = _chi_square(np.sum(np.sum(noise, axis=0) ** 2) / rounds, coordinates)
    found["mean over coordinates"] = _chi_square(np.sum(np.sum(noise, axis=1) ** 2) / coordinates, rounds)
    if len(leaves) > 1:
        shared = min(sizes)
        total = np.sum([leaf[:, :shared] for leaf in leaves], axis=0)
        found["mean over leaves"] = _chi_square(np.sum(total**2) / len(leaves), total.size)
    found["largest correlation of two coordinates"] = _largest_correlation(noise)
    found["largest correlation of two rounds"] = _largest_correlation(noise.T)
    return tuple(NoiseTest(name, p_value) for name, p_value in found.items())


def _chi_square(statistic: float, degrees: int) -> float:
    """Two-sided: too much noise is not what was claimed, either."""
    if not math.isfinite(statistic):
        return 0.0
    tails = special.chdtr(degrees, statistic), special.chdtrc(degrees, statistic)
    return float(min(1.0, 2 * min(tails)))


def _kolmogorov(values: np.ndarray) -> float:
    """Kolmogorov and Smirnov's test of standard Gaussians, by its limit for many of them."""
    steps = np.arange(len(values) + 1) / len(values)
    below = special.ndtr(np.sort(values))
    distance = max(float(np.max(steps[1:] - below)), float(np.max(below - steps[:-1])))
    return float(special.kolmogorov(math.sqrt(len(values)) * distance))


def _largest_correlation(noise: np.ndarray) -> float:
    """Of any two columns, by Bonferroni over the pairs; each pair's is exact for independent Gaussians."""
    samples, columns = noise.shape
    if columns < 2 or samples < 4 or not np.isfinite(noise).all():
        return 1.0 if np.isfinite(noise).all() else 0.0
    centred = noise - noise.mean(axis=0)
    norms = np.linalg.norm(centred, axis=0)
    centred = centred / np.where(norms > 0, norms, 1.0)
    largest = float(np.max(np.abs(np.triu(centred.T @ centred, 1))))
    if largest >= 1 - 1e-12:
        return 0.0
    t = largest * math.sqrt((samples - 2) / (1 - largest**2))
    return float(min(1.0, columns * (columns - 1) * special.stdtr(samples - 2, -t)))
