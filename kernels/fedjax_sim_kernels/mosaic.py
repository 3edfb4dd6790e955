"""Pallas kernels for TPUs over blocks of coordinates: what the sums over a cohort share.

They are written for what Mosaic, Pallas' compiler for TPUs, supports; in the tests they run in interpret mode and lower for a
TPU. Nobody has run or timed them on one, so nothing dispatches to them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

LANES = 128
"""Columns of a vector register: blocks are as many of them."""

_WORDS = 2**18
"""Elements of a block at most, 1 MB, unless ``LANES`` columns have more: those of 20,000 rows are more than a v5e holds."""


def over_blocks(
    kernel: Callable[..., None],
    rows: Sequence[jax.Array],
    *,
    scalars: Sequence[jax.Array] = (),
    columns: Sequence[jax.Array] = (),
    out: tuple[int, Any],
    narrow: bool = False,
    interpret: bool,
) -> jax.Array:
    """Calls ``kernel(*scalars, *columns, *rows, result)`` for every block of coordinates.

    Args:
      kernel: of references.
      rows: ``[rows, coordinates]``, all of one length; they come in blocks, zeros beyond their end.
      scalars: of one axis, whole and in the memory for scalars, where the kernel finds them as ``[1, ...]``: under ``vmap``
        an axis in front of two may be cut into its elements, but not one in front of one.
      columns: ``[rows, 1]``, whole.
      out: rows and dtype of the result.
      narrow: a block's result has ``LANES`` columns, whatever the block has.
      interpret: without a TPU.

    Returns:
      ``[out rows, coordinates]``, or with ``narrow`` ``[out rows, blocks * LANES]``.
    """
    coordinates = rows[0].shape[1]
    tallest = max(out[0], *(one.shape[0] for one in rows))
    block = LANES * max(1, min(_WORDS // (tallest * LANES), -(-coordinates // LANES)))
    blocks = max(1, -(-coordinates // block))
    padded = [jnp.pad(one, ((0, 0), (0, blocks * block - coordinates))) for one in rows]
    width = LANES if narrow else block
    result = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((out[0], blocks * width), out[1]),
        grid=(blocks,),
        in_specs=[
            *(pl.BlockSpec(memory_space=pltpu.SMEM) for _ in scalars),
            *(pl.BlockSpec(one.shape, lambda _: (0, 0)) for one in columns),
            *(pl.BlockSpec((one.shape[0], block), lambda at: (0, at)) for one in rows),
        ],
        out_specs=pl.BlockSpec((out[0], width), lambda at: (0, at)),
        interpret=interpret,
    )(*(one[None] for one in scalars), *columns, *padded)
    return result if narrow else result[:, :coordinates]
