"""Vertical partitions: the same examples, their features split between parties."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fedjax_sim._src import checks, keys
from fedjax_sim.data._columns import column_of

_VERTICAL = 122  # purpose of the generator; above those of `keys`, so that no two decisions share a stream


class Party(NamedTuple):
    """What one party holds of every example.

    Attributes:
      columns: name to array ``[examples, ...]``: the party's features, and for the first party everything else.
      features: ``int64[features]``, which of the whole set's features these are, ascending.
    """

    columns: dict[str, np.ndarray]
    features: np.ndarray


def vertical(
    columns: Mapping[str, np.ndarray],
    parties: int | Sequence[int],
    seed: int | None = None,
    column: str = "x",
) -> tuple[Party, ...]:
    """Splits the last axis of a column between parties; the first party has the labels and all other columns, too.

    Every feature belongs to exactly one party, and rows keep their order: row ``i`` is the same person everywhere.

    Args:
      columns: name to array ``[examples, ...]``.
      parties: how many, of equal shares give or take one; or how many features each has, which add up to all.
      seed: deals the features at random; without one, each party has a stretch of neighbours.
      column: what is split, ``[examples, ..., features]``.

    Raises:
      ValueError: there is no such column, a party would have no feature, or the shares do not add up.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> bank, shop = fs.data.vertical({"x": np.zeros((5, 7)), "y": np.arange(5)}, parties=[3, 4])
      >>> list(bank.columns), shop.columns["x"].shape, shop.features
      (['x', 'y'], (5, 4), array([3, 4, 5, 6]))
    """
    values = column_of(columns, column, "column")
    if values.ndim < 2:
        raise ValueError(
            f"column {column!r} has shape {list(values.shape)}, expected [examples, ..., features]."
        )
    total = values.shape[-1]
    shares = _shares(parties, total)
    order = np.arange(total) if seed is None else keys.host_generator((seed,), _VERTICAL).permutation(total)
    found = []
    for index, part in enumerate(np.split(order, np.cumsum(shares)[:-1])):
        features = np.sort(part)
        rest = {name: np.asarray(x) for name, x in columns.items() if name != column} if index == 0 else {}
        found.append(Party({column: values[..., features], **rest}, features))
    return tuple(found)


def _shares(parties: int | Sequence[int], total: int) -> np.ndarray:
    if not isinstance(parties, Sequence | np.ndarray):
        checks.positive_int("parties", parties)
        if parties > total:
            raise ValueError(f"parties is {parties}, but there are {total} features: one each at least.")
        return total // parties + (np.arange(parties) < total % parties)
    shares = np.asarray(parties)
    if shares.ndim != 1 or not shares.size or shares.dtype.kind not in "iu" or shares.min() < 1:
        raise ValueError(
            f"parties is {list(parties)}, expected how many features each has, integers of at least 1."
        )
    if shares.sum() != total:
        raise ValueError(f"parties have {shares.sum()} features together, but there are {total}.")
    return shares
