"""From Arrow tables that need not fit into memory to a stored set: they are read in pieces, twice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedjax_sim.data._files import errors_name
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats import _arrow, _placed, _tables
from fedjax_sim.data.formats._arrow_owners import advises, one_client
from fedjax_sim.data.formats._arrow_sets import (
    NO_ROWS,
    Layout,
    Piece,
    Wanted,
    check_same,
    from_pieces,
    layout_of,
    num_classes,
    owners_of,
    unused_keys,
    used_pieces,
)

if TYPE_CHECKING:
    import pyarrow as pa


def arrow_set(
    name: str, source: Path | str, pieces: Sequence[Piece], wanted: Wanted, store: str | Path | None
) -> Federated:
    """A data set of tables: in memory, or in the folder ``store``, memory-mapped.

    Raises:
      FileExistsError, ValueError: as ``_placed.made_before``.
      ValueError: begins with the source of the table that is wrong, or with ``source``.
    """
    wanted = wanted.settled()
    if store is None:
        return from_pieces(name, source, pieces, wanted)
    pieces, test, notes = used_pieces(pieces, source, wanted.train, wanted.test)
    files = [piece.source for piece in pieces if isinstance(piece.source, Path)]
    made_of = _placed.made_of(files, wanted._asdict()) if len(files) == len(pieces) else None
    before = _placed.made_before(store, made_of)
    if before is not None:
        return before
    first = next(pieces[0].batches(_placed.PIECE, wanted.enough, wanted.optional))
    layout = layout_of(first, source, pieces, test, wanted)
    with errors_name(source):
        if not layout.old:
            raise ValueError("there is no column, expected at least one.")
    owned, unused = _owned(pieces, source, layout, wanted, test)
    owners = owners_of(pieces[0], layout, wanted)
    notes += unused_keys(pieces, layout) + unused + ((one_client(owners),) if layout.client is None else ())
    with errors_name(source):
        if wanted.test_fraction is not None:
            if layout.by_name or layout.split is not None:
                raise ValueError(_tables.TWO_SPLITS)
            owned = owned.split(wanted.test_fraction, wanted.seed)
    declared, found = num_classes(first, layout, wanted), _placed.Classes()
    return _placed.place(
        store,
        owned,
        _columns(pieces, source, layout, wanted, declared, found, owners),
        source=source,
        name=name,
        classes=lambda: found.count if declared is None else declared,
        notes=notes,
        made_of=made_of,
    )


def _owned(
    pieces: Sequence[Piece], source: Path | str, layout: Layout, wanted: Wanted, test: str | None
) -> tuple[_placed.Owned, tuple[str, ...]]:
    """The first pass: who has which row, and notes on parts that are left out."""
    owners, splits = (_placed.Codes(f"column {name!r}") for name in (layout.client, layout.split))
    keys = pieces[0].keys
    few = {name for name in (layout.client, layout.split) if name is not None and name not in keys}
    few = few or {next((name for name in layout.old.values() if name not in keys), "")}  # to count the rows
    sizes = []
    for piece in pieces:
        rows = 0
        for place, table in _batches(piece, few, set()):
            with errors_name(place):
                for name, codes in ((layout.client, owners), (layout.split, splits)):
                    if name is not None and table.num_rows:
                        codes.add(_arrow.ids_of(table, name))
            rows += table.num_rows
        sizes.append(rows)
    total = sum(sizes)
    if not total:
        raise ValueError(f"{source}: {NO_ROWS}")
    part, notes = np.zeros(total, np.int8), ()
    with errors_name(source):
        if layout.client is None:
            owners.add(np.zeros(total, np.int64))
        if layout.by_name:
            is_train = [piece.part == wanted.train for piece in pieces]
            part = np.repeat(np.where(is_train, _placed.TRAIN, _placed.TEST).astype(np.int8), sizes)
        elif layout.split is not None:
            names, codes = splits.done()
            masks, notes = _tables.divided(names, f"column {layout.split!r}", wanted.train, test)
            kinds = np.select(masks, [_placed.TRAIN, _placed.TEST], _placed.NEITHER)
            part = kinds.astype(np.int8)[codes]
        return _placed.owned_of(owners, part), notes


def _columns(
    pieces: Sequence[Piece],
    source: Path | str,
    layout: Layout,
    wanted: Wanted,
    declared: int | None,
    found: _placed.Classes,
    owners: list[str],
) -> Iterator[dict[str, np.ndarray]]:
    """The second pass: columns of all rows, a piece at a time."""
    first = None
    for piece in pieces:
        for place, table in _batches(piece, wanted.enough, wanted.optional):
            first = table if first is None else first
            check_same(piece, table, pieces[0], first, wanted)
            with advises(owners), errors_name(place):
                _tables.check_chosen(layout.old, table.column_names)
                if not table.num_rows:
                    continue
                values = layout.values(table)
            with errors_name(source):
                columns = _tables.decoded(values, layout.functions)
                _tables.check_rows(columns, table.num_rows)
                found.see(_tables.finished(columns, wanted.label, declared, wanted.channel_axis))
            yield columns


def _batches(piece: Piece, names: set[str] | None, optional: set[str]) -> Iterator[tuple[str, pa.Table]]:
    """Tables, and where they begin, for messages."""
    row = 0
    for table in piece.batches(_placed.PIECE, names, optional):
        yield f"{piece.source}{f' from row {row} on' if row else ''}", table
        row += table.num_rows
