"""From Arrow tables, each a whole set or a piece of one of its parts, to a data set."""

from __future__ import annotations

import contextlib
import functools
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from fedjax_sim.data._files import errors_name
from fedjax_sim.data.decoders import Decode, Decoder
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats import _arrow, _hive, _placed, _tables
from fedjax_sim.data.formats._arrow_owners import advises, candidates, likely_owners, one_client
from fedjax_sim.data.formats._tables import Columns

if TYPE_CHECKING:
    import pyarrow as pa


class Piece(NamedTuple):
    """A table.

    Attributes:
      source: for messages.
      part: that it belongs to; ``None`` where only a column can say so.
      read: gives it; its arguments are those of ``_arrow.read_table`` after the path.
      batches: gives it in pieces; its arguments are those of ``_arrow.read_batches`` after the path.
      keys: columns that its folders name.
    """

    source: Path | str
    part: str | None
    read: Callable[..., pa.Table]
    batches: Callable[..., Iterator[pa.Table]]
    keys: tuple[str, ...] = ()

    @classmethod
    def of_file(cls, file: Path, part: str | None, keys: _hive.Keys | None = None) -> Piece:
        """A Parquet or Arrow file, in folders that say so of all its rows."""
        keys = keys or {}
        read, batches = (functools.partial(one, file, keys) for one in (_hive.read_table, _hive.read_batches))
        return cls(file, part, read, batches, tuple(keys))


class Wanted(NamedTuple):
    """What a caller asks for: arguments of ``fedjax_sim.data.parquet``."""

    client: str | None
    split: str | None
    train: str
    test: str | None
    columns: Columns | None
    label: str
    channel_axis: str | Iterable[str]
    decode: Decode | None
    test_fraction: float | None
    seed: int

    def settled(self) -> Wanted:
        """The same, of things that can be gone through more than once."""
        columns = None if self.columns is None else _tables.renamed(self.columns)
        axes = (self.channel_axis,) if isinstance(self.channel_axis, str) else tuple(self.channel_axis)
        return self._replace(columns=columns, channel_axis=axes)

    @property
    def enough(self) -> set[str] | None:
        """Columns that are enough, where that is known."""
        if self.columns is None:
            return None
        named = {name for name in (self.client, self.split) if name not in (None, "split")}
        return {*_tables.renamed(self.columns).values()} | named

    @property
    def optional(self) -> set[str]:
        """Columns that are read as well, if they are there."""
        return {self.client or "client", self.split or "split"}


class Layout(NamedTuple):
    """What becomes of the columns of a set.

    Attributes:
      client: the column of owners, if there is one.
      split: the column of parts, if there is one.
      by_name: pieces are named after parts.
      old: new name to old name.
      functions: by new name, what makes arrays.
    """

    client: str | None
    split: str | None
    by_name: bool
    old: Mapping[str, str]
    functions: Mapping[str, Decoder]

    def values(self, table: pa.Table) -> dict[str, Any]:
        """Columns of a table of at least one row by new name: arrays, or lists for functions."""
        return {
            new: table.column(name).to_pylist()
            if new in self.functions
            else _arrow.to_numpy(table.column(name), name)
            for new, name in self.old.items()
        }


class _Rows(NamedTuple):
    """A piece, read: ``owner`` and ``split`` are ids ``[rows]`` where there are such columns; values of columns by name."""

    owner: np.ndarray | None
    split: np.ndarray | None
    values: dict[str, Any]


def from_pieces(name: str, source: Path | str, pieces: Sequence[Piece], wanted: Wanted) -> Federated:
    """A data set of tables, all of them in memory.

    Raises:
      ValueError: begins with the source of the table that is wrong, or with ``source``.
    """
    pieces, test, notes = used_pieces(pieces, source, wanted.train, wanted.test)
    tables = [piece.read(wanted.enough, wanted.optional) for piece in pieces]
    for piece, table in zip(pieces, tables, strict=True):
        check_same(piece, table, pieces[0], tables[0], wanted)
    layout = layout_of(tables[0], source, pieces, test, wanted)
    if not any(table.num_rows for table in tables):
        raise ValueError(f"{source}: {NO_ROWS}")
    notes += unused_keys(pieces, layout)
    owners = owners_of(pieces[0], layout, wanted, tables[0] if wanted.columns is None else None)
    with advises(owners):
        rows = _joined(pieces, tables, layout)
    with errors_name(source):
        values = _tables.decoded(rows.values, layout.functions)
        masks = None
        if layout.by_name:
            part = np.repeat([str(piece.part) for piece in pieces], [table.num_rows for table in tables])
            masks = part == wanted.train, part == test
        elif rows.split is not None:
            masks, unused = _tables.divided(rows.split, f"column {layout.split!r}", wanted.train, test)
            notes += unused
        owner = rows.owner
        if owner is None:
            owner = np.zeros(sum(table.num_rows for table in tables), np.int64)
            notes += (one_client(owners),)
        return _tables.federated(
            name,
            values,
            owner,
            np.unique(owner),
            split=masks,
            label=wanted.label,
            classes=num_classes(tables[0], layout, wanted),
            channel_axis=wanted.channel_axis,
            test_fraction=wanted.test_fraction,
            seed=wanted.seed,
            notes=notes,
        )


def owners_of(piece: Piece, layout: Layout, wanted: Wanted, table: pa.Table | None = None) -> list[str]:
    """Columns of a piece that may say who owns each row, also those that are not kept, where no column is said to.

    ``table`` is the piece, where all its columns are in memory.
    """
    if layout.client is not None:
        return []
    without = {layout.split, layout.old.get(wanted.label, wanted.label)}
    if table is not None:
        return likely_owners([table], candidates(table, without))
    with contextlib.suppress(ValueError):  # what cannot be read is told where it is wanted
        names = candidates(next(piece.batches(_placed.PIECE)), without)
        return likely_owners(piece.batches(_placed.PIECE, set(names)), names) if names else []
    return []


def unused_keys(pieces: Sequence[Piece], layout: Layout) -> tuple[str, ...]:
    """Notes on columns that folders name and that are left out: they are text."""
    unused = [k for k in pieces[0].keys if k not in (layout.client, layout.split, *layout.old.values())]
    names = ", ".join(map(repr, unused))
    return (f"What the names of folders say of {names} is left out; client= takes one.",) if unused else ()


NO_ROWS = "there are no rows, expected at least one example."


def used_pieces(
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


def check_same(piece: Piece, table: pa.Table, first: Piece, expected: pa.Table, wanted: Wanted) -> None:
    """Raises ``ValueError`` where a table has other columns than the first one, of those that are used."""
    differ = set(expected.column_names) ^ set(table.column_names)
    if differ if wanted.columns is None else differ & wanted.optional:
        raise ValueError(
            f"{piece.source}: it has the columns {', '.join(table.column_names)}, {first.source} has "
            f"{', '.join(expected.column_names)}; expected the same. Choose by columns=."
        )


def layout_of(
    first: pa.Table, source: Path | str, pieces: Sequence[Piece], test: str | None, wanted: Wanted
) -> Layout:
    """What becomes of the columns that the first table has."""
    client, split, by_name = wanted.client, wanted.split, pieces[0].part is not None
    if client is None and "client" in first.column_names:
        client = "client"
    if split == "split" and split not in first.column_names:
        split = None
    if wanted.columns is None:
        old = _tables.usual(_arrow.default_names(first, {client, split, *pieces[0].keys}))
    else:
        old = _tables.renamed(wanted.columns)
    with errors_name(source):
        functions = _tables.functions_by_new_name(wanted.decode, old)
        if split is not None and by_name:
            raise ValueError(
                f"column {split!r} divides rows that files divide already, expected one of both. Set split=None."
            )
        if test is not None and split is None and not by_name:
            raise ValueError(
                f"test is {test!r}, but neither names of files nor a column tell parts. Leave it out."
            )
    return Layout(client, split, by_name, old, functions)


def num_classes(first: pa.Table, layout: Layout, wanted: Wanted) -> int | None:
    """As many as the schema names, where it does."""
    names = _arrow.class_names(first, layout.old.get(wanted.label, wanted.label))
    return None if names is None else len(names)


def _joined(pieces: Sequence[Piece], tables: Sequence[pa.Table], layout: Layout) -> _Rows:
    """All rows, one piece after the other. A piece without rows knows no shapes, and only its names are looked at."""
    found: list[_Rows] = []
    sources: list[Path | str] = []
    for piece, table in zip(pieces, tables, strict=True):
        with errors_name(piece.source):
            _tables.check_chosen(layout.old, table.column_names)
            if table.num_rows:
                owner, split = (
                    None if name is None else _arrow.ids_of(table, name)
                    for name in (layout.client, layout.split)
                )
                found.append(_Rows(owner, split, layout.values(table)))
                sources.append(piece.source)
    lists = {name for name, values in found[0].values.items() if isinstance(values, list)}
    arrays = [{name: values for name, values in rows.values.items() if name not in lists} for rows in found]
    joined: dict[str, Any] = _tables.joined(arrays, sources)
    for name in lists:
        joined[name] = [value for rows in found for value in rows.values[name]]
    return _Rows(
        _ids(layout.client, [rows.owner for rows in found], sources),
        _ids(layout.split, [rows.split for rows in found], sources),
        {name: joined[name] for name in found[0].values},
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
