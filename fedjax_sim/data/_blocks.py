"""Examples of many clients, some clients at a time: so much of a set that is made when it is wanted is in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.client_source import Clients

HELD_BYTES = 10**9
"""A set of clients that are made when they are wanted is made once and kept if its examples take no more."""

BLOCK_BYTES = 1 << 26
"""Of a larger set so much is made at a time; or one client, if it takes more."""

Check = Callable[[Mapping[str, Any]], None]
"""A task's check of columns."""

Examples = Callable[[np.ndarray], tuple[Any, np.ndarray]]
"""Positions of clients to columns with their examples, and the row at which each of them begins."""


def held(data: Clients) -> ClientData | None:
    """All examples, where they are in memory or few enough to be kept there; see ``HELD_BYTES``."""
    if isinstance(data, ClientData) or "in_memory" in vars(data) or data.nbytes <= HELD_BYTES:
        return data.in_memory
    return None


def pieces(sizes: np.ndarray, most: int) -> Iterator[slice]:
    """Neighbours with at most ``most`` examples together; who has more is alone.

    Example:
      >>> list(pieces(np.array([2, 1, 0, 9, 1]), 3))
      [slice(0, 3, None), slice(3, 4, None), slice(4, 5, None)]
    """
    ends, start = np.cumsum(sizes), 0
    while start < len(sizes):
        before = ends[start] - sizes[start]
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield slice(start, stop)
        start = stop


def batch_blocks(data: Clients, batch_size: int, check: Check | None) -> Iterator[dict[str, np.ndarray]]:
    """All examples in order: one block if they are held, else blocks of whole batches, but for the last.

    Two blocks are in memory at the most: the one that was given last, and the next, while it is made.
    """
    kept = held(data)
    if kept is not None:
        if check is not None:
            check(kept.columns)
        yield dict(kept.columns)
        return
    most = max(1, BLOCK_BYTES * data.num_examples // data.nbytes)
    rest, over = {}, 0
    for part in pieces(data.sizes, most):
        size = over + int(data.sizes[part].sum())
        columns = {name: np.empty((size, *x.shape[1:]), x.dtype) for name, x in data.columns.items()}
        for name, rows in rest.items():
            columns[name][:over] = rows
        made = {name: column[over:] for name, column in columns.items()}
        data.read(np.arange(part.start, part.stop), made)
        if check is not None and size > over:
            _checked(check, made, data.ids[part])
        whole = size // batch_size * batch_size
        rest, over = {name: column[whole:].copy() for name, column in columns.items()}, size - whole
        if whole:
            yield {name: column[:whole] for name, column in columns.items()}
    if over:
        yield rest


def _checked(check: Check, columns: Mapping[str, np.ndarray], ids: np.ndarray) -> None:
    try:
        check(columns)
    except Exception as error:
        error.add_note(f"rows are counted from the first of client {ids[0].item()!r}")
        raise


class Held(NamedTuple):
    """``Examples`` that are all there.

    Attributes:
      columns: of all clients, on a device or not.
      starts: ``int64[clients]``.
    """

    columns: Any
    starts: np.ndarray

    def __call__(self, clients: np.ndarray) -> tuple[Any, np.ndarray]:
        return self.columns, self.starts[clients]


def some_at_a_time(data: Clients, clients: np.ndarray, block: int, check: Check | None) -> Examples:
    """The examples of these clients: all of the set if they are held, else those of ``block`` clients at a time."""
    kept = held(data)
    if kept is None:
        return Made(data, clients, block, check)
    if check is not None:
        check(kept.columns)
    return Held(dict(kept.columns), kept.offsets[:-1])


class Made:
    """``Examples`` that are made or read when they are wanted, in arrays of one length.

    Args:
      data: where from.
      clients: who may be asked for.
      block: how many of them at a time.
      check: the task's.
    """

    def __init__(self, data: Clients, clients: np.ndarray, block: int, check: Check | None):
        self._data, self._check = data, check
        self._rows = max(1, int(np.sort(data.sizes[clients])[-block:].sum()))

    def __call__(self, clients: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        data, sizes = self._data, self._data.sizes[clients]
        columns = {name: np.zeros((self._rows, *x.shape[1:]), x.dtype) for name, x in data.columns.items()}
        data.read(clients, columns)
        rows = int(sizes.sum())
        if self._check is not None and rows:
            _checked(self._check, {name: x[:rows] for name, x in columns.items()}, data.ids[clients])
        return columns, np.cumsum(sizes) - sizes
