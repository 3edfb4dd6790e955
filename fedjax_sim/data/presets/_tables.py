"""Comma-separated tables of numbers, and features on a common scale."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np

from fedjax_sim.data.client_data import ClientData


def read_rows(path: Path, width: int) -> list[list[str]]:
    """The rows of a comma-separated file as text; empty lines are none.

    Raises:
      ValueError: a row has another number of fields, or the file is no text. Combine with ``errors_name``.
    """
    rows = []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            for row in reader:
                if row and len(row) != width:
                    raise ValueError(f"line {reader.line_num} has {len(row)} fields, expected {width}.")
                if row:
                    rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"the file is no comma-separated text in UTF-8, or damaged: {error}") from error
    return rows


def numbers(rows: list[list[str]], missing: str | None = None) -> np.ndarray:
    """Fields as ``float64[rows, fields]``, NaN where a field is ``missing``.

    Raises:
      ValueError: a field is no finite number.
    """
    try:
        found = [[math.nan if field == missing else _finite(field) for field in row] for row in rows]
    except ValueError as error:
        also = "" if missing is None else f", or {missing!r} for a value that is missing"
        raise ValueError(f"{error}, expected a finite number{also}.") from None
    return np.asarray(found, np.float64)


def _finite(field: str) -> float:
    try:
        value = float(field)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"a field holds {field[:30]!r}")
    return value


def check_count(found: int, expected: int, what: str) -> None:
    """A published set has a known size: a file that was cut off between two rows is found by it.

    Raises:
      ValueError: the counts differ.
    """
    if found != expected:
        raise ValueError(
            f"there are {found} {what}, expected {expected}, as published: the file was cut off or changed. "
            "Get it again."
        )


def normalised(
    train: ClientData, test: ClientData, how: str | None, name: str = "x"
) -> tuple[ClientData, ClientData]:
    """Both parts with a column's features less their mean, divided by their standard deviation (of ``n - 1``).

    A feature that is constant in the training examples becomes 0 for them: it is divided by 1.

    Args:
      train: its examples alone say what mean and deviation are; at least two of each client.
      test: the same clients, in the same order.
      how: ``"client"``, by each client's own examples; ``"pooled"``, by those of all; ``None`` changes nothing.
      name: of the column, ``float[examples, features]``.
    """
    if how is None:
        return train, test
    x = train.columns[name].astype(np.float64)
    groups = [x] if how == "pooled" else np.split(x, train.offsets[1:-1])
    means = np.stack([group.mean(axis=0) for group in groups])
    deviations = np.stack([group.std(axis=0, ddof=1) for group in groups])
    deviations[deviations == 0] = 1

    def scaled(part: ClientData) -> ClientData:
        group = 0 if how == "pooled" else np.repeat(np.arange(part.num_clients), part.sizes)
        column = (part.columns[name] - means[group]) / deviations[group]
        columns = {**part.columns, name: column.astype(train.columns[name].dtype)}
        return ClientData(columns, part.offsets, part.ids)

    return scaled(train), scaled(test)
