"""Convolution with a 3 x 3 window as sixteen products of transformed tiles, with less than half of the multiplications.

Winograd's minimal filtering F(2 x 2, 3 x 3): Lavin and Gray, "Fast algorithms for convolutional neural networks", 2016,
section 4.1. The image is cut into overlapping tiles of 4 x 4, each of which gives 2 x 2 positions of the output:

    out = A^T [(G k G^T) * (B^T d B)] A,

a product over channels for each of the sixteen elements of a tile. They are products of their own, not one with a batch of
sixteen: for that the compiler would copy all elements behind one another, and so their cotangents. Its matrices hold 0, 1, -1 and 1/2, so that rounding
stays that of a sum of nine products; an infinite element makes the whole 2 x 2 of its tiles NaN. The derivatives are left to JAX; what is split here is joined there, and the other way
round, which is why everything is written with ``lax.split`` and ``stack`` and not with indices. The barriers keep the
compiler from evaluating a transformation once for each product that reads it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.conv.spec import ConvSpec, plain, restored, window_of
from fedjax_sim_kernels.products import product


def supports(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> bool:
    """Convolutions of 3 x 3 that step by one, without dilation or groups, in types whose sums need no wider one."""
    ones = (1, 1)
    return (
        window_of(rhs, spec) == (3, 3)
        and (tuple(spec.strides), tuple(spec.lhs_dilation), tuple(spec.rhs_dilation)) == (ones, ones, ones)
        and spec.feature_group_count == spec.batch_group_count == 1
        and lhs.dtype == rhs.dtype
        and lhs.dtype in (jnp.float32, jnp.float64)
    )


def conv(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Equals ``reference.conv`` for what it supports.

    >>> import jax.numpy as jnp
    >>> from jax import lax
    >>> from fedjax_sim_kernels.conv import ConvSpec, winograd
    >>> x, kernel = jnp.ones((2, 26, 26, 32)), jnp.ones((3, 3, 32, 64))
    >>> axes = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    >>> winograd.conv(x, kernel, ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), axes)).shape
    (2, 24, 24, 64)
    """
    x, kernel = plain(lhs, rhs, spec)
    batch, height, width, _ = x.shape
    rows = _quarters(x, kernel, spec)
    out = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)  # [batch, down, 2, across, 2, features]
    out = out.reshape(batch, height - 2 + height % 2, width - 2 + width % 2, kernel.shape[-1])
    return restored(out[:, : height - 2, : width - 2], spec)


def quarters(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> list[jax.Array]:
    """What ``conv`` gives, in four: its even rows' even and odd columns, then its odd rows'.

    They are what a tile gives, and the windows of a pooling by two: neither do they come together in between, nor do
    their cotangents. A last row or column of an odd number of them is left out.

    >>> import jax.numpy as jnp
    >>> from jax import lax
    >>> from fedjax_sim_kernels.conv import ConvSpec, winograd
    >>> x, kernel = jnp.ones((2, 26, 26, 32)), jnp.ones((3, 3, 32, 64))
    >>> axes = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    >>> [part.shape for part in winograd.quarters(x, kernel, ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), axes))]
    [(2, 12, 12, 64), (2, 12, 12, 64), (2, 12, 12, 64), (2, 12, 12, 64)]
    """
    x, kernel = plain(lhs, rhs, spec)
    _, height, width, _ = x.shape
    parts = [
        part[:, : height // 2 - 1, : width // 2 - 1] for row in _quarters(x, kernel, spec) for part in row
    ]
    # In one array, for the compiler would evaluate them again for each comparison.
    return [restored(part, spec) for part in _split(lax.optimization_barrier(jnp.stack(parts)), 0)]


def _quarters(x: jax.Array, kernel: jax.Array, spec: ConvSpec) -> list[list[jax.Array]]:
    """The two rows of two positions that each tile gives, ``[batch, down, across, features]``."""
    batch, height, width, channels = x.shape
    features = kernel.shape[-1]
    # Tiles along each axis: half the positions of the output, rounded up.
    down, across = (height - 1) // 2, (width - 1) // 2
    tiles = [tile.reshape(batch * down * across, channels) for tile in _tiles(x, down, across)]
    tiles, weights = lax.optimization_barrier(tiles), lax.optimization_barrier(_weights(kernel))
    products = [
        product(tile, weight, precision=spec.precision, preferred_element_type=spec.preferred_element_type)
        for tile, weight in zip(tiles, weights, strict=True)
    ]
    elements = [
        values.reshape(batch, down, across, features) for values in lax.optimization_barrier(products)
    ]
    columns = [_out(elements[column::4]) for column in range(4)]
    return [_out([column[row] for column in columns]) for row in range(2)]


def _tiles(x: jax.Array, down: int, across: int) -> list[jax.Array]:
    """The sixteen elements of ``B^T d B`` of every tile, ``[batch, down, across, channels]``."""
    batch, height, width, channels = x.shape
    bottom, right = 2 * down + 2 - height, 2 * across + 2 - width
    x = jnp.pad(x, ((0, 0), (0, bottom), (0, right), (0, 0)))
    x = x.reshape(batch, down + 1, 2, across + 1, 2, channels)
    elements = []
    for row in _in(*_split(x, 2), axis=1, tiles=down):
        elements += _in(*_split(row, 3), axis=2, tiles=across)
    return elements


def _in(even: jax.Array, odd: jax.Array, *, axis: int, tiles: int) -> list[jax.Array]:
    """``B^T d`` along an axis whose elements at even and odd places are given; a tile begins at each even one but the last."""
    here, there = (
        [lax.slice_in_dim(part, start, start + tiles, axis=axis) for part in (even, odd)] for start in (0, 1)
    )
    return [here[0] - there[0], here[1] + there[0], there[0] - here[1], here[1] - there[1]]


def _weights(kernel: jax.Array) -> list[jax.Array]:
    """The sixteen elements of ``G k G^T``, ``[channels, features]``."""
    return [element for row in _filter(_split(kernel, 0)) for element in _filter(_split(row, 0))]


def _filter(parts: list[jax.Array]) -> list[jax.Array]:
    """``G k`` of three elements."""
    outer, middle = 0.5 * (parts[0] + parts[2]), 0.5 * parts[1]
    return [parts[0], outer + middle, outer - middle, parts[2]]


def _out(parts: list[jax.Array]) -> list[jax.Array]:
    """``A^T m`` of four elements."""
    return [parts[0] + parts[1] + parts[2], parts[1] - parts[2] - parts[3]]


def _split(x: jax.Array, axis: int) -> list[jax.Array]:
    """The elements along an axis, which disappears; the derivative joins theirs in one go."""
    return [jnp.squeeze(part, axis) for part in lax.split(x, (1,) * x.shape[axis], axis)]
