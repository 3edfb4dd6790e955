"""Order statistics by counting: the rank of an element is how many of its coordinate stand before it.

Sorting calls a comparison for every pair and moves data; with up to some sixty rows, comparing each with each is one
pass of vector instructions over a block that stays in the cache. Rows that are absent are not counted, so nothing need
be moved out of the way.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.order.reference import middle

BLOCK_BYTES = 1 << 18
"""Rows of a block of coordinates: what fits into the second-level cache beside their ranks."""


def ranks(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Place of each element among the valid ones of its coordinate, ``int32`` like ``rows: [rows, coordinates]``.

    Of equal elements the one of the earlier row stands first. Elements of absent rows have some rank.
    """
    count = rows.shape[0]
    index = jnp.arange(count)[:, None]
    found = jnp.zeros(rows.shape, jnp.int32)
    for row in range(count):
        before = (rows[row] < rows) | ((rows[row] == rows) & (row < index))
        found = found + (before & valid[row])
    return found


def median(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Equals ``reference.median``."""
    return _blockwise(lambda block: block_median(block, valid), rows)


def block_median(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Of ``[rows, coordinates]`` without NaN."""
    count, rank = jnp.sum(valid, dtype=jnp.int32), ranks(rows, valid)
    low, high = (_at(rows, valid, rank, place) for place in ((count - 1) // 2, count // 2))
    return middle(low, high, count)


def trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array) -> jax.Array:
    """Equals ``reference.trimmed_mean``, but for the order of its sum."""
    return _blockwise(lambda block: block_trimmed_mean(block, valid, trim), rows)


def block_trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array) -> jax.Array:
    """Of ``[rows, coordinates]`` without NaN."""
    count, rank = jnp.sum(valid, dtype=jnp.int32), ranks(rows, valid)
    kept = valid[:, None] & (rank >= trim) & (rank < count - trim)
    total = jnp.sum(jnp.where(kept, rows, 0), axis=0, dtype=jnp.promote_types(rows.dtype, jnp.float32))
    return (total / jnp.maximum(count - 2 * trim, 1)).astype(rows.dtype)


def _at(rows: jax.Array, valid: jax.Array, rank: jax.Array, place: jax.Array) -> jax.Array:
    """The element of a rank; a selection, for infinity times zero is NaN."""
    return jnp.sum(jnp.where(valid[:, None] & (rank == place), rows, 0), axis=0)


def _blockwise(block: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """Applies a function of ``[rows, coordinates]`` to blocks of coordinates."""
    count, shape = rows.shape[0], rows.shape[1:]
    flat = rows.reshape(count, -1)
    flat = jnp.where(jnp.isnan(flat), jnp.inf, flat)
    size = max(256, BLOCK_BYTES // max(1, count * rows.dtype.itemsize) // 256 * 256)
    coordinates = flat.shape[1]
    if coordinates <= size:
        return block(flat).reshape(shape)
    blocks = -(-coordinates // size)
    flat = jnp.pad(flat, ((0, 0), (0, blocks * size - coordinates)))
    out = lax.map(block, jnp.moveaxis(flat.reshape(count, blocks, size), 1, 0))
    return out.reshape(-1)[:coordinates].reshape(shape)
