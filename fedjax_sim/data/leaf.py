"""Data sets in LEAF's JSON: who the users are, and each user's examples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._columns import offsets_of
from fedjax_sim.data._files import check_is_file
from fedjax_sim.data._leaf_file import User, read_file
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split

_SUFFIXES = (".json", ".json.gz")


def leaf(
    path: str | Path,
    *,
    test: str | Path | None = None,
    shape: Sequence[int] | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Federated:
    """Reads LEAF's JSON, plain or compressed with gzip.

    A file is ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}``. A folder is
    all its ``.json`` and ``.json.gz`` files in the order of their names; other files in it are left alone. A folder
    with the folders ``train`` and ``test``, LEAF's own layout, gives both parts; anything else is training data, and
    its test part is empty unless ``test`` or ``test_fraction`` is given. Both parts have the same clients in the same
    order: users as the training files name them, then those of the test files alone. A client may be empty in either.

    Columns: ``x`` is ``float32[examples, ...]``, or ``int32`` where no file holds a number with a fraction or an
    exponent; ``y`` is ``int32[examples, ...]``, and its largest value plus one is ``classes``, unless there are
    negative labels. Whatever else a file holds is not read. Text is refused: it needs a vocabulary first.

    Args:
      path: a file or a folder.
      test: a file or a folder of the test part, for a ``path`` that has none.
      shape: of one example of ``x``, to make images of LEAF's flat lists: ``(28, 28, 1)``.
      test_fraction: divides the examples of each client, by ``fedjax_sim.data.split``, where there is no test part.
      seed: for ``test_fraction``.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: a file is damaged, is no JSON, lacks a key, or its parts do not fit together; it begins with the
        file's name. Also for options that exclude each other.

    Source: Caldas et al. 2018, LEAF: a benchmark for federated settings (arXiv 1812.01097).

    Example:
      >>> import json, tempfile, pathlib, fedjax_sim as fs
      >>> toy = {"users": ["ann", "bo"], "num_samples": [1, 2],
      ...        "user_data": {"ann": {"x": [[0.5, 1]], "y": [2]}, "bo": {"x": [[0, 0], [3, 4]], "y": [0, 1]}}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "toy.json").write_text(json.dumps(toy))
      ...     data = fs.data.leaf(folder + "/toy.json", test_fraction=0.5)
      >>> data.train.ids, data.train.sizes, data.test.sizes, data.classes
      (array(['ann', 'bo'], dtype='<U3'), array([1, 1]), array([0, 1]), 3)
    """
    path = Path(path)
    train_path, test_path = _parts(path, None if test is None else Path(test))
    if test_path is not None and test_fraction is not None:
        raise ValueError(f"{path} has a test part, {test_path}, expected no test_fraction. Leave it out.")
    train = _read_part(train_path)
    tested = {} if test_path is None else _read_part(test_path)

    clients = [*train.values(), *tested.values()]
    ids = list({**train, **tested})
    layout = {name: _layout(name, clients) for name in ("x", "y")}
    data, test_data = (
        _client_data(part, ids, layout, None if shape is None else tuple(shape), path)
        for part in (train, tested)
    )
    if data.num_examples == 0:
        raise ValueError(f"{train_path}: no user has an example, expected at least one.")
    if test_fraction is not None:
        data, test_data = split(data, test_fraction, seed)
    labels = np.concatenate([np.asarray(part.columns["y"]).ravel() for part in (data, test_data)])
    classes = int(labels.max()) + 1 if labels.size and labels.min() >= 0 else None
    return Federated(data, test_data, name=_name(path), classes=classes)


def _name(path: Path) -> str:
    name = path.resolve().name
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _parts(path: Path, test: Path | None) -> tuple[Path, Path | None]:
    """Where the training and the test part are."""
    inner = path / "train", path / "test"
    there = [folder.is_dir() for folder in inner]
    if not any(there):
        return path, test
    if not all(there):
        present, absent = inner if there[0] else inner[::-1]
        raise ValueError(
            f"{path} has a folder {present.name!r} but no folder {absent.name!r}, expected both. "
            f"To read one alone, give {present}."
        )
    if test is not None:
        raise ValueError(f"{path} has a folder 'test' of its own, expected no test={str(test)!r}.")
    return inner


def _read_part(path: Path) -> dict[str, User]:
    """All users of a file, or of the files of a folder."""
    clients: dict[str, User] = {}
    for file in _files(path):
        for client in read_file(file):
            if client.user in clients:
                raise ValueError(
                    f"user {client.user!r} is in {clients[client.user].file} and in {file}, expected every user in "
                    "one file of a part. Join the user's examples first."
                )
            clients[client.user] = client
    return clients


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        check_is_file(path)
        return [path]
    # Names that begin with a dot are what file managers leave behind.
    files = sorted(
        file for file in path.iterdir() if file.name.endswith(_SUFFIXES) and not file.name.startswith(".")
    )
    if not files:
        raise ValueError(
            f"{path} holds no .json or .json.gz file, expected some, or folders 'train' and 'test'."
        )
    return files


def _layout(name: str, clients: Iterable[User]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape of one row of a column, and its dtype, over all clients of both parts."""
    filled = [client for client in clients if len(client.columns[name])]
    if not filled:
        return (), np.dtype(np.int32)
    expected = filled[0].columns[name].shape[1:]
    for client in filled:
        found = client.columns[name].shape[1:]
        if found != expected:
            raise ValueError(
                f"{client.file}: user {client.user!r} has rows of {name!r} of shape {list(found)}, user "
                f"{filled[0].user!r} of {filled[0].file} has {list(expected)}; expected one shape for all."
            )
    # A file may hold 1 for 1.0: one client with a fraction makes floats of everybody.
    return expected, np.result_type(*{client.columns[name].dtype for client in filled})


def _client_data(
    part: dict[str, User],
    ids: list[str],
    layout: dict[str, tuple[tuple[int, ...], np.dtype]],
    shape: tuple[int, ...] | None,
    path: Path,
) -> ClientData:
    columns = {}
    for name, (row, dtype) in layout.items():
        own = [part[user].columns[name] for user in ids if user in part and len(part[user].columns[name])]
        dtype = np.dtype(np.float32) if dtype.kind == "f" else dtype
        columns[name] = np.concatenate([np.zeros((0, *row), dtype), *own], dtype=dtype)
    if shape is not None:
        columns["x"] = _reshaped(columns["x"], shape, path)
    sizes = [len(part[user].columns["y"]) if user in part else 0 for user in ids]
    return ClientData(columns, offsets_of(np.asarray(sizes)), np.asarray(ids))


def _reshaped(x: np.ndarray, shape: tuple[int, ...], path: Path) -> np.ndarray:
    for size in shape:
        checks.positive_int("shape", size)
    row = x.shape[1:]
    if math.prod(row) != math.prod(shape):
        raise ValueError(
            f"{path}: shape is {list(shape)}, {math.prod(shape)} numbers, but a row of x has {math.prod(row)} "
            f"(shape {list(row)}); expected as many."
        )
    return x.reshape(len(x), *shape)
