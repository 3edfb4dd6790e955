"""What is odd about a set: clients without examples, labels that are no classes, numbers that are none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated

_SHOWN = 6
"""Values of labels that a sentence names."""
_ROWS = 1 << 16
"""Rows that are looked at in one go."""


def remarks(federated: Federated) -> tuple[str, ...]:
    """Sentences about a set; none where nothing is odd. Of columns, those of training data in memory are looked at."""
    train = federated.train
    said = []
    empty = int(np.count_nonzero(np.asarray(train.sizes) == 0))
    if empty:
        have = "has" if empty == 1 else "have"
        said.append(f"{empty:,} of {train.num_clients:,} clients {have} no training examples")
    said += label_remarks(federated)
    if isinstance(train, ClientData):
        said += _no_numbers(train.columns)
    return tuple(said)


def label_remarks(federated: Federated) -> tuple[str, ...]:
    """A sentence on labels that give no number of classes, and how to make classes of them."""
    train = federated.train
    if federated.classes is not None or not isinstance(train, ClientData) or "y" not in train.columns:
        return ()
    return tuple(_labels(train.columns["y"]))


def _labels(column: np.ndarray) -> Iterator[str]:
    """What labels are that give no number of classes."""
    column = np.asarray(column)
    if column.ndim != 1 or not len(column) or column.dtype.kind not in "iufb":
        return
    values = np.unique(column[np.isfinite(column)])
    few = len(values) <= max(_SHOWN, len(column) // 10) and len(values) >= 2
    listed = ", ".join(f"{value:g}" for value in values[:_SHOWN].astype(float))
    if column.dtype.kind == "f" and len(values) > _SHOWN:
        yield (
            f"labels y are {column.dtype} from {values[0]:g} to {values[-1]:g}, no classes: they suit the task regression"
        )
        return
    if not few:
        return
    more = ", ..." if len(values) > _SHOWN else ""
    yield (
        f"labels y are {column.dtype}: {listed}{more}. The task classification wants integers from 0: name the values by "
        f"labels=[{listed}{more}] (npz, leaf, arrays) or by the decoder labels (decode, of parquet, huggingface, tff and tfds), "
        "and they become 0, 1 and so on"
    )


def _no_numbers(columns: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Columns in memory that hold NaN or infinity, which would make every model NaN."""
    for name, column in columns.items():
        if (
            not isinstance(column, np.ndarray)
            or isinstance(column, np.memmap)
            or column.dtype.kind != "f"
            or not column.size
        ):
            continue
        starts = range(0, len(column), _ROWS)
        bad = sum(
            int((~np.isfinite(column[start : start + _ROWS].reshape(-1, column[0].size))).any(axis=1).sum())
            for start in starts
        )
        if bad:
            yield f"column {name!r} holds NaN or infinity in {bad:,} of {len(column):,} training examples"
