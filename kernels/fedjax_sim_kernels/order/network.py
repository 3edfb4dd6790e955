"""Order statistics by a bitonic sorting network over blocks of coordinates.

Batcher, "Sorting networks and their applications", 1968. XLA's sort calls a comparison for each pair of elements; the
network compares whole rows with vector instructions, in a number of steps that grows with the square of the logarithm,
on a block that stays in the cache.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.order.reference import middle

BLOCK = 512
"""Coordinates that are sorted at a time."""


def median(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Equals ``reference.median``."""
    count = jnp.sum(valid, dtype=jnp.int32)

    def block(rows: jax.Array) -> jax.Array:
        ordered = sort(rows, valid)
        low, high = (ordered[jnp.maximum(place, 0)] for place in ((count - 1) // 2, count // 2))
        return middle(low, high, count)

    return _blockwise(block, rows)


def trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array) -> jax.Array:
    """Equals ``reference.trimmed_mean``, but for the order of its sum."""
    count = jnp.sum(valid, dtype=jnp.int32)
    wide = jnp.promote_types(rows.dtype, jnp.float32)

    def block(rows: jax.Array) -> jax.Array:
        ordered = sort(rows, valid)

        def add(row: jax.Array, total: jax.Array) -> jax.Array:
            kept = (row >= trim) & (row < count - trim)
            return total + jnp.where(kept, ordered[row], 0).astype(wide)

        total = lax.fori_loop(0, rows.shape[0], add, jnp.zeros(rows.shape[1:], wide))
        return (total / jnp.maximum(count - 2 * trim, 1)).astype(rows.dtype)

    return _blockwise(block, rows)


def sort(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Ascending along the rows, absent ones last; as many rows as the next power of two.

    Args:
      rows: ``[rows, coordinates]``, floating; NaN counts as infinite.
      valid: ``bool[rows]``.
    """
    count = rows.shape[0]
    size = 1 << (count - 1).bit_length()
    x = jnp.where(valid[:, None] & ~jnp.isnan(rows), rows, jnp.inf)
    x = jnp.pad(x, ((0, size - count), (0, 0)), constant_values=jnp.inf)
    place = lax.iota(jnp.int32, size)
    run = 2
    while run <= size:
        apart = run // 2
        while apart:
            other = jnp.flip(x.reshape(size // (2 * apart), 2, apart, -1), axis=1).reshape(x.shape)
            takes_smaller = ((place & apart) == 0) == ((place & run) == 0)
            x = jnp.where(takes_smaller[:, None], jnp.minimum(x, other), jnp.maximum(x, other))
            # Two steps in one loop would compute each element of the first twice, and so on.
            x = lax.optimization_barrier(x)
            apart //= 2
        run *= 2
    return x


def _blockwise(block: Callable[[jax.Array], jax.Array], rows: jax.Array) -> jax.Array:
    """Applies a function of ``[rows, coordinates]`` to blocks of coordinates."""
    count, shape = rows.shape[0], rows.shape[1:]
    flat = rows.reshape(count, -1)
    coordinates = flat.shape[1]
    if coordinates <= BLOCK:
        return block(flat).reshape(shape)
    blocks = -(-coordinates // BLOCK)
    flat = jnp.pad(flat, ((0, 0), (0, blocks * BLOCK - coordinates)))
    starts = BLOCK * lax.iota(jnp.int32, blocks)
    out = lax.map(lambda start: block(lax.dynamic_slice_in_dim(flat, start, BLOCK, axis=1)), starts)
    return out.reshape(-1)[:coordinates].reshape(shape)
