"""Counting ranks as a Pallas kernel over blocks of coordinates. Never measured on a device: nothing dispatches to it."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from fedjax_sim_kernels.order.ranks import block_median, block_trimmed_mean

BLOCK = 256


def median(rows: jax.Array, valid: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.median``; ``interpret`` runs it where there is no accelerator."""
    return _over_blocks(block_median, rows, (valid,), interpret)


def trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.trimmed_mean``; ``interpret`` runs it where there is no accelerator."""
    return _over_blocks(block_trimmed_mean, rows, (valid, jnp.asarray(trim, jnp.int32).reshape(1)), interpret)


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
