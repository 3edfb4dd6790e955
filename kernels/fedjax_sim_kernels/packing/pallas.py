"""Quantising and packing in one pass, as a Pallas kernel for GPUs.

On an H200, jax 0.11.2, it took 1.15 and 1.21 times as long as XLA's own (1,206,590 elements, 8 bits and 1), so nothing
dispatches to it.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fedjax_sim_kernels.packing.reference import Packed, levels, quantise

WORDS = 256
"""Words of a block."""


def quantise_and_pack(x: jax.Array, uniform: jax.Array, bits: int, *, interpret: bool = False) -> Packed:
    """Equals ``reference.quantise_and_pack``; ``interpret`` runs it where there is no accelerator."""
    low, step = levels(x, bits)
    each = 32 // bits
    words = -(-x.shape[0] // each)
    blocks = max(1, -(-words // WORDS))

    def lay(values: jax.Array, fill: jax.Array | int) -> jax.Array:
        missing = blocks * WORDS * each - values.shape[0]
        return jnp.pad(values, (0, missing), constant_values=fill).reshape(blocks * WORDS, each)

    tile = pl.BlockSpec((WORDS, each), lambda block: (block, 0))
    scalar = pl.BlockSpec((1,), lambda block: (0,))
    packed = pl.pallas_call(
        functools.partial(_pack, bits=bits),
        out_shape=jax.ShapeDtypeStruct((blocks * WORDS,), jnp.uint32),
        grid=(blocks,),
        in_specs=[scalar, scalar, tile, tile],
        out_specs=pl.BlockSpec((WORDS,), lambda block: (block,)),
        interpret=interpret,
        compiler_params=triton.CompilerParams(),
    )(low[None], step[None], lay(x, low), lay(uniform, 0))  # what is padded has level 0
    return Packed(packed[:words], low, step)


def _pack(low, step, x, uniform, out, *, bits: int):
    values = quantise(x[...], uniform[...], low[0], step[0], bits)
    shifts = jax.lax.broadcasted_iota(jnp.uint32, values.shape, 1) * jnp.uint32(bits)
    out[...] = jnp.sum(values << shifts, axis=1, dtype=jnp.uint32)
