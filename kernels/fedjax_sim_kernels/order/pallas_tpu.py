"""Order statistics by counting, as a Pallas kernel for TPUs; written for Mosaic and never measured (``fedjax_sim_kernels/mosaic.py``)."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from fedjax_sim_kernels.mosaic import over_blocks
from fedjax_sim_kernels.order.reference import middle


def median(rows: jax.Array, valid: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.median``; ``interpret`` runs it where there is no TPU."""
    return _counted(_median, rows, valid, 0, interpret)


def trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.trimmed_mean``; ``interpret`` runs it where there is no TPU."""
    return _counted(_trimmed_mean, rows, valid, trim, interpret)


def _counted(function: Callable, rows: jax.Array, valid: jax.Array, trim, interpret: bool) -> jax.Array:
    # Of 16 bits two rows lie in one of a register, and cannot be read alone.
    flat = rows.reshape(rows.shape[0], -1).astype(jnp.float32)
    there = valid.astype(jnp.int32)
    count = jnp.sum(there)
    total = over_blocks(
        function,
        [jnp.where(jnp.isnan(flat), jnp.inf, flat)],
        scalars=[there, jnp.stack([count, jnp.asarray(trim, jnp.int32)])],
        columns=[there[:, None]],
        out=(1, jnp.float32),
        interpret=interpret,
    )
    return total.reshape(rows.shape[1:]).astype(rows.dtype)


def _ranks(valid, rows) -> jax.Array:
    """Place of each element among the valid ones of its coordinate; of equal elements the earlier row's is first."""
    everybody = rows[...]
    index = jax.lax.broadcasted_iota(jnp.int32, everybody.shape, 0)

    def add(row, found):
        one = rows[pl.ds(row, 1), :]
        before = (one < everybody) | ((one == everybody) & (row < index))
        return found + jnp.where(before, valid[0, row], 0)

    return jax.lax.fori_loop(0, everybody.shape[0], add, jnp.zeros(everybody.shape, jnp.int32))


def _median(valid, settings, there, rows, out):
    rank, count = _ranks(valid, rows), settings[0, 0]
    rank = jnp.where(there[...] != 0, rank, -1)
    # A selection, for infinity times zero is NaN.
    low, high = (
        jnp.sum(jnp.where(rank == place, rows[...], 0), axis=0, keepdims=True)
        for place in ((count - 1) // 2, count // 2)
    )
    out[...] = middle(low, high, count)


def _trimmed_mean(valid, settings, there, rows, out):
    rank, count, trim = _ranks(valid, rows), settings[0, 0], settings[0, 1]
    kept = (there[...] != 0) & (rank >= trim) & (rank < count - trim)
    total = jnp.sum(jnp.where(kept, rows[...], 0), axis=0, keepdims=True)
    out[...] = total / jnp.maximum(count - 2 * trim, 1).astype(jnp.float32)
