"""What quantising and packing computes.

Alistarh et al., "QSGD: communication-efficient SGD via gradient quantization and encoding", 2017, with uniform levels
between the smallest and the largest element (Suresh et al., "Distributed mean estimation with limited communication",
2017, section 2.2): each element becomes one of the two levels next to it, so that its expectation is the element.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

BITS = (1, 2, 4, 8, 16)


class Packed(NamedTuple):
    """``words: uint32[ceil(size * bits / 32)]``; an element is ``low + level * step``."""

    words: Any
    low: Any
    step: Any


def quantise_and_pack(x: jax.Array, uniform: jax.Array, bits: int) -> Packed:
    """Rounds each element up or down at random to one of ``2 ** bits`` levels and packs the levels.

    Args:
      x: ``f32[size]``, finite.
      uniform: ``f32[size]`` in [0, 1), the chance behind each rounding.
      bits: of a level: 1, 2, 4, 8 or 16.

    Raises:
      ValueError: other numbers of bits, which do not divide a word.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim_kernels import packing
    >>> packed = packing.quantise_and_pack(jnp.array([0.0, 1.0, 3.0]), jnp.zeros(3), bits=2)
    >>> hex(packed.words[0]), packing.unpack(packed, 3, bits=2).tolist()
    ('0x34', [0.0, 1.0, 3.0])
    """
    low, step = levels(x, bits)
    return Packed(pack(quantise(x, uniform, low, step, bits), bits), low, step)


def levels(x: jax.Array, bits: int) -> tuple[jax.Array, jax.Array]:
    """The lowest level and the distance between two."""
    if bits not in BITS:
        raise ValueError(f"bits is {bits}, expected one of {', '.join(map(str, BITS))}.")
    low = jnp.min(x)
    return low, (jnp.max(x) - low) / (2**bits - 1)


def quantise(x: jax.Array, uniform: jax.Array, low: jax.Array, step: jax.Array, bits: int) -> jax.Array:
    """The level of each element, ``uint32``."""
    place = (x - low) / jnp.where(step > 0, step, 1)
    return jnp.clip(jnp.floor(place + uniform), 0, 2**bits - 1).astype(jnp.uint32)


def pack(values: jax.Array, bits: int) -> jax.Array:
    """Levels side by side in words, the first in the lowest bits."""
    each = 32 // bits
    values = jnp.pad(values, (0, -len(values) % each)).reshape(-1, each)
    shifts = jnp.arange(each, dtype=jnp.uint32) * jnp.uint32(bits)
    return jnp.sum(values << shifts, axis=1, dtype=jnp.uint32)


def unpack(packed: Packed, size: int, bits: int) -> jax.Array:
    """The elements, ``f32[size]``."""
    shifts = jnp.arange(32 // bits, dtype=jnp.uint32) * jnp.uint32(bits)
    values = (packed.words[:, None] >> shifts) & jnp.uint32(2**bits - 1)
    return packed.low + values.reshape(-1)[:size].astype(jnp.float32) * packed.step
