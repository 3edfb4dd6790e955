"""Sets whose rows come in any order, written by client a piece at a time: what ``store=`` of a source of tables does.

Two passes. The first reads who owns each row and counts; then every row has its place, and the second reads the columns
and puts them there, in files that are mapped into memory. So memory holds one piece, and some thirty bytes for each row.
"""

from __future__ import annotations

import functools
import re
import types
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data._columns import check_columns
from fedjax_sim.data._files import errors_name
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data.federated import Federated, rows_of_test
from fedjax_sim.data.formats import _tables, stored

PIECE = 1 << 22
"""Bytes of a file that are read at a time, about."""

TRAIN, TEST, NEITHER = 0, 1, -1

_CHANGED = "the second reading found other rows than the first: a file changed meanwhile. Read it again."


class Codes:
    """Ids, or names of parts, that come in pieces; kept as small integers."""

    def __init__(self, what: str):
        self._what, self._known, self._pieces = what, dict[Any, int](), list[np.ndarray]()

    def add(self, values: np.ndarray) -> None:
        """The next rows.

        Raises:
          ValueError: text where numbers were, or the other way.
        """
        unique, inverse = np.unique(values, return_inverse=True)
        names = unique.tolist()
        if names and self._known and isinstance(names[0], str) != isinstance(next(iter(self._known)), str):
            raise ValueError(f"{self._what} holds text and numbers, expected one of them.")
        codes = [self._known.setdefault(name, len(self._known)) for name in names]
        self._pieces.append(np.asarray(codes, np.int32)[inverse.reshape(-1)])

    def done(self) -> tuple[np.ndarray, np.ndarray]:
        """All that occur, sorted, and the position of each row among them, ``int32[rows]``."""
        names = np.asarray(list(self._known))
        order = np.argsort(names)
        position = np.empty(len(order), np.int32)
        position[order] = np.arange(len(order), dtype=np.int32)
        return names[order], position[np.concatenate(self._pieces)]


class Owned(NamedTuple):
    """What the first pass finds.

    Attributes:
      ids: of all clients, ``[clients]``.
      owner: positions in them, ``int32[rows]``.
      part: ``int8[rows]``: ``TRAIN``, ``TEST`` or ``NEITHER``.
    """

    ids: np.ndarray
    owner: np.ndarray
    part: np.ndarray

    def split(self, test_fraction: float, seed: int) -> Owned:
        """The same, each client's examples divided as ``fedjax_sim.data.split`` does."""
        part = np.empty(len(self.owner), np.int8)
        by_client = np.argsort(self.owner, kind="stable")
        part[by_client] = rows_of_test(self._sizes(slice(None)), test_fraction, seed)
        return self._replace(part=part)

    def _sizes(self, rows: Any) -> np.ndarray:
        return np.bincount(self.owner[rows], minlength=len(self.ids)).astype(np.int64)

    def places(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Each row's place in its part, ``int64[rows]``, by client and then as they come; and sizes of clients by part."""
        place, sizes = np.full(len(self.owner), -1, np.int64), []
        for part in (TRAIN, TEST):
            rows = np.flatnonzero(self.part == part)
            place[rows[np.argsort(self.owner[rows], kind="stable")]] = np.arange(len(rows))
            sizes.append(self._sizes(rows))
        return place, sizes


class Classes:
    """The number of classes, of labels that come in pieces, by the rules of ``_tables.make_labels``."""

    def __init__(self) -> None:
        self._found: list[int | None] = []

    def see(self, found: int | None) -> None:
        """What ``make_labels`` says of a piece."""
        self._found.append(found)

    @property
    def count(self) -> int | None:
        """Of all pieces; ``None`` where one has no labels or negative ones."""
        known = [one for one in self._found if one is not None]
        return max(known, default=None) if len(known) == len(self._found) else None


def place(
    folder: str | Path,
    owned: Owned,
    pieces: Iterable[Mapping[str, np.ndarray]],
    *,
    source: Path | str,
    name: str,
    classes: Callable[[], int | None],
    notes: tuple[str, ...] = (),
    made_of: Mapping[str, Any] | None = None,
) -> Federated:
    """Writes a set as ``fedjax_sim.data.write`` does, and returns it, memory-mapped.

    Args:
      folder: must not exist yet.
      owned: who has which row.
      pieces: columns ``[rows of the piece, ...]``, in the order of the rows.
      source: for messages.
      name: of the set.
      classes: their number, asked when all pieces have come.
      notes: of the set.
      made_of: what it is made of; see ``made_before``.

    Raises:
      FileExistsError: the folder exists.
      ValueError: pieces that differ in their columns, or have other rows than were counted.
    """
    folder = Path(folder)
    places, sizes = owned.places()
    with stored.new_folder(folder) as (partial, manifest):
        files: list[dict[str, np.ndarray]] = []
        first: dict[str, np.ndarray] = {}
        start = 0
        for piece in pieces:
            with errors_name(source):
                columns, rows = check_columns(piece)
                stop = start + rows
                if not files:
                    first = {column: values[:0] for column, values in columns.items()}
                    files = [_files(partial, part, columns, size) for part, size in enumerate(sizes)]
                _tables.check_alike(columns, first, f"what begins at row {start}", "row 0")
                if stop > len(places):
                    raise ValueError(_CHANGED)
            for part in (TRAIN, TEST):
                mine = np.flatnonzero(owned.part[start:stop] == part)
                for column, values in columns.items():
                    files[part][column][places[start:stop][mine]] = values[mine]
            start = stop
        if start != len(places):
            raise ValueError(f"{source}: {_CHANGED}")
        parts = {
            part: stored.described(partial, part, _entries(partial, part, written), owned.ids, size)
            for part, written, size in zip(("train", "test"), files, sizes, strict=True)
        }
        manifest |= {"name": name, "classes": classes(), "notes": list(notes), "parts": parts}
        manifest |= {} if made_of is None else {"made_of": made_of}
    return stored.stored(folder)


def made_before(folder: str | Path, made_of: Mapping[str, Any] | None) -> Federated | None:
    """The set in a folder that was made of the same; ``None`` where there is no such folder.

    Args:
      folder: where it may be.
      made_of: numbers and text, by name: files and settings. ``None`` where that cannot be said.

    Raises:
      FileExistsError: the folder holds something of which that cannot be said.
      ValueError: it is made of something else, or is no stored set.
    """
    folder = Path(folder)
    if not folder.exists():
        return None
    if made_of is None:
        raise FileExistsError(f"{folder} exists already and is not overwritten; name another folder.")
    found = stored.stored(folder)
    path = folder / stored.MANIFEST
    with errors_name(path):
        before = stored.parsed(path).get("made_of")
        if before != made_of:
            now = dict(made_of)
            differ = [key for key in now if not isinstance(before, dict) or before.get(key) != now[key]]
            raise ValueError(
                f"the set was made of something else ({', '.join(differ) or 'it says more'}), expected the same files and "
                "settings. Remove the folder, or name another one by store=."
            )
    return found


def made_of(files: Iterable[Path], settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a set is made of, to compare it later: names, lengths and times of files, and settings as text."""
    stats = [(path, path.stat()) for path in files]
    return {
        "files": [[str(path.resolve()), about.st_size, about.st_mtime_ns] for path, about in stats],
        **{name: _as_text(value) for name, value in settings.items()},
    }


def _as_text(value: Any) -> str:
    """Functions by their name, code and what they hold; all else as it is shown, without addresses."""
    if isinstance(value, functools.partial):
        return f"{_as_text(value.func)}({_as_text(value.args)}, {_as_text(value.keywords)})"
    if isinstance(value, types.FunctionType):
        held = [_as_text(cell.cell_contents) for cell in value.__closure__ or ()]
        code = value.__code__
        about = repr((code.co_code, code.co_consts, code.co_names, value.__defaults__, held))
        return f"{value.__module__}.{value.__qualname__} {zlib.crc32(_no_address(about).encode())}"
    if isinstance(value, Mapping):
        return str({str(key): _as_text(one) for key, one in value.items()})
    if isinstance(value, list | tuple):
        return str([_as_text(one) for one in value])
    return _no_address(repr(value))


def _no_address(text: str) -> str:
    return re.sub(r" at 0x[0-9a-f]+", "", text)


def owned_of(owners: Codes, part: np.ndarray) -> Owned:
    """What the first pass found; raises ``ValueError`` without a row."""
    ids, owner = owners.done()
    return Owned(as_ids("client", ids), owner, part)


def _files(
    folder: Path, part: int, columns: Mapping[str, np.ndarray], sizes: np.ndarray
) -> dict[str, np.ndarray]:
    """An array ``[rows, ...]`` for each column, in a file; an empty file cannot be mapped."""
    found = {}
    for place_, (name, column) in enumerate(columns.items()):
        path, shape = (
            folder / f"{('train', 'test')[part]}.{place_}.bin",
            (int(sizes.sum()), *column.shape[1:]),
        )
        if 0 in shape:
            path.touch()
            found[name] = np.empty(shape, column.dtype)
        else:
            found[name] = np.memmap(path, column.dtype, "w+", shape=shape)
    return found


def _entries(folder: Path, part: str, files: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Columns as the manifest describes them."""
    entries = {}
    for place_, (name, column) in enumerate(files.items()):
        path = folder / f"{part}.{place_}.bin"
        if isinstance(column, np.memmap):
            column.flush()
        entries[name] = {
            "dtype": stored.spelled(column.dtype),
            "shape": list(column.shape[1:]),
            "file": path.name,
            "bytes": path.stat().st_size,
            "crc32": stored.checksum_of(path),
        }
    return entries
