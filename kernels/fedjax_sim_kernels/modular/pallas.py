"""The masked modular sum as a Pallas kernel for GPUs.

On an H200, jax 0.11.2, it took 1.48 and 1.43 times as long as XLA's own (100 rows of 120,000, modulo a power of two and a
prime), so nothing dispatches to it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fedjax_sim_kernels.modular.reference import check_modulus

BLOCK = 1024


def masked_sum(rows: jax.Array, valid: jax.Array, modulus: int, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.masked_sum``; ``interpret`` runs it where there is no accelerator."""
    check_modulus(modulus)
    count, shape = rows.shape[0], rows.shape[1:]
    flat = rows.reshape(count, -1)
    coordinates = flat.shape[1]
    blocks = max(1, -(-coordinates // BLOCK))
    padded = jnp.pad(flat, ((0, 0), (0, blocks * BLOCK - coordinates)))
    total = pl.pallas_call(
        functools.partial(_sum, modulus=modulus),
        out_shape=jax.ShapeDtypeStruct((blocks, BLOCK), jnp.uint32),
        grid=(blocks,),
        in_specs=[
            pl.BlockSpec((count,), lambda block: (0,)),
            pl.BlockSpec((count, BLOCK), lambda block: (0, block)),
        ],
        out_specs=pl.BlockSpec((1, BLOCK), lambda block: (block, 0)),
        interpret=interpret,
        compiler_params=triton.CompilerParams(),
    )(valid, padded)
    return total.reshape(-1)[:coordinates].reshape(shape)


def _sum(valid, rows, out, *, modulus: int):
    def add(row, total):
        total = total + jnp.where(valid[row], rows[row, :], jnp.uint32(0))
        if modulus == 2**32:
            return total
        return jnp.where(total >= jnp.uint32(modulus), total - jnp.uint32(modulus), total)

    zeros = jnp.zeros(rows.shape[1], jnp.uint32)
    out[...] = jax.lax.fori_loop(0, rows.shape[0], add, zeros)[None]
