"""Random integers of given laws, drawn by integer arithmetic from tables made on the host."""

from __future__ import annotations

import functools
import math
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from fedjax_sim._src.types import Array, Key

IntegerLaw = Literal["discrete_gaussian", "skellam"]


class Table(NamedTuple):
    """A cumulative distribution over integers in units of 2^-64.

    Attributes:
      first: the smallest integer.
      high: ``uint32[2^steps - 1]``, upper halves of the cumulative probabilities.
      low: their lower halves.
    """

    first: int
    high: np.ndarray
    low: np.ndarray


@functools.lru_cache(maxsize=32)
def table(law: IntegerLaw, std: float) -> Table:
    """The table of a law with parameter ``std``.

    How exact: the probabilities are right to the rounding of float64, a relative 10^-13 or better, then rounded to multiples of
    2^-64, and the middle takes what is missing to 1. Integers less probable than 2^-65, some nine deviations out, are never
    drawn.
    """
    p = _probabilities(law, std)
    weights = np.rint(p * 2.0**64).astype(np.uint64)
    weights = weights[: np.flatnonzero(weights)[-1] + 1]
    both = np.concatenate([weights[:0:-1], weights])
    missing = -int(np.sum(both, dtype=np.uint64))
    both[len(weights) - 1] = np.uint64((int(both[len(weights) - 1]) + missing) % 2**64)
    cumulative = np.cumsum(both, dtype=np.uint64)[:-1]
    size = (1 << len(cumulative).bit_length()) - 1
    cumulative = np.pad(cumulative, (0, size - len(cumulative)), constant_values=np.uint64(2**64 - 1))
    high, low = (cumulative >> np.uint64(32)).astype(np.uint32), cumulative.astype(np.uint32)
    return Table(1 - len(weights), high, low)


def _probabilities(law: IntegerLaw, std: float) -> np.ndarray:
    """Probabilities of 0, 1, 2, ... until they do not matter; both laws are symmetric."""
    k = np.arange(math.ceil(10 * std) + 40, dtype=np.float64)
    # The difference of two Poisson variables of mean v / 2 each has P(k) = exp(-v) I_k(v), and variance v.
    p = scipy.special.ive(k, std**2) if law == "skellam" else np.exp(-(k**2) / (2 * std**2))
    return p / (2 * p.sum() - p[0])


def draw(key: Key, law: IntegerLaw, std: float, shape: tuple[int, ...]) -> Array:
    """Independent integers of a law, ``int32[shape]``: how many cumulative probabilities are at most a number of 64 random bits.

    Args:
      key: threefry key.
      law: ``"discrete_gaussian"``: probability proportional to ``exp(-k^2 / (2 std^2))``; ``"skellam"``: the difference of two
        Poisson variables, of variance ``std^2``.
      std: parameter of the law, a Python number.
      shape: of the result.
    """
    made = table(law, std)
    high, low = jnp.asarray(made.high), jnp.asarray(made.low)
    bits = jax.random.bits(key, (2, *shape), jnp.uint32)
    steps = len(made.high).bit_length()

    def halve(step, found):
        jump = jnp.int32(1) << (steps - 1 - step)
        there = found + jump - 1
        same, less = high[there] == bits[0], high[there] < bits[0]
        below = less | (same & (low[there] <= bits[1]))
        return jnp.where(below, found + jump, found)

    found = jax.lax.fori_loop(0, steps, halve, jnp.zeros(shape, jnp.int32))
    # The table's padding is met by one number of 2^64 alone.
    return jnp.minimum(found, -2 * made.first) + made.first
