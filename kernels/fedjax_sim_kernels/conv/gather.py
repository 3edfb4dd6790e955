"""Products of rows that are gathered where they stand, as Pallas kernels for GPUs (Triton).

Which rows of an image a row of a result sees follows from strides and dilations, so any number of spatial axes is one
program. What was measured is in ``docs/decisions/0025-convolutions-on-a-gpu.md``.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fedjax_sim_kernels.windows import Ints


class Tile(NamedTuple):
    """What one program of a grid computes of results and of the images' gradient; all but ``stages`` powers of two.

    Attributes:
      rows: of the result.
      columns: most features of it.
      depth: most terms of a product that are added up at a time; 16 at least, for tensor cores.
      warps: that share a program.
      stages: of the pipeline of loads.
    """

    rows: int = 128
    columns: int = 64
    depth: int = 32
    warps: int = 4
    stages: int = 3


class Sums(NamedTuple):
    """What one program of a grid computes of the kernels' gradient, a sum over rows; all but ``stages`` powers of two.

    Attributes:
      height: most channels of the result.
      width: most features of it.
      added: rows that are added up at a time; 16 at least, for tensor cores.
      reach: rows that one program adds up; what several found is added up afterwards.
      warps: as for ``Tile``; likewise ``stages``.
    """

    height: int = 32
    width: int = 64
    added: int = 16
    reach: int = 1024
    warps: int = 2
    stages: int = 4


TILE, SUMS = Tile(), Sums()
"""Where nobody says: the fastest on an H200 for clients that train CNNs of 3 x 3 windows in TF32."""


Source = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Of rows and offsets of the window: the rows that are multiplied there, and which of them there are."""


Platform = Literal["cuda", "tpu"]


class Sliding(NamedTuple):
    """A window over padded images; hashable.

    Attributes:
      batch: images.
      space: extents of an image.
      positions: of the window along each axis.
      window: its extents.
      strides: steps of it.
      dilation: how far apart its elements are.
      precision: of the products.
      tile: what a program computes of results and of the images' gradient, on a GPU.
      sums: what a program computes of the kernels' gradient, on a GPU.
      interpret: whose kernels run where there is no accelerator; ``None`` for XLA's convolution there.
    """

    batch: int
    space: Ints
    positions: Ints
    window: Ints
    strides: Ints
    dilation: Ints
    precision: Any
    tile: Tile
    sums: Sums
    interpret: Platform | None

    @property
    def offsets(self) -> int:
        return math.prod(self.window)

    def dot(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.dot(left, right, precision=self.precision, preferred_element_type=jnp.float32)

    def call(
        self, compute: Callable, shape: Ints, dtype: Any, grid: Ints, of: Tile | Sums
    ) -> Callable[..., Any]:
        return pl.pallas_call(
            compute,
            jax.ShapeDtypeStruct(shape, dtype),
            grid=grid,
            interpret=self.interpret is not None,
            compiler_params=triton.CompilerParams(num_warps=of.warps, num_stages=of.stages),
        )

    def seen(self, rows: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The row of the images that each position sees at an offset of the window, and whether there is one."""
        image, places = _split(rows, self.positions)
        at = image * math.prod(self.space)
        moved = jnp.zeros_like(offset)
        # What follows from the row and what follows from the offset are added up apart: the first stays the same.
        for place, step, one, apart, size in zip(
            places,
            self.strides,
            _split(offset, self.window)[1],
            self.dilation,
            _sizes(self.space),
            strict=True,
        ):
            at, moved = at + place * (step * size), moved + one * (apart * size)
        return at + moved, image < self.batch

    def seeing(self, rows: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The position that sees each row of the images at an offset of the window, and whether there is one."""
        image, places = _split(rows, self.space)
        at, valid = image * math.prod(self.positions), image < self.batch
        for place, step, one, apart, count, size in zip(
            places, self.strides, _split(offset, self.window)[1], self.dilation, self.positions,
            _sizes(self.positions), strict=True,
        ):  # fmt: skip
            ahead = place - one * apart
            valid = valid & (ahead >= 0) & (ahead < count * step)
            if step > 1:
                # A negative one is divided like a positive one: it is not valid in any case.
                valid, ahead = valid & (lax.rem(ahead, step) == 0), lax.div(jnp.maximum(ahead, 0), step)
            at = at + ahead * size
        return jnp.where(valid, at, 0), valid


def _split(rows: jax.Array, extents: Ints) -> tuple[jax.Array, list[jax.Array]]:
    """Row-major numbers as places along each axis, and what is left before the first."""
    places = []
    for extent in reversed(extents):
        places.append(lax.rem(rows, jnp.int32(extent)))
        rows = lax.div(rows, jnp.int32(extent))
    return rows, places[::-1]


def _sizes(extents: Ints) -> list[int]:
    """Rows between neighbours along each axis."""
    return [math.prod(extents[axis + 1 :]) for axis in range(len(extents))]


def _fitting(extent: int, most: int) -> int:
    """A block for so many: no larger than they need, and large enough for tensor cores."""
    return max(16, min(most, pl.next_power_of_2(extent)))


# --- the products --------------------------------------------------------------------------------------------


def gathered(
    x: jax.Array,
    kernel: jax.Array,
    rows: int,
    source: Source,
    sliding: Sliding,
    bias: jax.Array | None = None,
) -> jax.Array:
    """Sums over offsets of ``x[source(row, offset)] @ kernel[:, offset]^T``, ``[clients, rows, features]``.

    Args:
      x: ``[clients, *, depth]``.
      kernel: ``[clients, features, offsets * depth]``: tensor cores want the terms of float32 side by side in both operands.
      rows: of the result.
      source: which row of ``x`` a row of the result is made of.
      sliding: the window.
      bias: ``[clients, features]``, which is added; what is negative then becomes zero.
    """
    clients, features, terms = kernel.shape
    depth, tile = x.shape[-1], sliding.tile
    width, block = _fitting(features, tile.columns), _fitting(terms, tile.depth)
    # A block of terms is of one offset where it can be: the compiler then sees that they lie side by side.
    one_offset = depth % block == 0

    def compute(x, kernel, *others):
        *added, out = others
        client = pl.program_id(2)
        own = pl.program_id(0) * tile.rows + jnp.arange(tile.rows, dtype=jnp.int32)
        columns = pl.program_id(1) * width + jnp.arange(width, dtype=jnp.int32)
        here = [] if features % width == 0 else [columns < features]

        def add(step, total):
            term = step * block + jnp.arange(block, dtype=jnp.int32)
            if one_offset:
                blocks = jnp.int32(depth // block)
                offset = lax.div(step, blocks)
                index = lax.rem(step, blocks) * block + jnp.arange(block, dtype=jnp.int32)
            else:
                offset, index = lax.div(term, jnp.int32(depth))[None, :], lax.rem(term, jnp.int32(depth))
            at, valid = source(own[:, None], offset)
            known = [] if terms % block == 0 else [(term < terms)[None, :]]
            left = _load(x, (client, at * depth + index[None, :]), valid, *known)
            right = _load(
                kernel, (client, columns[:, None], term[None, :]), *known, *(mask[:, None] for mask in here)
            )
            return total + sliding.dot(left, right.T)

        start = jnp.zeros((tile.rows, width), jnp.float32)
        for bias in added:
            each = _load(bias, (client, columns[None, :]), *(mask[None, :] for mask in here))
            start += each.astype(jnp.float32)
        total = lax.fori_loop(0, -(-terms // block), add, start)
        if added:
            total = jnp.where(total < 0, 0.0, total)  # Triton's maximum would lose what is not a number.
        masks = [(own < rows)[:, None], *(mask[None, :] for mask in here)]
        _store(out, (client, own[:, None], columns[None, :]), total, *masks)

    # Neighbours, which run at the same time, are of one client and read the same rows.
    grid = (-(-rows // tile.rows), -(-features // width), clients)
    operands = [x.reshape(clients, -1), kernel, *([] if bias is None else [bias])]
    return sliding.call(compute, (clients, rows, features), x.dtype, grid, tile)(*operands)


def correlated(
    x: jax.Array, results: jax.Array, sliding: Sliding, active: jax.Array | None = None
) -> jax.Array:
    """Sums over positions of outer products of what they see and their results, ``[clients, offsets * channels, features]``.

    Args:
      x: ``[clients, *, channels]``.
      results: ``[clients, batch * positions, features]``.
      sliding: the window.
      active: like ``results``, which count only where it is above zero. One more row at the end is then their plain sum;
        with it the terms must fit one block.
    """
    clients, rows, features = results.shape
    channels, sums = x.shape[-1], sliding.sums
    terms, width = sliding.offsets * channels, _fitting(features, sums.width)
    kept = terms if active is None else terms + 1
    height = _fitting(channels, sums.height)
    # A program's channels are of one offset where they can be: the compiler then sees that they lie side by side.
    one_offset = channels % height == 0 and active is None
    if not one_offset:
        height = _fitting(kept, sums.height)
    if active is not None and kept > height:
        raise ValueError(f"{kept} terms with the bias's do not fit one block of {height}.")
    parts, across = -(-rows // sums.reach), -(-features // width)

    def compute(x, results, *others):
        *actives, out = others
        client, part, place = pl.program_id(2), pl.program_id(1), pl.program_id(0)
        columns = lax.rem(place, jnp.int32(across)) * width + jnp.arange(width, dtype=jnp.int32)
        first = lax.div(place, jnp.int32(across)) * height
        term = first + jnp.arange(height, dtype=jnp.int32)
        if one_offset:
            offset = lax.div(first, jnp.int32(channels))
            channel = term - offset * channels
        else:
            offset, channel = lax.div(term, jnp.int32(channels))[:, None], lax.rem(term, jnp.int32(channels))
        known = [] if terms % height == 0 else [(term < terms)[:, None]]
        here = [] if features % width == 0 else [(columns < features)[None, :]]

        def add(step, total):
            own = part * sums.reach + step * sums.added + jnp.arange(sums.added, dtype=jnp.int32)
            at, _ = sliding.seen(own[None, :], offset)
            # Read as the product wants it: turned afterwards, single numbers would be moved and not four at a time.
            left = _load(x, (client, at * channels + channel[:, None]), (own < rows)[None, :], *known)
            where, there = (client, own[:, None], columns[None, :]), [(own < rows)[:, None], *here]
            right = _load(results, where, *there)
            for active in actives:
                above = _load(active, where, *there).astype(jnp.float32) > 0
                right = jnp.where(above, right, jnp.zeros_like(right))
                left = jnp.where((term == terms)[:, None], jnp.ones_like(left), left)
            return total + sliding.dot(left, right)

        start = jnp.zeros((height, width), jnp.float32)
        total = lax.fori_loop(0, -(-min(sums.reach, rows) // sums.added), add, start)
        stored = [(term < kept)[:, None]] if actives else known
        _store(out, (client, part, term[:, None], columns[None, :]), total, *stored, *here)

    grid = (-(-kept // height) * across, parts, clients)
    wide = jnp.float32 if parts > 1 else x.dtype
    found = sliding.call(compute, (clients, parts, kept, features), wide, grid, sums)
    operands = [x.reshape(clients, -1), results, *([] if active is None else [active])]
    return jnp.sum(found(*operands), axis=1).astype(x.dtype)


def _load(ref, at: tuple, *masks: jax.Array) -> jax.Array:
    if not masks:
        return triton.load(ref.at[at])
    return triton.load(ref.at[at], mask=_all(masks, at), other=0)


def _store(ref, at: tuple, values: jax.Array, *masks: jax.Array) -> None:
    mask = _all(masks, at) if masks else None
    triton.store(ref.at[at], values.astype(ref.dtype), mask=mask)


def _all(masks: tuple[jax.Array, ...], at: tuple) -> jax.Array:
    shape = jnp.broadcast_shapes(*(jnp.shape(index) for index in at))
    return functools.reduce(jnp.logical_and, (jnp.broadcast_to(mask, shape) for mask in masks))
