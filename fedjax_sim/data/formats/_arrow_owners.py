"""Which column of an Arrow table may say who owns each row, for notes and errors about sets without a client column."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from typing import TYPE_CHECKING

from fedjax_sim.data.formats._tables import ONE_CLIENT

if TYPE_CHECKING:
    import pyarrow as pa

_KNOWN = 1 << 16
"""Values of a column that are kept to find one that comes again: enough for clients, and a bound for texts that never do."""


def candidates(table: pa.Table, without: Collection[str | None]) -> list[str]:
    """Columns that could hold ids by their type: text, then integers."""
    import pyarrow as pa

    kinds = {
        name: kind
        for name, kind in zip(table.column_names, table.schema.types, strict=True)
        if name not in without
    }
    text = [
        name for name, kind in kinds.items() if pa.types.is_string(kind) or pa.types.is_large_string(kind)
    ]
    return text + [name for name, kind in kinds.items() if pa.types.is_integer(kind)]


def likely_owners(tables: Iterable[pa.Table], names: list[str]) -> list[str]:
    """Those of the columns that hold several values, some of them more than once. The tables are pieces of one, read until that is known."""
    import pyarrow as pa

    known: dict[str, pa.Array] = {}
    again: set[str] = set()
    for table in tables:
        for name in names:
            if name in again and len(known[name]) > 1:
                continue
            column = table.column(name)
            values = column.unique()
            before = known.get(name, values[:0])
            both = pa.concat_arrays([before, values]).unique()
            if len(values) < len(column) or len(both) < len(before) + len(values):
                again.add(name)
            known[name] = both[:_KNOWN]
        if all(name in again and len(known[name]) > 1 for name in names):
            break
    return [name for name in names if name in again and len(known[name]) > 1]


def one_client(owners: list[str]) -> str:
    """The note on a set without a client column."""
    return ONE_CLIENT + (
        f"; if {owners[0]!r} says who owns each row, give client={owners[0]!r}" if owners else ""
    )


@contextlib.contextmanager
def advises(owners: list[str]) -> Iterator[None]:
    """Ends an error about one of these columns, such as that it is no number, by what it may be."""
    try:
        yield
    except ValueError as error:
        named = next((name for name in owners if f"column {name!r}" in str(error)), None)
        if named is None:
            raise
        raise ValueError(f"{error} If it says who owns each row, give client={named!r}.") from error
