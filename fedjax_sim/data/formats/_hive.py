"""Folders that are columns: ``client=u1/0.parquet``, as Hive, Spark and ``pyarrow`` write partitioned sets."""

from __future__ import annotations

import urllib.parse
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fedjax_sim.data.formats import _arrow

if TYPE_CHECKING:
    import pyarrow as pa

Keys = Mapping[str, str | None]
"""Name of a column to its value in all rows of a file."""

_NULL = "__HIVE_DEFAULT_PARTITION__"


def keys_of(files: list[Path], folder: Path) -> list[dict[str, str | None]]:
    """What the folders of each file below ``folder`` say.

    Raises:
      ValueError: the folders of two files name other columns, or one names a column twice.
    """
    found = [_keys(file, folder) for file in files]
    for file, keys in zip(files, found, strict=True):
        if set(keys) != set(found[0]):
            raise ValueError(
                f"{file} is in folders that name the columns {', '.join(keys) or 'none'}, {files[0]} in some that name "
                f"{', '.join(found[0]) or 'none'}; expected the same. Read one of the folders alone."
            )
    return found


def _keys(file: Path, folder: Path) -> dict[str, str | None]:
    keys: dict[str, str | None] = {}
    for name in file.relative_to(folder).parts[:-1]:
        key, equals, value = name.partition("=")
        if equals and key:
            key = urllib.parse.unquote(key)
            if key in keys:
                raise ValueError(f"{file}: its folders name column {key!r} twice, expected once.")
            keys[key] = None if value == _NULL else urllib.parse.unquote(value)
    return keys


def read_table(
    path: Path, keys: Keys, names: Collection[str] | None = None, optional: Collection[str] = ()
) -> pa.Table:
    """``_arrow.read_table`` with the columns that folders name, as text."""
    return _extended(_arrow.read_table(path, *_own(keys, names, optional)), path, keys)


def read_batches(
    path: Path, keys: Keys, size: int, names: Collection[str] | None = None, optional: Collection[str] = ()
) -> Iterator[pa.Table]:
    """``_arrow.read_batches`` with the columns that folders name, as text."""
    for table in _arrow.read_batches(path, size, *_own(keys, names, optional)):
        yield _extended(table, path, keys)


def _own(
    keys: Keys, names: Collection[str] | None, optional: Collection[str]
) -> tuple[Collection[str] | None, Collection[str]]:
    """Columns to ask the file for; those that folders name are read if they are there, to compare."""
    own = set(names or ()) - set(keys)
    return own or None, {
        *optional,
        *keys,
    }  # all columns where none is asked for: without one, rows are not counted


def _extended(table: pa.Table, path: Path, keys: Keys) -> pa.Table:
    import pyarrow as pa

    for name, value in keys.items():
        if name in table.column_names:
            other = next((one for one in table.column(name).unique().to_pylist() if str(one) != value), value)
            if other != value:
                raise ValueError(
                    f"{path}: its folder says that {name!r} is {value!r}, its column says {other!r}; expected the same."
                )
        else:
            table = table.append_column(name, pa.repeat(pa.scalar(value, pa.string()), table.num_rows))
    return table
