"""Convolution as one product over rows that are gathered where they stand (implicit GEMM), as Pallas kernels for GPUs.

No buffer of patches and no group per client: ``vmap`` over kernels is one more axis of the grid. The forward product and
the two gradients are kernels of their own; which rows of an image a row of the output sees follows from strides and
dilations, so any number of spatial axes is one program. Never measured on a device: nothing dispatches to it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from fedjax_sim_kernels.conv.spec import ConvSpec, plain, restored, window_of
from fedjax_sim_kernels.windows import Ints, window_counts


class Tile(NamedTuple):
    """What one program of the grid computes; all powers of two, and at least 16, for tensor cores.

    Attributes:
      rows: of the result.
      columns: most features of the result; of the kernel's gradient, most channels and most features.
      depth: most terms of a product that are added up at a time.
      added: rows that are added up at a time in the kernel's gradient.
      warps: that share a program.
      stages: of the pipeline of loads.
    """

    rows: int = 128
    columns: int = 64
    depth: int = 32
    added: int = 64
    warps: int = 4
    stages: int = 3

    @property
    def compiler(self) -> triton.CompilerParams:
        return triton.CompilerParams(num_warps=self.warps, num_stages=self.stages)


TILE = Tile()
"""Where nobody says."""


def _fitting(extent: int, most: int) -> int:
    """A block for so many channels: no larger than they need."""
    return max(16, min(most, pl.next_power_of_2(extent)))


def supports(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> bool:
    """Convolutions without groups, in types of at most 32 bits whose results need no wider one, with a result to compute."""
    image, kernel = jax.eval_shape(lambda x, k: plain(x, k, spec), lhs, rhs)
    positions = window_counts(image.shape[1:-1], kernel.shape[:-2], spec.strides, spec.rhs_dilation)
    return (
        spec.feature_group_count == spec.batch_group_count == 1
        and lhs.dtype == rhs.dtype
        and lhs.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
        and (spec.preferred_element_type is None or spec.preferred_element_type == lhs.dtype)
        and 0 not in (*positions, *lhs.shape, *rhs.shape)
    )


def conv(
    lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, *, tile: Tile = TILE, interpret: bool = False
) -> jax.Array:
    """Equals ``reference.conv`` for what it supports; ``interpret`` runs it where there is no accelerator.

    Reverse mode only: a kernel has no forward derivative.
    """
    x, kernel = plain(lhs, rhs, spec)
    *window, _, _ = kernel.shape
    space = x.shape[1:-1]
    sliding = Sliding(
        x.shape[0], space, window_counts(space, tuple(window), spec.strides, spec.rhs_dilation),
        window_of(rhs, spec), tuple(spec.strides), tuple(spec.rhs_dilation), spec.precision, tile, interpret,
    )  # fmt: skip
    rows: Any = _product(x.reshape(-1, x.shape[-1]), kernel.reshape(-1, *kernel.shape[-2:]), sliding)
    return restored(rows.reshape(x.shape[0], *sliding.positions, kernel.shape[-1]), spec)


Source = Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]
"""Of rows and an offset of the window: the rows that are multiplied there, and which of them there are."""


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
      tile: what a program of the grid computes.
      interpret: whether there is no accelerator.
    """

    batch: int
    space: Ints
    positions: Ints
    window: Ints
    strides: Ints
    dilation: Ints
    precision: Any
    tile: Tile
    interpret: bool

    def dot(self, left: jax.Array, right: jax.Array) -> jax.Array:
        return jnp.dot(left, right, precision=self.precision, preferred_element_type=jnp.float32)

    def seen(self, rows: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The row of the images that each position sees at an offset of the window, and whether there is one."""
        image, places = _split(rows, self.positions)
        offsets = _split(offset, self.window)[1]
        moved = [
            place * step + at * apart
            for place, step, at, apart in zip(places, self.strides, offsets, self.dilation, strict=True)
        ]
        return _joined(image, moved, self.space), image < self.batch

    def seeing(self, rows: jax.Array, offset: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The position that sees each row of the images at an offset of the window, and whether there is one."""
        image, places = _split(rows, self.space)
        offsets = _split(offset, self.window)[1]
        valid, moved = image < self.batch, []
        for place, step, at, apart, count in zip(
            places, self.strides, offsets, self.dilation, self.positions, strict=True
        ):
            ahead = place - at * apart
            # A negative one is divided like a positive one: it is not valid in any case.
            valid &= (ahead >= 0) & (lax.rem(ahead, step) == 0) & (ahead < count * step)
            moved.append(lax.div(jnp.maximum(ahead, 0), step))
        return jnp.where(valid, _joined(image, moved, self.positions), 0), valid


def _split(rows: jax.Array, extents: Ints) -> tuple[jax.Array, list[jax.Array]]:
    """Row-major numbers as places along each axis, and what is left before the first."""
    places = []
    for extent in reversed(extents):
        places.append(lax.rem(rows, extent))
        rows = lax.div(rows, extent)
    return rows, places[::-1]


def _joined(rows: jax.Array, places: Sequence[jax.Array], extents: Ints) -> jax.Array:
    for place, extent in zip(places, extents, strict=True):
        rows = rows * extent + place
    return rows


# --- the product and its derivatives -------------------------------------------------------------------------


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, kernel: jax.Array, sliding: Sliding) -> jax.Array:
    """``[batch * positions, features]`` from ``x: [batch * space, channels]``, ``kernel: [offsets, channels, features]``."""
    return _gathered(x, kernel, sliding.batch * math.prod(sliding.positions), sliding.seen, sliding)


def _forth(x, kernel, sliding):
    return _product(x, kernel, sliding), (x, kernel)


def _back(sliding, known, cotangents):
    x, kernel = known
    to_x = _gathered(cotangents, kernel.swapaxes(1, 2), x.shape[0], sliding.seeing, sliding)
    return to_x, _correlated(x, cotangents, kernel.shape, sliding)


_product.defvjp(_forth, _back)


def _gathered(x: jax.Array, kernel: jax.Array, rows: int, source: Source, sliding: Sliding) -> jax.Array:
    """Sums over offsets of ``x[source(row, offset)] @ kernel[offset]``, ``[rows, features]``."""
    offsets, depth, features = kernel.shape
    tile = sliding.tile
    width, terms_at_once = _fitting(features, tile.columns), _fitting(depth, tile.depth)

    def compute(x, kernel, out):
        own = pl.program_id(0) * tile.rows + jnp.arange(tile.rows)
        columns = pl.program_id(1) * width + jnp.arange(width)
        blocks = -(-depth // terms_at_once)

        def add(step, total):
            offset, block = (step, 0) if blocks == 1 else (lax.div(step, blocks), lax.rem(step, blocks))
            at, valid = source(own, offset)
            terms = block * terms_at_once + jnp.arange(terms_at_once)
            left = _load(x, (at[:, None], terms[None, :]), valid[:, None] & (terms < depth)[None, :])
            mask = (terms < depth)[:, None] & (columns < features)[None, :]
            right = _load(kernel, (offset, terms[:, None], columns[None, :]), mask)
            return total + sliding.dot(left, right)

        total = lax.fori_loop(0, offsets * blocks, add, jnp.zeros((tile.rows, width), jnp.float32))
        mask = (own < rows)[:, None] & (columns < features)[None, :]
        triton.store(out.at[own[:, None], columns[None, :]], total.astype(out.dtype), mask=mask)

    grid = (-(-rows // tile.rows), -(-features // width))
    shape = jax.ShapeDtypeStruct((rows, features), x.dtype)
    return pl.pallas_call(
        compute, shape, grid=grid, interpret=sliding.interpret, compiler_params=tile.compiler
    )(x, kernel)


def _correlated(x: jax.Array, cotangents: jax.Array, shape: Ints, sliding: Sliding) -> jax.Array:
    """The kernel's cotangent, ``[offsets, channels, features]``: sums over positions of outer products."""
    offsets, channels, features = shape
    rows = cotangents.shape[0]
    tile = sliding.tile
    height, width = _fitting(channels, tile.columns), _fitting(features, tile.columns)

    def compute(x, cotangents, out):
        offset = pl.program_id(0)
        own = pl.program_id(1) * height + jnp.arange(height)
        columns = pl.program_id(2) * width + jnp.arange(width)

        def add(block, total):
            positions = block * tile.added + jnp.arange(tile.added)
            at, valid = sliding.seen(positions, offset)
            left = _load(x, (at[:, None], own[None, :]), valid[:, None] & (own < channels)[None, :])
            mask = (positions < rows)[:, None] & (columns < features)[None, :]
            right = _load(cotangents, (positions[:, None], columns[None, :]), mask)
            return total + sliding.dot(left.T, right)

        start = jnp.zeros((height, width), jnp.float32)
        total = lax.fori_loop(0, -(-rows // tile.added), add, start)
        mask = (own < channels)[:, None] & (columns < features)[None, :]
        triton.store(out.at[offset, own[:, None], columns[None, :]], total.astype(out.dtype), mask=mask)

    grid = (offsets, -(-channels // height), -(-features // width))
    result = jax.ShapeDtypeStruct(shape, x.dtype)
    return pl.pallas_call(
        compute, result, grid=grid, interpret=sliding.interpret, compiler_params=tile.compiler
    )(x, cotangents)


def _load(ref, at: tuple, mask: jax.Array) -> jax.Array:
    return triton.load(ref.at[at], mask=mask, other=0)
