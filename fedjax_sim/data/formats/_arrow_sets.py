"""From Arrow tables, each a whole set or a piece of one of its parts, to a data set."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_sim.data._files import errors_name
from fedjax_sim.data.decoders import Decode
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats import _arrow, _tables

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
    pieces, test, notes = _used(pieces, source, train, test)
    by_name = pieces[0].part is not None
    tables = _read(pieces, client, split, columns)
    first = tables[0].column_names
    if client is None and "client" in first:
        client = "client"
    if split == "split" and split not in first:
        split = None
    old = columns or _tables.usual(_arrow.default_names(tables[0], {client, split}))
    with errors_name(source):
        functions = _tables.functions_by_new_name(decode, old)
        if split is not None and by_name:
            raise ValueError(
                f"column {split!r} divides rows that files divide already, expected one of both. Set split=None."
            )
        if test is not None and split is None and not by_name:
            raise ValueError(
                f"test is {test!r}, but neither names of files nor a column tell parts. Leave it out."
            )
        if not any(table.num_rows for table in tables):
            raise ValueError("there are no rows, expected at least one example.")
    rows = _joined(pieces, tables, client, split, old, functions)
    with errors_name(source):
        values = _tables.decoded(rows.values, functions)
        masks = None
        if by_name:
            part = np.repeat([str(piece.part) for piece in pieces], [table.num_rows for table in tables])
            masks = part == train, part == test
        elif rows.split is not None:
            masks, unused = _tables.divided(rows.split, f"column {split!r}", train, test)
            notes += unused
        owner = rows.owner
        if owner is None:
            owner = np.zeros(sum(table.num_rows for table in tables), np.int64)
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


def _used(
    pieces: Sequence[Piece], source: Path | str, train: str, test: str | None
) -> tuple[Sequence[Piece], str | None, tuple[str, ...]]:
    """The pieces of both parts, the name of the test part, and notes on the others; all, where they name no part."""
    parts = list(dict.fromkeys(piece.part for piece in pieces if piece.part is not None))
    if not parts:
        return pieces, test, ()
    with errors_name(source):
        test = _tables.test_part(parts, train, test)
    used = [piece for piece in pieces if piece.part in (train, test)]
    return used, test, _tables.left_out(parts, (train, test))


def _read(
    pieces: Sequence[Piece], client: str | None, split: str | None, columns: Mapping[str, str] | None
) -> list[pa.Table]:
    """Their tables, which have the same columns where those are used."""
    enough = None
    if columns is not None:
        enough = {*columns.values()} | {name for name in (client, split) if name not in (None, "split")}
    tables = [piece.read(enough, {client or "client", split or "split"}) for piece in pieces]
    first = set(tables[0].column_names)
    for piece, table in zip(pieces, tables, strict=True):
        differ = first ^ set(table.column_names)
        if differ if columns is None else differ & {client or "client", split}:
            raise ValueError(
                f"{piece.source}: it has the columns {', '.join(table.column_names)}, {pieces[0].source} has "
                f"{', '.join(tables[0].column_names)}; expected the same. Choose by columns=."
            )
    return tables


def _joined(
    pieces: Sequence[Piece],
    tables: Sequence[pa.Table],
    client: str | None,
    split: str | None,
    old: Mapping[str, str],
    functions: Mapping[str, Any],
) -> _Rows:
    """All rows, one piece after the other. A piece without rows knows no shapes, and only its names are looked at."""
    found: list[_Rows] = []
    sources: list[Path | str] = []
    for piece, table in zip(pieces, tables, strict=True):
        with errors_name(piece.source):
            _tables.check_chosen(old, table.column_names)
            if table.num_rows:
                found.append(_rows(table, client, split, old, functions))
                sources.append(piece.source)
    lists = {name for name, values in found[0].values.items() if isinstance(values, list)}
    arrays = [{name: values for name, values in rows.values.items() if name not in lists} for rows in found]
    joined: dict[str, Any] = _tables.joined(arrays, sources)
    for name in lists:
        joined[name] = [value for rows in found for value in rows.values[name]]
    return _Rows(
        _ids(client, [rows.owner for rows in found], sources),
        _ids(split, [rows.split for rows in found], sources),
        {name: joined[name] for name in found[0].values},
    )


def _rows(
    table: pa.Table,
    client: str | None,
    split: str | None,
    old: Mapping[str, str],
    functions: Mapping[str, Any],
) -> _Rows:
    owner, parts = (None if name is None else _arrow.ids_of(table, name) for name in (client, split))
    values = {
        new: table.column(name).to_pylist() if new in functions else _arrow.to_numpy(table.column(name), name)
        for new, name in old.items()
    }
    return _Rows(owner, parts, values)


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
