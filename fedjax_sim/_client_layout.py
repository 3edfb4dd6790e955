"""A client's row as bytes, in which tables outside of memory and checkpoints keep it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from fedjax_sim.engines._state import ClientTable

PIECE = 16 << 20
"""Bytes of rows that are moved at a time; at least one row is."""


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
