"""Rows of a client table as they are moved between memory, stores and checkpoints, a piece at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import numpy as np

from fedjax_sim._client_layout import RowLayout
from fedjax_sim._client_store import StoredLeaf, StoreTable
from fedjax_sim.engines._state import ClientTable

Opener = Callable[[RowLayout], StoreTable]
"""Makes a table of zeros."""


class Rows(NamedTuple):
    """Some rows: whose they are, ``int64[n]`` each, and ``uint8[n, row_bytes]``."""

    replica: np.ndarray
    client: np.ndarray
    raw: np.ndarray


def row_table(table: ClientTable) -> StoreTable | None:
    """What a table is the whole of, if it lies outside of memory."""
    leaves = jax.tree.leaves(table)
    if not leaves or not all(isinstance(leaf, StoredLeaf) for leaf in leaves):
        return None
    whole = jax.tree.leaves(leaves[0].base.table())
    return leaves[0].base if len(whole) == len(leaves) and all(map(StoredLeaf.same, leaves, whole)) else None


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
