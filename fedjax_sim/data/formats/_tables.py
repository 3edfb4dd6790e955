"""From named arrays with an owner per row to a data set: what the sources of tables have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fedjax_sim.data._columns import column_of
from fedjax_sim.data._ids import as_ids, check_whole
from fedjax_sim.data._label_values import numbered_from_0
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.decoders import Decode, Decoder
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.federated import split as split_examples  # sources have an argument called split

Columns = Iterable[str] | Mapping[str, str]
"""What to keep: names, or new name to old name."""

_USUAL = {"pixels": "x", "image": "x", "img": "x", "label": "y"}

ONE_CLIENT = (
    "there is no client column: one client holds all, until fs.data.repartition deals the examples out"
)


TWO_SPLITS = "there is a split already, expected no test_fraction. Leave it out."


def renamed(columns: Columns) -> dict[str, str]:
    """What to keep, as new name to old name."""
    if isinstance(columns, Mapping):
        return dict(columns)
    names = [columns] if isinstance(columns, str) else list(columns)
    return dict(zip(names, names, strict=True))


def usual(names: Iterable[str]) -> dict[str, str]:
    """All of these, as new name to old name: images are ``x`` and labels ``y``, where that leaves names apart."""
    names = list(names)
    new = [_USUAL.get(name, name) for name in names]
    return {name if new.count(short) > 1 else short: name for name, short in zip(names, new, strict=True)}


def check_chosen(columns: Mapping[str, str], names: Collection[str], what: str = "column") -> None:
    """Raises ``ValueError`` for an old name that is not there."""
    for name in columns.values():
        if name not in names:
            raise ValueError(f"no {what} is called {name!r}, the file has {', '.join(names) or 'none'}.")


def decoded(columns: Mapping[str, Any], functions: Mapping[str, Decoder]) -> dict[str, np.ndarray]:
    """Columns, those with a function replaced by what it makes of them.

    Args:
      columns: name to array, or to the list of values for a function.
      functions: by name; a mapping that one returns brings its own names.

    Raises:
      ValueError: a name comes twice.
    """
    found: dict[str, np.ndarray] = {}
    for name, values in columns.items():
        made = functions[name](values) if name in functions else values
        for new, array in (made if isinstance(made, Mapping) else {name: made}).items():
            if new in found:
                raise ValueError(f"decode makes a second column {new!r}. Choose other names by columns=.")
            found[new] = np.asarray(array)
    return found


def functions_by_new_name(decode: Decode | None, columns: Mapping[str, str]) -> dict[str, Decoder]:
    """The functions of ``decode`` by new name of their column.

    Raises:
      ValueError: one is for a column that is not kept.
    """
    decode = decode or {}
    for name in decode:
        if name not in columns.values():
            raise ValueError(
                f"decode names {name!r}, expected one of the columns {', '.join(columns.values())}."
            )
    return {new: decode[old] for new, old in columns.items() if old in decode}


def text_ids(values: Sequence[str], what: str) -> np.ndarray:
    """Text as ids ``[...]``.

    Raises:
      ValueError: an id ends with characters that numpy drops, so that two ids could become one.
    """
    array = np.asarray(values, dtype=np.str_) if len(values) else np.zeros(0, "U1")
    check_whole(what, values, array)
    return as_ids(what, array)


def test_part(parts: Collection[str], train: str, test: str | None) -> str | None:
    """The name of the test part among the parts of a set.

    Args:
      parts: all names.
      train: the one to train on.
      test: the one to evaluate on; by default "test" or "validation", whichever is there, in this order.

    Raises:
      ValueError: there is no such part.
    """
    for option, name in (("train", train), ("test", test)):
        if name is not None and name not in parts:
            raise ValueError(
                f"no part is called {name!r}, there are {', '.join(map(repr, sorted(parts))) or 'none'}. "
                f"Name one by {option}=."
            )
    if test == train:
        raise ValueError(f"train and test are both {train!r}, expected two parts.")
    if test is not None:
        return test
    return next((name for name in ("test", "validation") if name in parts and name != train), None)


def left_out(parts: Iterable[str], used: Collection[str | None]) -> tuple[str, ...]:
    """Notes on the parts that are not used."""
    return tuple(f"part {name!r} is left out" for name in parts if name not in used)


def is_test(values: np.ndarray, what: str, num_examples: int) -> np.ndarray:
    """``bool[rows]`` from 0 and 1, or from "train" and "test"."""
    expected: tuple = ("train", "test") if values.dtype.kind == "U" else (0, 1)
    if values.shape != (num_examples,) or not np.isin(values, expected).all():
        raise ValueError(
            f"{what} is {values.dtype}{list(values.shape)} with values {np.unique(values)[:5].tolist()}, "
            f"expected [{num_examples}] of {expected[0]!r} (training) and {expected[1]!r} (test)."
        )
    return values == expected[1]


def both(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Training and test rows, ``bool[rows]`` each, where the test has what training has not."""
    return ~rows, rows


def divided(
    values: np.ndarray, what: str, train: str, test: str | None
) -> tuple[tuple[np.ndarray, np.ndarray], tuple[str, ...]]:
    """Rows of the training part and of the test part, ``bool[rows]`` each, and notes on what is in neither.

    ``values`` are 0 and 1, or names of parts.
    """
    if values.dtype.kind != "U":
        return both(is_test(values, what, len(values))), ()
    parts = np.unique(values).tolist()
    try:
        test = test_part(parts, train, test)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from error
    nowhere = np.zeros(len(values), bool)
    masks = values == train, nowhere if test is None else values == test
    return masks, left_out(parts, (train, test))


def federated(
    name: str,
    columns: dict[str, np.ndarray],
    owner: np.ndarray,
    ids: np.ndarray,
    *,
    split: tuple[np.ndarray, np.ndarray] | None = None,
    label: str = "y",
    labels: Sequence[float | str] | None = None,
    classes: int | None = None,
    channel_axis: str | Iterable[str] = (),
    test_fraction: float | None = None,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> Federated:
    """Groups the rows of a table by their owner.

    Args:
      name: of the set.
      columns: name to array ``[rows, ...]``; changed.
      owner: ``[rows]``, an id each.
      ids: ``[clients]``, all ids.
      split: rows of the training and of the test part, ``bool[rows]`` each; without, all is training data.
      label: the label column, if there is one: becomes int32 where it holds integers.
      labels: its values, where they are not numbered from 0; a column of them must be there then.
      classes: how many, where the source knows; by default the largest label plus one.
      channel_axis: columns ``[rows, height, width]`` that get a trailing axis of length 1.
      test_fraction: divides the examples of each client, where there is no split.
      seed: for ``test_fraction``.
      notes: of the set.

    Raises:
      TypeError, ValueError: something does not fit together.
    """
    check_rows(columns, len(owner))
    if labels is not None:
        column = column_of(columns, label, "label")
        columns[label] = numbered_from_0(column, labels, f"label column {label!r}")
        classes = len(labels)
    found = finished(columns, label, classes, channel_axis)
    if split is not None and test_fraction is not None:
        raise ValueError(TWO_SPLITS)
    masks = split or (np.ones(len(owner), bool), np.zeros(len(owner), bool))
    train, test = (
        ClientData.from_arrays({new: array[rows] for new, array in columns.items()}, owner[rows], ids=ids)
        for rows in masks
    )
    if test_fraction is not None:
        train, test = split_examples(train, test_fraction, seed)
    return Federated(train, test, name=name, classes=found if classes is None else classes, notes=notes)


def finished(
    columns: dict[str, np.ndarray], label: str, classes: int | None, channel_axis: str | Iterable[str]
) -> int | None:
    """Changes columns as ``federated`` says, its arguments, and returns the number of classes that the labels show."""
    found = make_labels(columns, label)
    if classes is not None and found is not None and found > classes:
        raise ValueError(f"label column {label!r} holds {found - 1}, expected labels below {classes}.")
    for new in [channel_axis] if isinstance(channel_axis, str) else channel_axis:
        add_channel_axis(columns, new)
    return found


def check_rows(columns: Mapping[str, np.ndarray], rows: int) -> None:
    """Raises ``ValueError`` for a column of another length."""
    for name, array in columns.items():
        if array.shape[:1] != (rows,):
            raise ValueError(
                f"column {name!r} has shape {list(array.shape)}, expected {rows} rows, one for each owner."
            )


def make_labels(columns: dict[str, np.ndarray], label: str) -> int | None:
    """Makes the label column int32 where it is one of integers; returns the number of classes."""
    labels = columns.get(label)
    if labels is None or labels.dtype.kind not in "iu":
        return None
    limits = np.iinfo(np.int32)
    if labels.size and (labels.min() < limits.min or labels.max() > limits.max):
        raise ValueError(
            f"label column {label!r} holds numbers from {labels.min()} to {labels.max()}, expected int32."
        )
    columns[label] = labels.astype(np.int32)
    return count_classes(labels)


def count_classes(*labels: np.ndarray) -> int | None:
    """The largest of integer labels plus one; ``None`` where there are none, or negative ones."""
    filled = [array for array in labels if array.size and array.dtype.kind in "iu"]
    if not filled or min(array.min() for array in filled) < 0:
        return None
    return int(max(array.max() for array in filled)) + 1


def joined(parts: Sequence[Mapping[str, np.ndarray]], of: Sequence[Any]) -> dict[str, np.ndarray]:
    """Columns of several tables, one after the other; ids may be text of several lengths.

    Raises:
      ValueError: they differ in a name, dtype or shape beyond the first axis; names both.
    """
    first = parts[0]
    for part, source in zip(parts, of, strict=True):
        check_alike(part, first, source, of[0])
    if len(parts) == 1:
        return dict(first)
    return {name: np.concatenate([part[name] for part in parts]) for name in first}


def check_alike(
    part: Mapping[str, np.ndarray], first: Mapping[str, np.ndarray], source: Any, first_source: Any
) -> None:
    """Raises ``ValueError`` where two tables differ as ``joined`` says."""
    if list(part) != list(first):
        raise ValueError(
            f"{source} has the columns {', '.join(part)}, {first_source} has {', '.join(first)}; expected the same."
        )
    for name, array in part.items():
        text = array.dtype.kind == first[name].dtype.kind == "U"
        if array.shape[1:] != first[name].shape[1:] or (array.dtype != first[name].dtype and not text):
            raise ValueError(
                f"{source}: column {name!r} is {array.dtype}{list(array.shape[1:])}, in {first_source} it is "
                f"{first[name].dtype}{list(first[name].shape[1:])}; expected one dtype and shape."
            )


def add_channel_axis(columns: dict[str, np.ndarray], name: str) -> None:
    column = column_of(columns, name, "channel_axis")
    if column.ndim != 3:
        raise ValueError(
            f"column {name!r} has shape {list(column.shape)}, expected [examples, height, width]."
        )
    columns[name] = column[..., None]
