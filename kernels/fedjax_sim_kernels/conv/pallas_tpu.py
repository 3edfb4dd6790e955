"""Convolution as a sum of shifted products over rows that stay in fast memory, as Pallas kernels for TPUs.

An image's places are rows, so an offset of the window is a shift of them. A block of whole images is read once, and every offset
takes its rows from it. With strides the places fall into planes, one for each remainder, and shifts are of the rows of a plane.
Places where the window would hang over an image's end are computed along and dropped. Elements of 16 bits lie there as float32,
for a register has two rows of them and shifts neither alone; they are multiplied as what they are.

Written for what Mosaic, Pallas' compiler for TPUs, supports; nobody has run or timed it on one.
"""

from __future__ import annotations

import itertools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from fedjax_sim_kernels.conv.gather import Sliding
from fedjax_sim_kernels.mosaic import LANES
from fedjax_sim_kernels.windows import Ints

CHUNK = 256
"""Rows of a result that are summed up in registers: at 128 features half of them."""

BLOCK = 2048
"""Rows of a block of images at most, all planes together, unless one image has more: 1 MB of float32 at 128 channels."""

MOST_BYTES = 2**22
"""Of a kernel's blocks together. They are there twice, and a v5e's compiler gives a kernel 16 MB."""


class Term(NamedTuple):
    """An offset of the window: the plane that it sees, and how many rows further on."""

    plane: int
    shift: int


class Layout(NamedTuple):
    """How images lie in fast memory.

    Attributes:
      grid: places of a plane along each axis.
      terms: one per offset of the window.
      images: of a block.
      blocks: of all images.
      chunk: rows that are summed up at a time.
      rows: of a plane in a block, a multiple of ``chunk``.
      reach: the furthest shift.
    """

    grid: Ints
    terms: tuple[Term, ...]
    images: int
    blocks: int
    chunk: int
    rows: int
    reach: int


def layout_of(sliding: Sliding) -> Layout:
    grid = tuple(-(-extent // step) for extent, step in zip(sliding.space, sliding.strides, strict=True))
    sizes = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    terms = []
    for offset in itertools.product(*map(range, sliding.window)):
        plane = shift = 0
        for place, apart, step, size in zip(offset, sliding.dilation, sliding.strides, sizes, strict=True):
            ahead, rest = divmod(place * apart, step)
            plane, shift = plane * step + rest, shift + ahead * size
        terms.append(Term(plane, shift))
    each = math.prod(grid)
    images = max(1, min(sliding.batch, BLOCK // (each * math.prod(sliding.strides))))
    chunk = min(CHUNK, _up(images * each, 16))
    rows = _up(images * each, chunk)
    return Layout(
        grid,
        tuple(terms),
        images,
        -(-sliding.batch // images),
        chunk,
        rows,
        max(term.shift for term in terms),
    )


def supports(sliding: Sliding, channels: int, features: int, dtype: Any) -> bool:
    """Blocks of images, of results and of all kernels that fit, in types that are multiplied.

    Rows of more than one register can only be read from every eighth on.
    """
    lying = layout_of(sliding)
    if dtype not in (jnp.float32, jnp.bfloat16) or (lying.reach and max(channels, features) > LANES):
        return False
    row = lambda count: _up(count, LANES)  # noqa: E731
    rows = lying.rows + lying.reach
    images = math.prod(sliding.strides) * rows * row(channels)
    kernels = sliding.offsets * max(_up(channels, 8) * row(features), _up(features, 8) * row(channels))
    return (images + rows * row(features) + kernels) * 4 <= MOST_BYTES


def forward(x: jax.Array, kernel: jax.Array, sliding: Sliding) -> jax.Array:
    """Results ``[clients, batch * positions, features]`` of images and kernels."""
    lying = layout_of(sliding)
    clients, _, features = kernel.shape
    kernels = kernel.reshape(clients, sliding.offsets, -1, features)
    steps = [(0, term.plane, term.shift) for term in lying.terms]
    images = _laid(x, sliding.space, sliding.strides, after=lying.reach, sliding=sliding)
    found = _shifted(images, kernels, steps, 1, lying, sliding)
    return _lifted(found, sliding.positions, (1,) * len(sliding.space), sliding)


def to_images(results: jax.Array, kernel: jax.Array, sliding: Sliding) -> jax.Array:
    """The images' part ``[clients, batch * space, channels]`` of the cotangents of results."""
    lying = layout_of(sliding)
    clients, _, features = kernel.shape
    turned = kernel.reshape(clients, sliding.offsets, -1, features).swapaxes(2, 3)
    steps = [(term.plane, 0, lying.reach - term.shift) for term in lying.terms]
    rows = _laid(results, sliding.positions, (1,) * len(sliding.space), before=lying.reach, sliding=sliding)
    found = _shifted(rows, turned, steps, math.prod(sliding.strides), lying, sliding)
    return _lifted(found, sliding.space, sliding.strides, sliding)


def to_kernels(x: jax.Array, results: jax.Array, sliding: Sliding) -> jax.Array:
    """The kernels' part ``[clients, offsets * channels, features]`` of the cotangents of results."""
    lying = layout_of(sliding)
    clients, channels, features = x.shape[0], x.shape[-1], results.shape[-1]
    images = _laid(x, sliding.space, sliding.strides, after=lying.reach, sliding=sliding)
    rows = _laid(results, sliding.positions, (1,) * len(sliding.space), sliding=sliding)

    def compute(images, rows, out):
        @pl.when(pl.program_id(1) == 0)
        def _():
            out[...] = jnp.zeros_like(out)

        def add(step, _):
            start = pl.multiple_of(step * lying.chunk, 8)
            right = rows[0, pl.ds(start, lying.chunk), :]
            for index, term in enumerate(lying.terms):
                left = images[term.plane, pl.ds(start + term.shift, lying.chunk), :]
                out[index] += _dot(left, right, 0, x.dtype, sliding)

        lax.fori_loop(0, lying.rows // lying.chunk, add, None)

    found = pl.pallas_call(
        compute,
        jax.ShapeDtypeStruct((clients, sliding.offsets, channels, features), jnp.float32),
        grid=(clients, lying.blocks),
        in_specs=[_block(images), _block(rows)],
        out_specs=pl.BlockSpec(
            (None, sliding.offsets, channels, features), lambda client, _: (client, 0, 0, 0)
        ),
        interpret=sliding.interpret is not None,
    )(images, rows)
    return found.reshape(clients, -1, features).astype(x.dtype)


def _shifted(
    source: jax.Array,
    kernels: jax.Array,
    steps: list[tuple[int, int, int]],
    planes: int,
    lying: Layout,
    sliding: Sliding,
) -> jax.Array:
    """Sums of shifted rows times kernels, ``[clients, blocks, planes, rows, features]``.

    Args:
      source: ``[clients, blocks, planes, rows, depth]``.
      kernels: ``[clients, offsets, depth, features]``.
      steps: for every offset: the plane of the result, that of the source, and the shift of its rows.
      planes: of the result.
      lying: how images lie.
      sliding: the window.
    """
    clients, offsets, depth, features = kernels.shape

    def compute(source, kernels, out):
        def chunk(step, _):
            start = pl.multiple_of(step * lying.chunk, 8)
            for plane in range(planes):
                total = jnp.zeros((lying.chunk, features), jnp.float32)
                for index, (place, seen, shift) in enumerate(steps):
                    if place == plane:
                        rows = source[seen, pl.ds(start + shift, lying.chunk), :]
                        total += _dot(rows, kernels[index], 1, kernels.dtype, sliding)
                out[plane, pl.ds(start, lying.chunk), :] = total.astype(out.dtype)

        lax.fori_loop(0, lying.rows // lying.chunk, chunk, None)

    shape = (clients, lying.blocks, planes, lying.rows, features)
    out = jax.ShapeDtypeStruct(shape, kernels.dtype)
    return pl.pallas_call(
        compute,
        out,
        grid=(clients, lying.blocks),
        in_specs=[
            _block(source),
            pl.BlockSpec((None, offsets, depth, features), lambda client, _: (client, 0, 0, 0)),
        ],
        out_specs=_block(out),
        interpret=sliding.interpret is not None,
    )(source, kernels)


_FAST = (None, "default", "fastest", "bfloat16", lax.Precision.DEFAULT, (lax.Precision.DEFAULT,) * 2)


def _dot(left: jax.Array, right: jax.Array, axis: int, dtype: Any, sliding: Sliding) -> jax.Array:
    """The sum over an axis of the left and the first of the right. Mosaic knows no precision between the two ends."""
    fast = dtype != jnp.float32 or sliding.precision in _FAST
    return lax.dot_general(
        left.astype(dtype), right.astype(dtype), (((axis,), (0,)), ((), ())),
        precision=lax.Precision.DEFAULT if fast else lax.Precision.HIGHEST, preferred_element_type=jnp.float32,
    )  # fmt: skip


def _block(array: Any) -> pl.BlockSpec:
    """One client's one block of ``[clients, blocks, planes, rows, columns]``."""
    return pl.BlockSpec((None, None, *array.shape[2:]), lambda client, block: (client, block, 0, 0, 0))


def _laid(
    x: jax.Array, extents: Ints, steps: Ints, *, before: int = 0, after: int = 0, sliding: Sliding
) -> jax.Array:
    """``[clients, batch * extents, columns]`` as ``[clients, blocks, planes, before + rows + after, columns]`` of float32, zeros around."""
    lying = layout_of(sliding)
    clients, _, columns = x.shape
    x = x.reshape(clients, sliding.batch, *extents, columns).astype(jnp.float32)
    images = lying.blocks * lying.images - sliding.batch
    ends = [count * step - extent for count, step, extent in zip(lying.grid, steps, extents, strict=True)]
    x = jnp.pad(x, [(0, 0), (0, images), *((0, end) for end in ends), (0, 0)])
    axes = len(extents)
    split = [part for pair in zip(lying.grid, steps, strict=True) for part in pair]
    x = x.reshape(clients, lying.blocks, lying.images, *split, columns)
    # Clients, blocks, remainders, images, places, columns.
    x = x.transpose(0, 1, *range(4, 4 + 2 * axes, 2), 2, *range(3, 3 + 2 * axes, 2), 3 + 2 * axes)
    x = x.reshape(clients, lying.blocks, math.prod(steps), -1, columns)
    short = lying.rows - x.shape[3]
    return jnp.pad(x, [(0, 0), (0, 0), (0, 0), (before, short + after), (0, 0)])


def _lifted(planes: jax.Array, extents: Ints, steps: Ints, sliding: Sliding) -> jax.Array:
    """The inverse of ``_laid``."""
    lying = layout_of(sliding)
    clients, blocks, _, _, columns = planes.shape
    axes = len(extents)
    x = planes[:, :, :, : lying.images * math.prod(lying.grid)]
    x = x.reshape(clients, blocks, *steps, lying.images, *lying.grid, columns)
    places = [
        axis for pair in zip(range(3 + axes, 3 + 2 * axes), range(2, 2 + axes), strict=True) for axis in pair
    ]
    x = x.transpose(0, 1, 2 + axes, *places, 3 + 2 * axes)
    x = x.reshape(
        clients, blocks * lying.images, *(a * b for a, b in zip(lying.grid, steps, strict=True)), columns
    )
    kept = (slice(None), slice(sliding.batch), *(slice(extent) for extent in extents))
    return x[kept].reshape(clients, -1, columns)


def _up(count: int, multiple: int) -> int:
    return -(-count // multiple) * multiple
