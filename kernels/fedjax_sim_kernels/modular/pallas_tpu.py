"""The masked modular sum as a Pallas kernel for TPUs; written for Mosaic and never measured (``fedjax_sim_kernels/mosaic.py``)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from fedjax_sim_kernels.modular.reference import check_modulus
from fedjax_sim_kernels.mosaic import over_blocks


def masked_sum(rows: jax.Array, valid: jax.Array, modulus: int, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.masked_sum``; ``interpret`` runs it where there is no TPU."""
    check_modulus(modulus)
    flat = rows.reshape(rows.shape[0], -1)
    total = over_blocks(
        functools.partial(_sum, modulus=modulus),
        [flat],
        scalars=[valid.astype(jnp.int32)],
        out=(1, jnp.uint32),
        interpret=interpret,
    )
    return total.reshape(rows.shape[1:])


def _sum(valid, rows, out, *, modulus: int):
    def add(row, total):
        total = total + jnp.where(valid[0, row] != 0, rows[pl.ds(row, 1), :], jnp.uint32(0))
        if modulus == 2**32:
            return total
        return jnp.where(total >= jnp.uint32(modulus), total - jnp.uint32(modulus), total)

    out[...] = jax.lax.fori_loop(0, rows.shape[0], add, jnp.zeros(out.shape, jnp.uint32))
