"""Arrays in memory or in one ``.npz`` file, a row per example, as a data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._columns import check_columns
from fedjax_sim.data._files import Npz, errors_name
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data._label_values import numbered_from_0
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats import _tables
from fedjax_sim.data.formats._tables import Columns


def arrays(
    columns: Mapping[str, Any],
    client: Any = None,
    *,
    ids: Iterable[int | str] | np.ndarray | None = None,
    split: Any = None,
    label: str = "y",
    labels: Sequence[float | str] | None = None,
    channel_axis: str | Iterable[str] = (),
    test_fraction: float | None = None,
    seed: int = 0,
    name: str = "arrays",
) -> Federated:
    """Arrays ``[examples, ...]`` with an owner per row, as a data set.

    Training and test part have the same clients in the same order; a client may be empty in either. Arrays keep their
    type, except an integer label column, which becomes int32; it also gives ``classes`` (largest label plus one) unless
    there are negative labels.

    Args:
      columns: name to array ``[examples, ...]``.
      client: integers or text ``[examples]``, the id of the client that owns each row. Without, one client holds all,
        until ``fedjax_sim.data.repartition`` deals the examples out; ``notes`` says so.
      ids: all clients, in the order wanted; by default those that occur, sorted.
      split: ``[examples]``, 0 or ``"train"`` for training and 1 or ``"test"`` for test; without, all is training data.
      label: the label column, if there is one.
      labels: values of the label column where they are not numbered from 0, such as ``[-1, 1]`` or names: the first becomes
        0, the next 1, and so on.
      channel_axis: columns ``[examples, height, width]`` that get a trailing axis of length 1, as convolutions expect.
      test_fraction: divides the examples of each client, by ``fedjax_sim.data.split``, where there is no ``split``.
      seed: for ``test_fraction``.
      name: of the set.

    Raises:
      TypeError: a column holds no numbers, or ids are neither integers nor text.
      ValueError: arrays do not fit together.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> x, y, writer = np.zeros((6, 28, 28), np.uint8), np.arange(6), ["bo", "ann", "bo", "bo", "ann", "bo"]
      >>> data = fs.data.arrays({"x": x, "y": y}, client=writer, channel_axis="x", test_fraction=0.25)
      >>> data.train
      ClientData(2 clients with 1 to 3 of 4 examples, x: uint8[28, 28, 1], y: int32[], 3.15 kB)
      >>> data.test.sizes, data.classes
      (array([1, 1]), 6)
    """
    if (
        labels is not None and label in columns
    ):  # names of classes are columns of text until they are numbered
        numbered = numbered_from_0(columns[label], labels, f"label column {label!r}")
        columns, labels = {**columns, label: numbered}, range(len(labels))
    found, rows = check_columns(columns)
    found = {new: np.asanyarray(array) for new, array in found.items()}
    owner = np.zeros(rows, np.int64) if client is None else as_ids("client", client)
    if len(owner) != rows:
        raise ValueError(
            f"client has {len(owner)} entries, expected {rows}, one for each row of the columns."
        )
    return _tables.federated(
        name,
        found,
        owner,
        np.unique(owner) if ids is None else as_ids("ids", ids),
        split=None if split is None else _tables.both(_tables.is_test(np.asarray(split), "split", rows)),
        label=label,
        labels=labels,
        channel_axis=channel_axis,
        test_fraction=test_fraction,
        seed=seed,
        notes=(_tables.ONE_CLIENT,) if client is None else (),
    )


def npz(
    path: str | Path,
    *,
    client: str = "client",
    client_names: str | None = None,
    split: str = "split",
    columns: Columns | None = None,
    label: str = "y",
    labels: Sequence[float | str] | None = None,
    channel_axis: str | Iterable[str] = (),
    test_fraction: float | None = None,
    seed: int = 0,
) -> Federated:
    """Reads a flat ``.npz`` file: arrays ``[examples, ...]``, one of which says who owns each row.

    Training and test part have the same clients in the same order; a client may be empty in either. Arrays keep
    their storage type, except an integer label column, which becomes int32; it also gives ``classes`` (largest label
    plus one) unless there are negative labels.

    Args:
      path: the file.
      client: array ``[examples]``: ids, or, where the file has ``client_names``, positions in it.
      client_names: array ``[clients]`` of all ids, in the order wanted. By default ``<client>_name`` if the file has
        one. Without names, the ids are those that occur, sorted.
      split: array ``[examples]``, 0 or ``"train"`` for training and 1 or ``"test"`` for test. A file without ``"split"`` is all training data, its
        test part is empty.
      columns: what to keep: names, or new name to name in the file. By default every array of numbers with as many
        rows as ``client``, other than ``client`` and ``split``; arrays of other lengths and text are left out, and
        ``notes`` names them.
      label: the label column (its new name), if there is one.
      labels: values of the label column where they are not numbered from 0, such as ``[-1, 1]`` or names: the first becomes
        0, the next 1, and so on.
      channel_axis: columns ``[examples, height, width]`` that get a trailing axis of length 1, as convolutions expect.
      test_fraction: divides a file without split inside each client, by ``fedjax_sim.data.split``.
      seed: for ``test_fraction``.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: the file is damaged, holds Python objects, lacks an array, or arrays do not fit together.

    Example:
      >>> import tempfile, numpy as np, fedjax_sim as fs
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(folder + "/toy.npz", x=np.zeros((3, 2)), y=[0, 1, 1], split=[0, 1, 0],
      ...              client=[1, 1, 0], client_name=["ann", "bo"])
      ...     data = fs.data.npz(folder + "/toy.npz")
      >>> data.train.ids, data.train.sizes, data.test.sizes, data.classes
      (array(['ann', 'bo'], dtype='<U3'), array([1, 1]), array([0, 1]), 2)
    """
    path = Path(path)
    file = Npz(path)
    has_split = split in file.names or split != "split"  # a name that the caller chose must be there
    if client_names is None and f"{client}_name" in file.names:
        client_names = f"{client}_name"

    with errors_name(path):
        if has_split and test_fraction is not None:
            raise ValueError(
                f"it has a split of its own ({split!r}), expected no test_fraction. Leave it out."
            )
        owner, ids = _owners(file, client, client_names)
        rows = len(owner)
        chosen, notes = _chosen(file, columns, rows, {client, client_names, split}, label, bool(labels))
        return _tables.federated(
            path.stem,
            chosen,
            owner,
            ids,
            split=_tables.both(_tables.is_test(file.read(split), f"array {split!r}", rows))
            if has_split
            else None,
            label=label,
            labels=labels,
            channel_axis=channel_axis,
            test_fraction=test_fraction,
            seed=seed,
            notes=notes,
        )


def _chosen(
    file: Npz,
    columns: Columns | None,
    num_examples: int,
    not_columns: set[str | None],
    label: str,
    named: bool,
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Columns, and notes on arrays that are none; of text, the ``label`` alone is one, if the caller names its values."""
    if columns is not None:
        return {new: file.read(name) for new, name in _tables.renamed(columns).items()}, ()
    found = {name: file.read(name) for name in file.names if name not in not_columns}
    texts = {
        name for name, array in found.items() if array.dtype.kind in "SU" and not (named and name == label)
    }
    other = {name for name, array in found.items() if array.shape[:1] != (num_examples,)} - texts
    if label in other:  # nobody would look for labels that are gone in a note
        raise ValueError(
            f"the labels {label!r} are {list(found[label].shape)}, expected {num_examples} rows, one for each owner. Leave them "
            "out by columns=, or name others by label=."
        )
    notes = []
    if other:
        shapes = ", ".join(f"{name!r} {list(found[name].shape)}" for name in found if name in other)
        notes.append(f"Arrays without a row for each of the {num_examples} examples are left out: {shapes}.")
    if texts:
        names = f" Labels that are names: labels=[...] numbers {label!r}." if label in texts else ""
        notes.append(
            f"Arrays of text are left out: {', '.join(repr(n) for n in found if n in texts)}.{names}"
        )
    return {name: array for name, array in found.items() if name not in other | texts}, tuple(notes)


def _owners(file: Npz, client: str, client_names: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The id that owns each row, and all ids."""
    if client not in file.names:
        raise ValueError(
            f"no array is called {client!r}, the file has {', '.join(file.names)}. Name the one that says who owns each row by "
            "client=. Where none does, give the arrays to fs.data.arrays: one client holds all, until fs.data.repartition "
            "deals the examples out."
        )
    owner = as_ids(client, file.read(client))
    if client_names is None:
        return owner, np.unique(owner)
    ids = as_ids(client_names, file.read(client_names))
    if owner.dtype.kind == "U":
        return owner, ids
    outside = owner[(owner < 0) | (owner >= len(ids))]
    if outside.size:
        raise ValueError(
            f"array {client!r} holds {outside[0]}, expected 0 to {len(ids) - 1}: positions in {client_names!r}."
        )
    return ids[owner], ids
