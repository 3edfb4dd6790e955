"""Order statistics by counting, as a Pallas kernel for GPUs over blocks of coordinates.

The rank of an element is how many of its coordinate stand before it: comparing each with each moves no data, which suits
an accelerator that has arithmetic to spare. On an H200, jax 0.11.2, the median of 10 rows of 1,206,590 was 8.5 times as fast
as XLA's sort, of 50 rows of 199,210 it took 9.9 times as long: ``dispatch`` takes it for up to 16 rows on NVIDIA GPUs.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fedjax_sim_kernels.order.reference import middle

BLOCK = 256


def median(rows: jax.Array, valid: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.median``; ``interpret`` runs it where there is no accelerator."""
    return _over_blocks(_median, rows, valid, (), interpret)


def trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array, *, interpret: bool = False) -> jax.Array:
    """Equals ``reference.trimmed_mean``; ``interpret`` runs it where there is no accelerator."""
    return _over_blocks(_trimmed_mean, rows, valid, (jnp.asarray(trim, jnp.int32).reshape(1),), interpret)


def _ranks(rows, valid) -> jax.Array:
    """Place of each element among the valid ones of its coordinate; of equal elements the earlier row's is first."""
    everybody = rows[...]
    index = jax.lax.broadcasted_iota(jnp.int32, everybody.shape, 0)

    def add(row, found):
        one = rows[row, :][None]
        before = (one < everybody) | ((one == everybody) & (row < index))
        return found + (before & valid[row])

    return jax.lax.fori_loop(0, everybody.shape[0], add, jnp.zeros(everybody.shape, jnp.int32))


def _median(rows, valid) -> jax.Array:
    rank = _ranks(rows, valid)
    rows, valid = rows[...], valid[...]
    count = jnp.sum(valid.astype(jnp.int32))
    # A selection, for infinity times zero is NaN.
    low, high = (
        jnp.sum(jnp.where(valid[:, None] & (rank == place), rows, 0), axis=0)
        for place in ((count - 1) // 2, count // 2)
    )
    return middle(low, high, count)


def _trimmed_mean(rows, valid, trim) -> jax.Array:
    rank = _ranks(rows, valid)
    rows, valid, trim = rows[...], valid[...], trim[0]
    count = jnp.sum(valid.astype(jnp.int32))
    kept = valid[:, None] & (rank >= trim) & (rank < count - trim)
    total = jnp.sum(jnp.where(kept, rows, 0), axis=0, dtype=jnp.promote_types(rows.dtype, jnp.float32))
    return total / jnp.maximum(count - 2 * trim, 1)


def _over_blocks(
    function: Callable[..., jax.Array],
    rows: jax.Array,
    valid: jax.Array,
    given: tuple[jax.Array, ...],
    interpret: bool,
) -> jax.Array:
    shape, flat = rows.shape[1:], rows.reshape(rows.shape[0], -1)
    coordinates = flat.shape[1]
    blocks = max(1, -(-coordinates // BLOCK))
    # Triton has arrays whose sizes are powers of two: rows that are not there are not valid.
    count = pl.next_power_of_2(flat.shape[0])
    missing = count - flat.shape[0]
    valid = jnp.pad(valid, (0, missing))
    flat = jnp.where(jnp.isnan(flat), jnp.inf, flat)
    flat = jnp.pad(flat, ((0, missing), (0, blocks * BLOCK - coordinates)))

    def kernel(*references):
        *given, out = references
        out[...] = function(*given)[None].astype(out.dtype)

    total = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((blocks, BLOCK), rows.dtype),
        grid=(blocks,),
        in_specs=[
            pl.BlockSpec((count, BLOCK), lambda block: (0, block)),
            *(pl.BlockSpec(value.shape, lambda block: (0,)) for value in (valid, *given)),
        ],
        out_specs=pl.BlockSpec((1, BLOCK), lambda block: (block, 0)),
        interpret=interpret,
        compiler_params=triton.CompilerParams(),
    )(flat, valid, *given)
    return total.reshape(-1)[:coordinates].reshape(shape)
