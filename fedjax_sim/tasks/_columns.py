"""Checks of a data set's columns, on the host, before a simulation starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

LabelKind = Literal["class", "number", "any"]


def check_columns(
    columns: Mapping[str, Any],
    *,
    input: str,
    label: str,
    labels: LabelKind,
    classes: int | None = None,
    vocabulary: int | None = None,
) -> None:
    """Looks at the columns that a task reads.

    Args:
      columns: arrays ``[examples, ...]``.
      input: name of the input column: numbers, finite where floating, within the vocabulary where there is one.
      label: name of the label column.
      labels: ``"class"`` for integers from 0 (or -1 at padded positions of a sequence), ``"number"`` for finite
        numbers, ``"any"`` when only the user's own loss knows.
      classes: number of classes, where known.
      vocabulary: number of tokens, where known.

    Raises:
      ValueError: a column is missing, or holds something that the task cannot train on.
    """
    inputs = _numbers(columns, input, "input")
    if vocabulary is not None:
        if not np.issubdtype(inputs.dtype, np.integer):
            raise ValueError(f"column {input!r} has dtype {inputs.dtype}, expected integer tokens.")
        _within(inputs, input, "token", 0, vocabulary)
    if labels == "any":
        return
    values = _numbers(columns, label, "label")
    if len(values) != len(inputs):
        raise ValueError(f"column {label!r} has {len(values)} rows and column {input!r} {len(inputs)}.")
    if labels == "class":
        if not np.issubdtype(values.dtype, np.integer):
            raise ValueError(
                f"column {label!r} has dtype {values.dtype}, expected integer labels. "
                "Convert it with .astype('int32'), or use tasks.regression for numbers."
            )
        _within(values, label, "label", -1 if values.ndim > 1 else 0, classes)


def _numbers(columns: Mapping[str, Any], name: str, role: str) -> np.ndarray:
    if name not in columns:
        raise ValueError(f"the data has no column {name!r} for the {role}, it has {sorted(columns)}.")
    values = np.asarray(columns[name])
    if values.ndim == 0 or not (jnp.issubdtype(values.dtype, np.number) or values.dtype == bool):
        raise ValueError(
            f"column {name!r} is {values.dtype}{list(values.shape)}, expected numbers [examples, ...]."
        )
    if jnp.issubdtype(values.dtype, np.complexfloating):
        raise ValueError(
            f"column {name!r} is {values.dtype}{list(values.shape)}, expected real numbers: put the real and the "
            "imaginary part next to each other, as in np.stack([x.real, x.imag], axis=-1)."
        )
    if jnp.issubdtype(values.dtype, np.inexact):
        finite = np.isfinite(values)
        if not finite.all():
            row, value = _first(values, ~finite)
            raise ValueError(f"column {name!r} holds {value} at row {row}, expected finite numbers.")
    return values


def _within(values: np.ndarray, name: str, word: str, low: int, end: int | None) -> None:
    bad = values < low
    if end is not None:
        bad |= values >= end
    if bad.any():
        row, value = _first(values, bad)
        expected = f"{word}s of at least {low}" if end is None else f"{word}s in [{low}, {end})"
        fix = (
            " Values that are not numbered from 0 become so by labels= of npz, leaf and arrays, or by the decoder labels."
            if word == "label" and value < low
            else ""
        )
        raise ValueError(f"column {name!r} holds {word} {value} at row {row}, expected {expected}.{fix}")


def _first(values: np.ndarray, bad: np.ndarray) -> tuple[int, Any]:
    index = np.unravel_index(np.argmax(bad), bad.shape)
    return int(index[0]), values[index].item()
