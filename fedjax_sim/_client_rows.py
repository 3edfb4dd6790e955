"""Rows of a client table as bytes: in a file without a name, and as they are moved between memory, such files and checkpoints."""

from __future__ import annotations

import contextlib
import copy
import errno
import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from fedjax_sim.engines._state import ClientTable

PIECE = 16 << 20
"""Bytes of rows that are moved at a time; at least one row is."""


class ScratchError(OSError):
    """Client state that cannot be kept on disk: the folder is missing, full, or cannot be written."""


class RowLayout:
    """Where the leaves of a client's row lie in its bytes: one after the other, each at a multiple of eight.

    Attributes:
      row_bytes: of one row.
      lead: replicas, if there are any, and rows.

    Args:
      table: arrays or their specs, leaves ``[rows, ...]`` or ``[replicas, rows, ...]``.
      axis: of the rows.
    """

    def __init__(self, table: ClientTable, axis: int):
        leaves, self._structure = jax.tree.flatten(table)
        self.lead: tuple[int, ...] = tuple(leaves[0].shape[: axis + 1])
        self._leaves, end = [], 0
        for leaf in leaves:
            shape, dtype = tuple(leaf.shape[axis + 1 :]), np.dtype(leaf.dtype)
            self._leaves.append((end, shape, dtype))
            end += -(-math.prod(shape) * dtype.itemsize // 8) * 8
        self.row_bytes = max(8, end)

    def split(self, raw: np.ndarray) -> ClientTable:
        """Views of ``uint8[..., row_bytes]`` as a table with leaves ``[..., *shape]``."""
        leaves = []
        for start, shape, dtype in self._leaves:
            part = raw[..., start : start + math.prod(shape) * dtype.itemsize].view(dtype)
            leaves.append(part.reshape(*raw.shape[:-1], *shape))
        return jax.tree.unflatten(self._structure, leaves)

    def at(self, table: ClientTable, index: tuple, rows: int) -> np.ndarray:
        """Rows of a table in memory, ``uint8[rows, row_bytes]``."""
        raw = np.zeros((rows, self.row_bytes), np.uint8)

        def fill(part, leaf):
            part[...] = leaf[index]

        jax.tree.map(fill, self.split(raw), table)
        return raw

    def zeros(self) -> ClientTable:
        """A table in memory, none of which is taken before rows are written."""
        leaves = [np.zeros((*self.lead, *shape), dtype) for _, shape, dtype in self._leaves]
        return jax.tree.unflatten(self._structure, leaves)

    def with_rows(self, rows: int) -> RowLayout:
        """The same for a table with so many rows."""
        other = copy.copy(self)
        other.lead = (*self.lead[:-1], rows)
        return other

    @property
    def piece(self) -> int:
        """Rows that are moved at a time."""
        return max(1, PIECE // self.row_bytes)


class Rows(NamedTuple):
    """Some rows: whose they are, ``int64[n]`` each, and ``uint8[n, row_bytes]``."""

    replica: np.ndarray
    client: np.ndarray
    raw: np.ndarray


class DiskTable(mmap.mmap):
    """Rows in a file without a name: the space is free again when the last array that looks into it is gone, or the process.

    Arrays look into the file through a mapping that is read-only. Rows are written with ``put``: where the disk is full, a write
    into a mapping would end the process, this one is a ``ScratchError``. Rows that are zero, and have never been anything else,
    take no space.

    Args:
      folder: on the disk that is to be used.
      layout: of its rows.

    Raises:
      ScratchError: the folder cannot be written, or its file system has no files so large.
    """

    folder: Path
    layout: RowLayout
    _bytes: int
    _file: int = -1

    # An mmap is made by __new__, so that its attributes are, too.
    def __new__(cls, folder: Path, layout: RowLayout) -> DiskTable:
        size = math.prod(layout.lead) * layout.row_bytes
        with explained(folder, size), tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            os.truncate(file.fileno(), size)
            self = super().__new__(cls, file.fileno(), size, access=mmap.ACCESS_READ)
            self.folder, self.layout, self._bytes, self._file = folder, layout, size, os.dup(file.fileno())
        return self

    def __del__(self, close=os.close):  # os may be gone at the end of the process
        if self._file >= 0:
            close(self._file)

    def table(self) -> ClientTable:
        """The whole table, in arrays that hold the file open."""
        return self.layout.split(np.ndarray((*self.layout.lead, self.layout.row_bytes), np.uint8, self))

    def gather(self, records: np.ndarray) -> np.ndarray:
        """Rows by their place in the file, ``uint8[n, row_bytes]``."""
        row, runs = self.layout.row_bytes, _runs(records)
        if hasattr(os, "posix_fadvise"):  # all at once, the disk finds its own order
            for start, stop in runs:
                at, size = int(records[start]) * row, (stop - start) * row
                os.posix_fadvise(self._file, at, size, os.POSIX_FADV_WILLNEED)
        # Not through the mapping: a file system in memory would take a page for each one of a hole that is looked at.
        raw = np.empty((len(records), row), np.uint8)
        with explained(self.folder, self._bytes):
            for start, stop in runs:
                at, part = int(records[start]) * row, raw[start:stop].reshape(-1).data
                while part:
                    count = os.preadv(self._file, [part], at)
                    if not count:
                        raise OSError(errno.EIO, "the file ends too soon")
                    at, part = at + count, part[count:]
        return raw

    def put(self, records: np.ndarray, raw: np.ndarray) -> None:
        """Writes rows at their place in the file.

        Raises:
          ScratchError: the disk is full.
        """
        row = self.layout.row_bytes
        with explained(self.folder, self._bytes):
            for start, stop in _runs(records):
                at, part = int(records[start]) * row, raw[start:stop].reshape(-1).data
                while part:
                    count = os.pwrite(self._file, part, at)
                    at, part = at + count, part[count:]

    def written(self) -> Iterator[np.ndarray]:
        """Places of rows that were written, ascending, a piece at a time; also of some that were not."""
        row, piece, found, first = self.layout.row_bytes, self.layout.piece, [], 0
        count = 0
        for start, stop in self._extents():
            begin, end = max(first, start // row), -(-stop // row)
            first = end
            while begin < end:
                part = np.arange(begin, min(end, begin + piece - count), dtype=np.int64)
                found.append(part)
                begin, count = begin + len(part), count + len(part)
                if count == piece:
                    yield np.concatenate(found)
                    found, count = [], 0
        if found:
            yield np.concatenate(found)

    def _extents(self) -> Iterator[tuple[int, int]]:
        """Parts of the file that are no holes, where the system says which are; else all of it."""
        if not hasattr(os, "SEEK_DATA"):
            yield 0, self._bytes
            return
        file, stop = self._file, 0
        while stop < self._bytes:
            try:
                start = os.lseek(file, stop, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                return
            stop = os.lseek(file, start, os.SEEK_HOLE)
            yield start, stop


def disk_table(table: ClientTable) -> DiskTable | None:
    """The file that a table is the whole of, if it lies in one."""
    leaves = jax.tree.leaves(table)
    base = next((leaf for leaf in leaves if getattr(leaf, "size", 0)), None)
    while isinstance(base, np.ndarray):
        base = base.base
    if not isinstance(base, DiskTable):
        return None
    whole = jax.tree.leaves(base.table())
    same = len(whole) == len(leaves) and all(map(_same_memory, leaves, whole))
    return base if same else None


def _same_memory(a: np.ndarray, b: np.ndarray) -> bool:
    if not isinstance(a, np.ndarray) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    where = [(x.__array_interface__["data"][0], x.strides) for x in (a, b)]
    return not a.size or where[0] == where[1]


def used_rows(table: ClientTable, layout: RowLayout) -> Iterator[Rows]:
    """The rows of a table that are not zero, wherever it lies, a piece at a time, ascending."""
    *replicas, rows = layout.lead
    disk = disk_table(table)
    if disk is not None:
        for records in disk.written():
            yield _not_zero(*np.divmod(records, rows), disk.gather(records))
        return
    for replica in range(*replicas or (1,)):
        for start in range(0, rows, layout.piece):
            part = slice(start, min(start + layout.piece, rows))
            raw = layout.at(table, (replica, part) if replicas else (part,), part.stop - start)
            yield _not_zero(np.full(len(raw), replica), np.arange(start, part.stop), raw)


def _not_zero(replica: np.ndarray, client: np.ndarray, raw: np.ndarray) -> Rows:
    # By their bytes, since -0.0 is not zero.
    used = raw.view(np.uint64).any(axis=1)
    return Rows(replica, client, raw) if used.all() else Rows(replica[used], client[used], raw[used])


def on_disk(table: ClientTable, layout: RowLayout, rows: int, folder: Path) -> ClientTable:
    """A copy of a table, in a file, with another number of rows; ``layout`` is the table's own."""
    disk = DiskTable(folder, layout.with_rows(rows))
    for part in used_rows(table, layout):
        kept = part.client < rows
        disk.put((part.replica * rows + part.client)[kept], part.raw[kept])
    return disk.table()


def _runs(records: np.ndarray) -> list[tuple[int, int]]:
    """Parts of ascending places that follow on one another."""
    cuts = np.flatnonzero(np.diff(records) != 1) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(records)], strict=True)) if len(records) else []


def scratch_folder() -> Path:
    """Where large temporary files go: ``TMPDIR`` if it is set, ``/var/tmp`` if it can be written, since ``/tmp`` may be memory."""
    usual = Path("/var/tmp")
    if "TMPDIR" in os.environ or not os.access(usual, os.W_OK):
        return Path(tempfile.gettempdir())
    return usual


@contextlib.contextmanager
def explained(folder: Path, size: int) -> Iterator[None]:
    """Says of an error of the system which folder it was, what for, and what to do."""
    try:
        yield
    except OSError as error:
        raise ScratchError(
            error.errno,
            f"client state cannot be kept in {folder} ({error.strerror}): its table grows to {size / 1e9:.3g} GB with the "
            "clients that take part. Name a folder with room for it, Simulation(client_state=pathlib.Path(...))",
        ) from error
