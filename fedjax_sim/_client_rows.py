"""Rows of a client table as bytes, as they are moved between memory, tables outside of it (``RowTable``) and checkpoints."""

from __future__ import annotations

import abc
import copy
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.engines._state import ClientTable

PIECE = 16 << 20
"""Bytes of rows that are moved at a time; at least one row is."""


class ScratchError(OSError):
    """Client state that cannot be kept where it was to be: the place is missing, full, or cannot be read or written."""


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

    def leaves(self, make: Callable[[int, tuple[int, ...], np.dtype], Any]) -> ClientTable:
        """A table of what is made for each leaf of a row: from its first byte, its shape and its type."""
        return jax.tree.unflatten(self._structure, [make(*leaf) for leaf in self._leaves])

    def split(self, raw: np.ndarray) -> ClientTable:
        """Views of ``uint8[..., row_bytes]`` as a table with leaves ``[..., *shape]``."""

        def leaf(start, shape, dtype):
            part = raw[..., start : start + math.prod(shape) * dtype.itemsize].view(dtype)
            return part.reshape(*raw.shape[:-1], *shape)

        return self.leaves(leaf)

    def at(self, table: ClientTable, index: tuple, rows: int) -> np.ndarray:
        """Rows of a table in memory, ``uint8[rows, row_bytes]``."""
        raw = np.zeros((rows, self.row_bytes), np.uint8)

        def fill(part, leaf):
            part[...] = leaf[index]

        jax.tree.map(fill, self.split(raw), table)
        return raw

    def zeros(self) -> ClientTable:
        """A table in memory, none of which is taken before rows are written."""
        return self.leaves(lambda _, shape, dtype: np.zeros((*self.lead, *shape), dtype))

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


class RowTable(abc.ABC):
    """Rows of a table outside of memory, by their place: replica times rows, plus client.

    Rows that are zero, and have never been anything else, take no space. All space is free again when the last leaf of
    ``table`` is gone.

    Attributes:
      layout: of the rows.
    """

    layout: RowLayout

    @abc.abstractmethod
    def table(self) -> ClientTable:
        """The whole table, in read-only leaves that show what is written later, too, and hold its space."""

    @abc.abstractmethod
    def gather(self, places: np.ndarray) -> np.ndarray:
        """Rows, ``uint8[n, row_bytes]``, of places that ascend.

        Raises:
          ScratchError: they cannot be read.
        """

    @abc.abstractmethod
    def put(self, places: np.ndarray, raw: np.ndarray) -> None:
        """Writes rows to places that ascend.

        Raises:
          ScratchError: there is no room for them.
        """

    @abc.abstractmethod
    def written(self) -> Iterator[np.ndarray]:
        """Places of rows that were written, ascending, a piece at a time; also of some that were not."""


Opener = Callable[[RowLayout], RowTable]
"""Makes a table of zeros."""


def row_table(table: ClientTable) -> RowTable | None:
    """What a table is the whole of, if it lies outside of memory."""
    leaves = jax.tree.leaves(table)
    base = next((leaf for leaf in leaves if getattr(leaf, "size", 0)), None)
    while base is not None and not isinstance(base, RowTable):
        base = getattr(base, "base", None)
    if base is None:
        return None
    whole = jax.tree.leaves(base.table())
    return base if len(whole) == len(leaves) and all(map(_same_rows, leaves, whole)) else None


def _same_rows(a: Any, b: Any) -> bool:
    """Whether a leaf is that of a table: it looks at the same place."""
    if type(a) is not type(b) or a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not isinstance(a, np.ndarray):
        return a.same(b)
    where = [(x.__array_interface__["data"][0], x.strides) for x in (a, b)]
    return not a.size or where[0] == where[1]


def used_rows(table: ClientTable, layout: RowLayout) -> Iterator[Rows]:
    """The rows of a table that are not zero, wherever it lies, a piece at a time, ascending."""
    *replicas, rows = layout.lead
    outside = row_table(table)
    if outside is not None:
        for places in outside.written():
            yield _not_zero(*np.divmod(places, rows), outside.gather(places))
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


def moved(table: ClientTable, layout: RowLayout, rows: int, opener: Opener) -> ClientTable:
    """A copy of a table, in one that is opened for it, with another number of rows; ``layout`` is the table's own."""
    new = opener(layout.with_rows(rows))
    for part in used_rows(table, layout):
        kept = part.client < rows
        new.put((part.replica * rows + part.client)[kept], part.raw[kept])
    return new.table()
