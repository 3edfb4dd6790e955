"""Quantising and packing behind a transposition, as a Pallas kernel for TPUs; written for Mosaic and never measured (``fedjax_sim_kernels/mosaic.py``)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fedjax_sim_kernels.mosaic import over_blocks
from fedjax_sim_kernels.packing.reference import Packed, levels, quantise


def quantise_and_pack(x: jax.Array, uniform: jax.Array, bits: int, *, interpret: bool = False) -> Packed:
    """Equals ``reference.quantise_and_pack``; ``interpret`` runs it where there is no TPU."""
    low, step = levels(x, bits)
    each = 32 // bits

    def lay(values: jax.Array, fill: jax.Array | int) -> jax.Array:
        """A word's elements below one another, so that words fill a register."""
        return jnp.pad(values, (0, -len(values) % each), constant_values=fill).reshape(-1, each).T

    words = over_blocks(
        functools.partial(_pack, bits=bits),
        [lay(x, low), lay(uniform, 0)],  # what is padded has level 0
        scalars=[jnp.stack([low, step])],
        out=(1, jnp.uint32),
        interpret=interpret,
    )
    return Packed(words[0], low, step)


def _pack(settings, x, uniform, out, *, bits: int):
    values = quantise(x[...], uniform[...], settings[0, 0], settings[0, 1], bits)
    word = values[:1]
    for place in range(1, values.shape[0]):
        word = word | (values[place : place + 1] << jnp.uint32(place * bits))
    out[...] = word
