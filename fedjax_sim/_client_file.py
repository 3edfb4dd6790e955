"""Client rows in a file without a name, on a disk of this machine."""

from __future__ import annotations

import contextlib
import errno
import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedjax_sim._client_rows import RowLayout, RowTable, ScratchError
from fedjax_sim.engines._state import ClientTable


class DiskTable(mmap.mmap, RowTable):
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

    def gather(self, places: np.ndarray) -> np.ndarray:
        row, runs = self.layout.row_bytes, _runs(places)
        if hasattr(os, "posix_fadvise"):  # all at once, the disk finds its own order
            for start, stop in runs:
                at, size = int(places[start]) * row, (stop - start) * row
                os.posix_fadvise(self._file, at, size, os.POSIX_FADV_WILLNEED)
        # Not through the mapping: a file system in memory would take a page for each one of a hole that is looked at.
        raw = np.empty((len(places), row), np.uint8)
        with explained(self.folder, self._bytes):
            for start, stop in runs:
                at, part = int(places[start]) * row, raw[start:stop].reshape(-1).data
                while part:
                    count = os.preadv(self._file, [part], at)
                    if not count:
                        raise OSError(errno.EIO, "the file ends too soon")
                    at, part = at + count, part[count:]
        return raw

    def put(self, places: np.ndarray, raw: np.ndarray) -> None:
        row = self.layout.row_bytes
        with explained(self.folder, self._bytes):
            for start, stop in _runs(places):
                at, part = int(places[start]) * row, raw[start:stop].reshape(-1).data
                while part:
                    count = os.pwrite(self._file, part, at)
                    at, part = at + count, part[count:]

    def written(self) -> Iterator[np.ndarray]:
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


def _runs(places: np.ndarray) -> list[tuple[int, int]]:
    """Parts of ascending places that follow on one another."""
    cuts = np.flatnonzero(np.diff(places) != 1) + 1
    return list(zip([0, *cuts.tolist()], [*cuts.tolist(), len(places)], strict=True)) if len(places) else []


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
