"""Labels that are not numbered from 0, such as -1 and 1 or names: their places in a list of values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def check_values(values: Sequence[float | str]) -> np.ndarray:
    """The values of labels as an array.

    Raises:
      TypeError: they are neither numbers nor text, all of one kind.
      ValueError: fewer than two, or one comes twice.
    """
    array = np.asarray(list(values) if not isinstance(values, str) else values)
    if array.ndim != 1 or array.dtype.kind not in "iufU" or (array.dtype.kind == "U") != _all_text(values):
        raise TypeError(f"labels is {values!r}, expected a list of numbers or of text, such as [-1, 1].")
    if len(array) < 2 or len(np.unique(array)) < len(array):
        raise ValueError(f"labels is {values!r}, expected at least two values, each once.")
    return array


def numbered_from_0(column: Any, values: Sequence[float | str], what: str) -> np.ndarray:
    """The place of every label in the list of values, ``int32[examples]``.

    Args:
      column: labels ``[examples]``.
      values: what they may be; the first becomes 0.
      what: for messages: ``"label column 'y'"``.

    Raises:
      TypeError, ValueError: a bad list, or a label that is not in it.

    Example:
      >>> from fedjax_sim.data._label_values import numbered_from_0
      >>> numbered_from_0([1, -1, -1], [-1, 1], "column 'y'")
      array([1, 0, 0], dtype=int32)
    """
    known, column = check_values(values), np.asarray(column)
    if column.ndim != 1 or (column.dtype.kind == "U") != (known.dtype.kind == "U"):
        raise ValueError(
            f"{what} is {column.dtype}{list(column.shape)}, expected one label per example, of the kind of "
            f"labels={values!r}."
        )
    order = np.argsort(known)
    places = order[np.minimum(np.searchsorted(known[order], column), len(known) - 1)]
    other = column[known[places] != column]
    if other.size:
        raise ValueError(f"{what} holds {other[0].item()!r}, expected one of labels={list(values)!r}.")
    return places.astype(np.int32)


def _all_text(values: Sequence[float | str]) -> bool:
    return all(isinstance(value, str) for value in values)
