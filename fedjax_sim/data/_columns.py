"""Columns, named arrays that share their first axis, and the offsets that divide their rows among clients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

RESERVED = "mask"
"""Batches carry this column besides the data's own; see ``fedjax_sim._src.types.Batch``."""


def check_columns(columns: Mapping[str, Any], of: str = "") -> tuple[dict[str, np.ndarray], int]:
    """The columns as arrays, and their common length. ``of`` completes messages: ``" of client 3"``.

    Raises:
      TypeError: not a mapping from text, or a column of text or objects.
      ValueError: no column, a reserved name, a scalar, lengths that differ.
    """
    if not isinstance(columns, Mapping):
        raise TypeError(
            f"columns{of} is {type(columns).__name__}, expected a mapping such as {{'x': x, 'y': y}}."
        )
    if not columns:
        raise ValueError(f"columns{of} is empty, expected at least one column.")
    arrays: dict[str, Any] = {}
    for name, column in columns.items():
        if not isinstance(name, str):
            raise TypeError(
                f"columns{of} holds a name of type {type(name).__name__} ({name!r}), expected str."
            )
        if name == RESERVED:
            raise ValueError(
                f"column {name!r}{of} has a reserved name: batches use it for the rows that are real. Rename it."
            )
        # asanyarray keeps np.memmap; device arrays stay on their device.
        arrays[name] = column if isinstance(column, jax.Array) else np.asanyarray(column)
        _check_column(name, arrays[name], of)
    first, expected = next(iter(arrays.items()))
    for name, array in arrays.items():
        if len(array) != len(expected):
            raise ValueError(
                f"column {name!r}{of} has {len(array)} rows, column {first!r} has {len(expected)}; "
                "expected one row per example in every column."
            )
    return arrays, len(expected)


def _check_column(name: str, array: Any, of: str) -> None:
    if array.dtype.kind in "OSUMmT" or array.dtype.names is not None:
        raise TypeError(
            f"column {name!r}{of} is of dtype {array.dtype}, expected numbers or booleans: no device holds it. "
            "Encode it as integers, or leave it out (ragged rows: pad them to one length)."
        )
    if array.ndim == 0:
        raise ValueError(f"column {name!r}{of} is a scalar, expected an array [examples, ...].")


def gather_rows(columns: Mapping[str, np.ndarray], rows: np.ndarray) -> dict[str, np.ndarray]:
    """Rows by index; neighbours in order are a view, so a ``np.memmap`` stays one."""
    start = int(rows[0]) if len(rows) else 0
    stop = start + len(rows)
    if np.array_equal(rows, np.arange(start, stop)):
        return {name: column[start:stop] for name, column in columns.items()}
    return {name: column[rows] for name, column in columns.items()}


def column_of(columns: Mapping[str, Any], name: str, argument: str) -> np.ndarray:
    """The column of a name that the user gave as an argument; ``argument`` is what the argument is called.

    Raises:
      ValueError: there is no such column.
    """
    if name not in columns:
        raise ValueError(
            f"{argument} is {name!r}, but there is no such column, expected one of {', '.join(columns) or 'none'}."
        )
    return np.asarray(columns[name])


def describe(columns: Mapping[str, Any]) -> dict[str, str]:
    """Dtype and shape beyond the first axis, ``{"x": "uint8[28, 28]"}``; the type's name for what has neither."""
    return {
        name: f"{column.dtype}{list(column.shape[1:])}"
        if hasattr(column, "dtype") and hasattr(column, "shape")
        else type(column).__name__
        for name, column in columns.items()
    }


def check_offsets(offsets: Any, num_clients: int, num_examples: int) -> np.ndarray:
    """The offsets as ``int64[clients + 1]``, a copy.

    Raises:
      TypeError: they are not integers in one dimension.
      ValueError: they do not divide ``num_examples`` rows among ``num_clients``.
    """
    array = np.array(offsets)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise TypeError(f"offsets is {array.dtype}{list(array.shape)}, expected integers [clients + 1].")
    if len(array) != num_clients + 1:
        raise ValueError(
            f"offsets has {len(array)} entries for {num_clients} ids, expected {num_clients + 1}: "
            "where each client begins, then the number of examples."
        )
    array = array.astype(np.int64)
    if array[0] != 0 or array[-1] != num_examples:
        raise ValueError(
            f"offsets run from {array[0]} to {array[-1]}, expected 0 to {num_examples}, the number of examples."
        )
    falls = np.flatnonzero(np.diff(array) < 0)
    if falls.size:
        at = int(falls[0])
        raise ValueError(
            f"offsets decrease after position {at} ({array[at]} to {array[at + 1]}), expected a running total of the "
            "clients' sizes."
        )
    return array


def offsets_of(sizes: np.ndarray) -> np.ndarray:
    """Running total of the clients' sizes from 0, ``int64[clients + 1]``."""
    return np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
