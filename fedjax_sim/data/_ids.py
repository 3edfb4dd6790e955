"""Ids of clients: all integers or all text, unique, and hashable as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


class StaticIds:
    """Ids as the static part of a pytree: compared by content, hashed once.

    JAX hashes and compares it on every call of a compiled function, so both must be cheap for many clients.
    """

    def __init__(self, values: np.ndarray):
        if len(values) == 0:
            raise ValueError("ids is empty, expected at least one client.")
        # Most are ascending, which is seen without sorting a million of them.
        if not (values[1:] > values[:-1]).all():
            unique, counts = np.unique(values, return_counts=True)
            if len(unique) != len(values):
                raise ValueError(
                    f"ids hold {unique[counts > 1][0].item()!r} more than once, expected unique ids. "
                    "Group a client's rows first: ClientData.from_arrays does."
                )
        self.values = values.copy()
        self.values.setflags(write=False)  # the cached hash must stay true
        self._hash = hash((values.dtype.str, self.values.tobytes()))

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return (
            isinstance(other, StaticIds)
            and self._hash == other._hash
            and self.values.dtype == other.values.dtype
            and np.array_equal(self.values, other.values)
        )

    def __repr__(self) -> str:
        return f"StaticIds({preview(self.values)})"

    def __reduce__(self):
        # Text hashes are salted per process: a hash that came with a pickle would be wrong here.
        return StaticIds, (self.values,)


def as_ids(name: str, values: Any) -> np.ndarray:
    """Ids as ``int64[...]`` or text ``[...]`` (``uint64`` where int64 cannot hold them).

    Raises:
      TypeError: they are neither all integers nor all text, or not one-dimensional.
      ValueError: one ends with a zero byte.
    """
    if hasattr(values, "dtype"):
        values = np.asarray(values)
    else:
        values = list(values)
        # np.asarray([1, "a"]) would make text of the integer.
        types = {type(value.item() if isinstance(value, np.generic) else value) for value in values}
        if not (types <= {int} or types <= {str}):
            found = ", ".join(sorted(kind.__name__ for kind in types))
            raise TypeError(
                f"{name} holds values of type {found}, expected all int or all str. Convert with str()."
            )
        given, values = values, np.asarray(values, dtype=None if values else np.int64)
        if types == {str}:
            check_whole(name, given, values)
    if values.ndim != 1 or values.dtype.kind not in "iuU":
        raise TypeError(
            f"{name} is {values.dtype}{list(values.shape)}, expected integers or text, one-dimensional. "
            f"Convert with {name}.astype(np.int64) or {name}.astype(str)."
        )
    return values.astype(np.int64) if np.can_cast(values.dtype, np.int64) else values


def check_whole(name: str, given: Sequence[str], array: np.ndarray) -> None:
    """Raises ``ValueError`` for text of which numpy dropped zero bytes at the end, so that two ids could become one."""
    lengths = np.fromiter(map(len, given), np.int64, len(given))
    wrong = np.flatnonzero(np.char.str_len(array) != lengths)
    if wrong.size:
        raise ValueError(f"{name} holds {given[wrong[0]]!r}, which ends with a zero byte. Rename it.")


def look_up(ids: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Positions in ``ids`` of the ``wanted`` ones, ``int64[...]``.

    Raises:
      ValueError: one of them is not there.
    """
    if len(wanted) == 0:
        return np.zeros(0, np.int64)
    missing = np.ones(len(wanted), bool)
    positions = np.zeros(len(wanted), np.int64)
    if len(ids) and (ids.dtype.kind == "U") == (wanted.dtype.kind == "U"):
        order = np.argsort(ids, kind="stable")
        positions = order[np.minimum(np.searchsorted(ids, wanted, sorter=order), len(ids) - 1)]
        missing = ids[positions] != wanted
    if missing.any():
        raise ValueError(
            f"no client has the id {wanted[missing][0].item()!r}, expected one of the {len(ids)} ids {preview(ids)}."
        )
    return positions


def preview(ids: np.ndarray) -> str:
    """The first few ids, for messages."""
    shown = ", ".join(repr(value.item()) for value in ids[:3])
    return shown + (", ..." if len(ids) > 3 else "")
