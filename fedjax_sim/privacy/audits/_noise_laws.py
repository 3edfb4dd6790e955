"""What facts say about the noise on a sum: its joint law over rounds, or the law of its integers. Oracles, in float64.

Nothing here shares code with the layers that add the noise, but for the grid, which the accountant reads, too.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import scipy

from fedjax_sim._src.grid import Grid, Settings, grid
from fedjax_sim._src.types import Noise

Rows = np.ndarray
"""``f64[rounds, coordinates]``."""

# --- Gaussian noise, independent or not ----------------------------------------------------------------------


def _independent(details: Mapping[str, Any], rounds: int) -> np.ndarray:
    return np.eye(rounds)


def _banded(details: Mapping[str, Any], rounds: int) -> np.ndarray:
    """``C``, so that ``C x`` is white. Its columns have norm 1, which the price rests on, whatever the facts say."""
    c = np.asarray(details["coefficients"], np.float64)[:rounds]
    c = c / np.linalg.norm(details["coefficients"])
    return sum(np.diag(np.full(rounds - band, value), -band) for band, value in enumerate(c))  # type: ignore[return-value]


def _tree(details: Mapping[str, Any], rounds: int) -> np.ndarray:
    """Row ``t`` adds the rounds of the smallest node that ends with round ``t``, which has noise of its own.

    Prefix sums are made of nodes that are left children; there is one for each round, the one that ends with it.
    """
    white = np.zeros((rounds, rounds))
    for round_ in range(rounds):
        place = round_ % (details["restart_every"] or rounds) + 1
        white[round_, round_ + 1 - (place & -place) : round_ + 1] = 1.0
    return white


WHITENING: dict[str, Callable[[Mapping[str, Any], int], np.ndarray]] = {
    "gaussian": _independent,
    "filtered_gaussian": _independent,
    "local_gaussian": _independent,
    "banded_gaussian": _banded,
    "tree_gaussian": _tree,
}
"""Law of Gaussian noise to the matrix over rounds that makes white noise of it, of its multiplier times bound."""


def covariance(noise: Noise, stds: np.ndarray) -> np.ndarray:
    """Of the rounds of one run, in each coordinate, ``f64[rounds, rounds]``; ``stds`` of what is white."""
    rounds = len(stds)
    root = np.linalg.solve(WHITENING[noise.law](noise.details, rounds), np.diag(stds))
    return root @ root.T


# --- Laplace noise -------------------------------------------------------------------------------------------


def laplace_cdf(x: np.ndarray, terms: int = 1) -> np.ndarray:
    """Of the sum of so many independent Laplace variables, scaled to variance 1.

    The sum of ``n`` of scale 1 is a difference of two Gamma variables of shape ``n``. Its tail is a mixture of those of Gamma
    variables of shapes ``n - k``, with weights ``binomial(n - 1 + k, k) / 2^(n + k)`` (Kotz et al. 2001, section 2.2).
    """
    distance = np.abs(x) * math.sqrt(2 * terms)
    tail = sum(
        math.comb(terms - 1 + k, k) / 2.0 ** (terms + k) * scipy.special.gammaincc(terms - k, distance)
        for k in range(terms)
    )
    return np.where(x < 0, tail, 1 - tail)


# --- noise on integers ---------------------------------------------------------------------------------------


class IntegerSum(NamedTuple):
    """The law of a sum of clients' integers, modulo a power of two.

    Attributes:
      first: the smallest integer.
      mass: ``f64[count]``, probabilities of ``first``, ``first + 1``, ...
      step: of the grid, in units of the message.
      bound: by how much one client moves the sum, after rounding, in units of the message.
    """

    first: int
    mass: np.ndarray
    step: float
    bound: float

    @property
    def std(self) -> float:
        """In units of the message."""
        values = self.first + np.arange(len(self.mass))
        return self.step * math.sqrt(float(self.mass @ values.astype(np.float64) ** 2))

    def gaussian(self, integers: np.ndarray, generator: np.random.Generator) -> Rows:
        """Standard Gaussians, if the integers follow the law: exactly, by a uniform number within each one's probability."""
        place = integers - self.first
        inside = (place >= 0) & (place < len(self.mass))
        place = np.where(inside, place, 0)
        below = np.concatenate([[0.0], np.cumsum(self.mass)])
        # From the nearer end, so that the upper tail is as exact as the lower one.
        above = np.concatenate([np.cumsum(self.mass[::-1])[::-1], [0.0]])
        share = generator.random(integers.shape)
        lower = below[place] + share * self.mass[place]
        upper = above[place + 1] + (1 - share) * self.mass[place]
        with np.errstate(divide="ignore"):
            found = np.where(lower < 0.5, scipy.special.ndtri(lower), -scipy.special.ndtri(upper))
        return np.where(inside, found, np.inf)

    def remainders(self, divisor: int) -> np.ndarray:
        """Probabilities of each remainder, ``f64[divisor]``."""
        values = (self.first + np.arange(len(self.mass))) % divisor
        return np.bincount(values, weights=self.mass, minlength=divisor)


INTEGER_LAWS = ("discrete_gaussian", "skellam")


def integer_sum(noise: Noise, bound: float, clients: int, dimension: int) -> IntegerSum:
    """The law of what the server sees of clients that send zeros."""
    made, bits = _grid_of(noise, dimension), int(noise.details["bits"])
    first, mass = _summed(noise.law, made.local_std, clients)
    first, mass = _folded(first, mass, 2**bits)
    step = bound / made.levels
    return IntegerSum(first, mass, step, step * math.sqrt(made.squared_norm))


def _grid_of(noise: Noise, dimension: int) -> Grid:
    fields = {name: noise.details[name] for name in Settings._fields if name != "noise_multiplier"}
    return grid(Settings(float(noise.multiplier), **fields), dimension)


@functools.lru_cache(maxsize=8)
def _summed(law: str, std: float, clients: int) -> tuple[int, np.ndarray]:
    """Probabilities of the sum of independent integers: Skellam's law is closed under it, the discrete Gaussian is not."""
    last = math.ceil(10 * std * math.sqrt(clients)) + 40
    k = np.arange(-last, last + 1, dtype=np.float64)
    if law == "skellam":
        mass = scipy.special.ive(np.abs(k), clients * std**2)
    else:
        one = np.exp(-(k**2) / (2 * std**2))
        one = np.fft.rfft(np.fft.ifftshift(one / one.sum()))
        mass = np.fft.fftshift(np.maximum(np.fft.irfft(one**clients, len(k)), 0.0))
    return -last, mass / mass.sum()


def _folded(first: int, mass: np.ndarray, modulus: int) -> tuple[int, np.ndarray]:
    if len(mass) <= modulus:
        return first, mass
    values = (first + np.arange(len(mass)) + modulus // 2) % modulus
    return -(modulus // 2), np.bincount(values, weights=mass, minlength=modulus)
