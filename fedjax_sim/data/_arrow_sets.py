"""From Arrow tables, each a whole set or a piece of one of its parts, to a data set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_sim.data import _arrow, _tables
from fedjax_sim.data._files import errors_name
from fedjax_sim.data._tables import Decode
from fedjax_sim.data.federated import Federated

if TYPE_CHECKING:
    import pyarrow as pa


class Piece(NamedTuple):
    """A table.

    Attributes:
      source: for messages.
      part: that it belongs to; ``None`` where only a column can say so.
      read: gives it; its arguments are those of ``_arrow.read_table`` after the path.
    """

    source: Path | str
    part: str | None
    read: Callable[..., pa.Table]


class _Rows(NamedTuple):
    """A piece, read: ``owner`` and ``split`` are ids ``[rows]`` where there are such columns; values of columns by name."""

    owner: np.ndarray | None
    split: np.ndarray | None
    values: dict[str, Any]


def from_pieces(
    name: str,
    source: Path | str,
    pieces: Sequence[Piece],
    *,
    client: str | None,
    split: str | None,
    train: str,
    test: str | None,
    columns: Mapping[str, str] | None,
    label: str,
    channel_axis: str | Iterable[str],
    decode: Decode | None,
    test_fraction: float | None,
    seed: int,
) -> Federated:
    """A data set of tables; arguments as of ``fedjax_sim.data.parquet``, ``columns`` as new name to old name.

    Raises:
      ValueError: begins with the source of the table that is wrong, or with ``source``.
    """
    parts = list(dict.fromkeys(piece.part for piece in pieces if piece.part is not None))
    notes: tuple[str, ...] = ()
    if parts:
        with errors_name(source):
            test = _tables.test_part(parts, train, test)
        notes = _tables.left_out(parts, (train, test))
        pieces = [piece for piece in pieces if piece.part in (train, test)]

    enough = None if columns is None else {*columns.values()}
    asked = {name for name in (client, split) if name not in (None, "split")}
    tables = [
        piece.read(enough and enough | asked, {client or "client", split or "split"}) for piece in pieces
    ]
    first = tables[0].column_names
    if client is None and "client" in first:
        client = "client"
    has_split = split is not None and (split in first or split != "split")
    old = columns or _tables.usual(_arrow.default_names(tables[0], {client, split if has_split else None}))
    with errors_name(source):
        functions = _tables.functions_by_new_name(decode, old)
        if has_split and parts:
            raise ValueError(
                f"column {split!r} divides rows that files divide already, expected one of both. Set split=None."
            )

    found = []
    relevant = (
        {client, split}
        if columns is not None
        else {client, split, *first}.union(*(table.column_names for table in tables))
    )
    for piece, table in zip(pieces, tables, strict=True):
        with errors_name(piece.source):
            other = relevant & (set(first) ^ set(table.column_names))
            if other:
                raise ValueError(
                    f"it has the columns {', '.join(table.column_names)}, {pieces[0].source} has {', '.join(first)}; "
                    "expected the same. Choose by columns=."
                )
            found.append(_rows(table, client, split if has_split else None, old, functions))
    filled = [place for place, table in enumerate(tables) if table.num_rows]
    if not filled:
        raise ValueError(f"{source}: there are no rows, expected at least one example.")
    sizes = [tables[place].num_rows for place in filled]
    sources = [pieces[place].source for place in filled]
    rows = _joined([found[place] for place in filled], sources, client, split)
    with errors_name(source):
        values = _tables.decoded(rows.values, functions)
        masks = None
        if parts:
            part = np.repeat([str(pieces[place].part) for place in filled], sizes)
            masks = part == train, part == test
        elif rows.split is not None:
            masks, unused = _tables.divided(rows.split, f"column {split!r}", train, test)
            notes += unused
        owner = np.zeros(sum(sizes), np.int64) if rows.owner is None else rows.owner
        if rows.owner is None:
            notes += (_tables.ONE_CLIENT,)
        names = _arrow.class_names(tables[0], old.get(label, label))
        return _tables.federated(
            name,
            values,
            owner,
            np.unique(owner),
            split=masks,
            label=label,
            classes=None if names is None else len(names),
            channel_axis=channel_axis,
            test_fraction=test_fraction,
            seed=seed,
            notes=notes,
        )


def _rows(
    table: pa.Table,
    client: str | None,
    split: str | None,
    old: Mapping[str, str],
    functions: Mapping[str, Any],
) -> _Rows:
    _tables.check_chosen(old, table.column_names)
    owner, parts = (None if name is None else _arrow.ids_of(table, name) for name in (client, split))
    values = {}
    for new, name in old.items():
        if new in functions:
            values[new] = table.column(name).to_pylist()
        elif table.num_rows:
            values[new] = _arrow.to_numpy(table.column(name), name)
    return _Rows(owner, parts, values)


def _joined(
    pieces: Sequence[_Rows], sources: Sequence[Path | str], client: str | None, split: str | None
) -> _Rows:
    """All rows, one piece after the other."""
    lists = {name for name, values in pieces[0].values.items() if isinstance(values, list)}
    arrays = [
        {name: values for name, values in piece.values.items() if name not in lists} for piece in pieces
    ]
    joined: dict[str, Any] = _tables.joined(arrays, sources)
    for name in lists:
        joined[name] = [value for piece in pieces for value in piece.values[name]]
    return _Rows(
        _ids(client, [piece.owner for piece in pieces], sources),
        _ids(split, [piece.split for piece in pieces], sources),
        {name: joined[name] for name in pieces[0].values},
    )


def _ids(
    name: str | None, pieces: Sequence[np.ndarray | None], sources: Sequence[Path | str]
) -> np.ndarray | None:
    there = [{str(name): ids} for ids in pieces if ids is not None]
    return _tables.joined(there, sources)[str(name)] if there else None


def check_shards(files: Iterable[Path]) -> None:
    """Raises ``ValueError`` where one of the files ``...-00000-of-00002...`` is missing."""
    shards: dict[tuple[str, int], set[int]] = defaultdict(set)
    for file in files:
        if found := re.search(r"^(.*?)(\d+)-of-(\d+)", file.name):
            shards[str(file.parent / found[1]), int(found[3])].add(int(found[2]))
    for (start, count), there in shards.items():
        missing = sorted(set(range(min(count, 10**6))) - there)
        if missing:
            raise ValueError(
                f"{start}{missing[0]:05}-of-{count:05} is missing, expected all {count} files of the set."
            )
