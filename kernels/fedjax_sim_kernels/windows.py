"""Sliding windows over any axes of an array, as strided slices."""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

Ints = tuple[int, ...]
Pads = tuple[tuple[int, int], ...]


def window_counts(sizes: Ints, window: Ints, strides: Ints, dilation: Ints) -> Ints:
    """Positions of the window along each axis; 0 where it does not fit."""
    spans = [(extent - 1) * apart + 1 for extent, apart in zip(window, dilation, strict=True)]
    return tuple(
        max(0, (size - span) // stride + 1) for size, span, stride in zip(sizes, spans, strides, strict=True)
    )


def window_slices(x: jax.Array, window: Ints, strides: Ints, dilation: Ints) -> list[jax.Array]:
    """The element at each offset of the window, for all positions of the window.

    Args:
      x: padded already; every axis has an extent, a stride and a dilation.

    Returns:
      One array per offset, the last axis fastest; as long along each axis as there are positions.
    """
    counts = window_counts(x.shape, window, strides, dilation)
    if tuple(window) == tuple(strides) and set(dilation) <= {1} and 0 not in counts:
        return _tile_slices(x, window, counts)
    found = []
    for offset in itertools.product(*map(range, window)):
        start = [place * apart for place, apart in zip(offset, dilation, strict=True)]
        limit = [s + (n - 1) * stride + 1 for s, n, stride in zip(start, counts, strides, strict=True)]
        found.append(lax.slice(x, start, limit, strides))
    return found


def _tile_slices(x: jax.Array, window: Ints, counts: Ints) -> list[jax.Array]:
    """Windows that touch and do not overlap: a split of their places, whose derivative is a join and not a sum of pads."""
    x = lax.slice(x, [0] * x.ndim, [n * extent for n, extent in zip(counts, window, strict=True)])
    x = x.reshape(list(itertools.chain(*zip(counts, window, strict=True))))
    found = [x]
    for axis, extent in enumerate(window):
        # The extent of each axis before is gone already.
        found = [
            jnp.squeeze(piece, axis + 1)
            for part in found
            for piece in lax.split(part, (1,) * extent, axis + 1)
        ]
    return found


def patches(x: jax.Array, window: Ints, strides: Ints, dilation: Ints) -> jax.Array:
    """The elements under each position of the window, side by side.

    Args:
      x: ``[batch, *spatial, channels]``, padded already.
      window: extents of the spatial axes; likewise ``strides`` and ``dilation``.

    Returns:
      ``[batch, *positions, offsets, channels]``.
    """
    counts = window_counts(x.shape[1:-1], window, strides, dilation)
    if tuple(window) == tuple(strides) and set(dilation) <= {1}:
        return _tiles(x, window, counts)
    one = (1,)
    parts = window_slices(x, (*one, *window, *one), (*one, *strides, *one), (*one, *dilation, *one))
    if len(parts) == 1:
        return parts[0][..., None, :]
    # Joined along the last axis: stacked along a new one, the copies would be of single channels.
    joined = jnp.concatenate(parts, axis=-1)
    return joined.reshape(*joined.shape[:-1], len(parts), x.shape[-1])


def _tiles(x: jax.Array, window: Ints, counts: Ints) -> jax.Array:
    """Windows that touch and do not overlap are a reshape."""
    batch, channels, axes = x.shape[0], x.shape[-1], len(window)
    limits = [n * extent for n, extent in zip(counts, window, strict=True)]
    x = lax.slice(x, [0] * x.ndim, [batch, *limits, channels])
    x = x.reshape(batch, *itertools.chain(*zip(counts, window, strict=True)), channels)
    order = [0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1]
    return x.transpose(order).reshape(batch, *counts, math.prod(window), channels)
