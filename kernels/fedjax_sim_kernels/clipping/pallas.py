"""The two passes as Pallas kernels for GPUs, over blocks of coordinates.

On an H200, jax 0.11.2, it took 1.07 times as long as XLA's own for 16 updates of 1,206,590 and 0.95 times for 64 of 199,210:
no gain, so nothing dispatches to it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fedjax_sim_kernels.clipping.streamed import scales

BLOCK = 1024


def clip_and_sum(
    updates: jax.Array, weights: jax.Array, bound: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Equals ``reference.clip_and_sum``; ``interpret`` runs it where there is no accelerator."""
    clients, coordinates = updates.shape
    # Triton has arrays whose sizes are powers of two: clients that are not there have the weight 0.
    rows = pl.next_power_of_2(clients)
    blocks = max(1, -(-coordinates // BLOCK))
    padded = jnp.pad(updates, ((0, rows - clients), (0, blocks * BLOCK - coordinates)))
    call = functools.partial(
        pl.pallas_call, grid=(blocks,), interpret=interpret, compiler_params=triton.CompilerParams()
    )
    tile = pl.BlockSpec((rows, BLOCK), lambda block: (0, block))
    # Partial sums per block: blocks may run side by side, so none may add to another's.
    squares = call(
        _squares,
        out_shape=jax.ShapeDtypeStruct((blocks, rows), jnp.float32),
        in_specs=[tile],
        out_specs=pl.BlockSpec((1, rows), lambda block: (block, 0)),
    )(padded)
    norms = jnp.sqrt(jnp.sum(squares, axis=0))[:clients]
    total = call(
        _scaled_sum,
        out_shape=jax.ShapeDtypeStruct((blocks, BLOCK), jnp.float32),
        in_specs=[pl.BlockSpec((rows,), lambda block: (0,)), tile],
        out_specs=pl.BlockSpec((1, BLOCK), lambda block: (block, 0)),
    )(jnp.pad(scales(norms, weights, bound), (0, rows - clients)), padded)
    return total.reshape(-1)[:coordinates], norms


def _squares(updates, out):
    out[...] = jnp.sum(jnp.square(updates[...].astype(jnp.float32)), axis=1)[None]


def _scaled_sum(scale, updates, out):
    factor = scale[...][:, None]
    out[...] = jnp.sum(jnp.where(factor == 0, 0.0, factor * updates[...].astype(jnp.float32)), axis=0)[None]
