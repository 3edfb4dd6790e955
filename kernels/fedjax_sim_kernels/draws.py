"""Random arguments for tests and benchmarks: generators are compiled for few lengths, not for every shape."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax

_SHORTEST = 12
"""Two to this power are drawn at least."""


def normal(seed: int, place: int, *shape: int) -> Any:
    """``f32[*shape]`` on the host; ``place`` tells the arrays of one seed apart."""
    return _drawn(jax.random.normal, seed, place, shape)


def uniform(seed: int, place: int, *shape: int) -> Any:
    """``f32[*shape]`` in [0, 1), as ``normal``."""
    return _drawn(jax.random.uniform, seed, place, shape)


def bits(seed: int, place: int, *shape: int) -> Any:
    """``uint32[*shape]``, as ``normal``."""
    return _drawn(jax.random.bits, seed, place, shape)


def _drawn(draw: Callable[..., jax.Array], seed: int, place: int, shape: tuple[int, ...]) -> Any:
    count = math.prod(shape)
    length = 1 << max(_SHORTEST, (count - 1).bit_length())
    key = jax.random.fold_in(jax.random.key(seed), place)
    return jax.device_get(draw(key, (length,)))[:count].reshape(shape)
