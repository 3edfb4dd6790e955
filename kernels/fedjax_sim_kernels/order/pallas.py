"""Order statistics by counting, as a Pallas kernel over blocks of coordinates.

The rank of an element is how many of its coordinate stand before it: comparing each with each moves no data, which suits
an accelerator that has arithmetic to spare. Never measured on a device: nothing dispatches to it.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from fedjax_sim_kernels.order.reference import middle

BLOCK = 256


def median(rows: jax.Array, valid: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.median``; ``interpret`` runs it where there is no accelerator."""
    return _over_blocks(_median, rows, (valid,), interpret)


def trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.trimmed_mean``; ``interpret`` runs it where there is no accelerator."""
    return _over_blocks(_trimmed_mean, rows, (valid, jnp.asarray(trim, jnp.int32).reshape(1)), interpret)


def _ranks(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Place of each element among the valid ones of its coordinate; of equal elements the earlier row's is first."""
    index = jax.lax.broadcasted_iota(jnp.int32, (rows.shape[0], 1), 0)
    found = jnp.zeros(rows.shape, jnp.int32)
    for row in range(rows.shape[0]):
        before = (rows[row] < rows) | ((rows[row] == rows) & (row < index))
        found = found + (before & valid[row])
    return found


def _median(rows: jax.Array, valid: jax.Array) -> jax.Array:
    count, rank = jnp.sum(valid, dtype=jnp.int32), _ranks(rows, valid)
    # A selection, for infinity times zero is NaN.
    low, high = (
        jnp.sum(jnp.where(valid[:, None] & (rank == place), rows, 0), axis=0)
        for place in ((count - 1) // 2, count // 2)
    )
    return middle(low, high, count)


def _trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array) -> jax.Array:
    count, rank = jnp.sum(valid, dtype=jnp.int32), _ranks(rows, valid)
    kept = valid[:, None] & (rank >= trim) & (rank < count - trim)
    total = jnp.sum(jnp.where(kept, rows, 0), axis=0, dtype=jnp.promote_types(rows.dtype, jnp.float32))
    return total / jnp.maximum(count - 2 * trim, 1)


def _over_blocks(
    function: Callable[..., jax.Array], rows: jax.Array, given: tuple[jax.Array, ...], interpret: bool
) -> jax.Array:
    count, shape = rows.shape[0], rows.shape[1:]
    flat = rows.reshape(count, -1)
    coordinates = flat.shape[1]
    blocks = max(1, -(-coordinates // BLOCK))
    flat = jnp.pad(jnp.where(jnp.isnan(flat), jnp.inf, flat), ((0, 0), (0, blocks * BLOCK - coordinates)))

    def kernel(rows, *references):
        *given, out = references
        out[...] = function(rows[...], *(value[...] for value in given))[None].astype(out.dtype)

    total = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((blocks, BLOCK), rows.dtype),
        grid=(blocks,),
        in_specs=[
            pl.BlockSpec((count, BLOCK), lambda block: (0, block)),
            *(pl.BlockSpec(value.shape, lambda block: (0,)) for value in given),
        ],
        out_specs=pl.BlockSpec((1, BLOCK), lambda block: (block, 0)),
        interpret=interpret,
    )(flat, *given)
    return total.reshape(-1)[:coordinates].reshape(shape)
