"""Random bits of threefry keys, for CPUs.

There JAX writes threefry as a loop of five passes over all bits. One pass takes a third to a half of the time, and the bits
are the same: 256 of them 2.0 instead of 5.5 µs, 125,440 of them 333 instead of 690 µs (one core of an AMD EPYC, Zen 3, the least of 25).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_PARTS = 4

FEWEST = 64
"""As few were timed, 0.9 instead of 1.6 µs."""


def supports(count: int) -> bool:
    """Whether ``bits`` gives so many as JAX is set to."""
    return FEWEST <= count < 2**32 and bool(jax.config.jax_threefry_partitionable)  # type: ignore


def bits(key: jax.Array, count: int) -> jax.Array:
    """``jax.random.bits(key, (count,))``, ``uint32[count]``, for what ``supports`` says.

    The compiler would put elementwise operations into the loop of each operation that reads them: the bits of a dropout were made
    twice, and once in an order in which nothing was vectorised, 3.5 ms instead of 2.0 (with the
    operations around them). In a loop of a few parts they stay apart.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", Threefry-2x32 with 20 rounds.

    >>> import jax
    >>> from fedjax_sim_kernels import threefry
    >>> key = jax.random.key(3)
    >>> bool((threefry.bits(key, 10) == jax.random.bits(key, (10,))).all())
    True
    """
    first, second = jax.random.key_data(key)
    words = (first, second, first ^ second ^ jnp.uint32(_PARITY))
    size = -(-count // _PARTS)
    starts = jnp.uint32(size) * lax.iota(jnp.uint32, _PARTS)
    parts = lax.map(lambda start: _encrypted(words, start + lax.iota(jnp.uint32, size)), starts)
    return lax.reshape(parts, (_PARTS * size,))[:count]


def _encrypted(words: tuple[jax.Array, jax.Array, jax.Array], counts: jax.Array) -> jax.Array:
    """Both words of each block ``(0, count)``, one on the other."""
    left, right = jnp.full_like(counts, words[0]), counts + words[1]
    for group in range(5):
        for rotation in _ROTATIONS[group % 2]:
            left = left + right
            right = left ^ ((right << rotation) | (right >> (32 - rotation)))
        left = left + words[(group + 1) % 3]
        right = right + (words[(group + 2) % 3] + jnp.uint32(group + 1))
    return left ^ right
