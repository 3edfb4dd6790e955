"""Folders of LEAF's JSON: which files make the training and the test part, and the users of both as clients."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_sim.data._columns import offsets_of
from fedjax_sim.data._files import check_is_file
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.formats._leaf_file import Convert, User, read_file

_SUFFIXES = (".json", ".json.gz")


class Users(NamedTuple):
    """The users of a set by their ids.

    Attributes:
      train: those of the training files.
      test: those of the test files; ``None`` where there are none.
      name: of the set.
    """

    train: dict[str, User]
    test: dict[str, User] | None
    name: str


def read_users(
    path: str | Path, test: str | Path | None, test_fraction: float | None, convert: Convert
) -> Users:
    """All users of a file, of a folder, or of a folder with ``train`` and ``test``; see ``leaf``.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: as ``leaf``.
    """
    path = Path(path)
    train_path, test_path = _parts(path, None if test is None else Path(test))
    if test_path is not None and test_fraction is not None:
        raise ValueError(f"{path} has a test part, {test_path}, expected no test_fraction. Leave it out.")
    train = _read_part(train_path, convert)
    tested = None if test_path is None else _read_part(test_path, convert)
    if not any(len(user.columns["y"]) for user in train.values()):
        raise ValueError(f"{train_path}: no user has an example, expected at least one.")
    return Users(train, tested, _name(path))


def join_users(users: Users) -> tuple[ClientData, ClientData]:
    """Both parts, of the same clients in the same order: as the training files name them, then those of the test alone.

    Raises:
      ValueError: rows of different shapes.
    """
    train, tested = users.train, users.test or {}
    ids = list({**train, **tested})
    clients = [*train.values(), *tested.values()]
    layout = {name: _layout(name, clients) for name in ("x", "y")}
    return _client_data(train, ids, layout), _client_data(tested, ids, layout)


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


def _read_part(path: Path, convert: Convert) -> dict[str, User]:
    """All users of a file, or of the files of a folder."""
    clients: dict[str, User] = {}
    for file in _files(path):
        for client in read_file(file, convert):
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
) -> ClientData:
    columns = {}
    for name, (row, dtype) in layout.items():
        own = [part[user].columns[name] for user in ids if user in part and len(part[user].columns[name])]
        dtype = np.dtype(np.float32) if dtype.kind == "f" else dtype
        columns[name] = np.concatenate([np.zeros((0, *row), dtype), *own], dtype=dtype)
    sizes = [len(part[user].columns["y"]) if user in part else 0 for user in ids]
    return ClientData(columns, offsets_of(np.asarray(sizes)), np.asarray(ids))
