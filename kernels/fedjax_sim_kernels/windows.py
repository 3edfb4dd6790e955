"""Sliding windows over the two spatial axes of an image, as strided slices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
from jax import lax

Padding = Literal["VALID", "SAME"] | Sequence[tuple[int, int]]
"""``"VALID"``, ``"SAME"`` or ``((top, bottom), (left, right))``."""


def resolve_padding(
    padding: Padding, image: tuple[int, ...], window: tuple[int, ...], strides: tuple[int, int]
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns to add, ``((top, bottom), (left, right))``.

    Raises:
      ValueError: the padding is of another form, or the padded image is smaller than the window.
    """
    if isinstance(padding, str):
        if padding not in ("VALID", "SAME"):
            raise ValueError(
                f"padding is {padding!r}, expected 'VALID', 'SAME' or ((top, bottom), (left, right))."
            )
        pairs = lax.padtype_to_pads(image, window, strides, padding)
    else:
        pairs = [tuple(pair) for pair in padding]
        if len(pairs) != 2 or any(len(pair) != 2 or min(pair) < 0 for pair in pairs):
            raise ValueError(f"padding is {padding!r}, expected two pairs of integers, 0 or above.")
    for axis, size, (low, high), extent in zip(("height", "width"), image, pairs, window, strict=True):
        if size + low + high < extent:
            raise ValueError(
                f"the {axis} of the image is {size} ({size + low + high} with padding), "
                f"smaller than the window's, {extent}."
            )
    (top, bottom), (left, right) = pairs
    return (top, bottom), (left, right)


def window_slices(x: jax.Array, window: tuple[int, int], strides: tuple[int, int]) -> list[jax.Array]:
    """The pixel at each offset of the window, for all positions of the window.

    Args:
      x: ``[batch, height, width, channels]``, padded already.

    Returns:
      One ``[batch, out_height, out_width, channels]`` per offset, row by row.
    """
    batch, height, width, channels = x.shape
    rows = (height - window[0]) // strides[0] * strides[0] + 1
    columns = (width - window[1]) // strides[1] * strides[1] + 1
    return [
        lax.slice(x, (0, i, j, 0), (batch, i + rows, j + columns, channels), (1, *strides, 1))
        for i in range(window[0])
        for j in range(window[1])
    ]
