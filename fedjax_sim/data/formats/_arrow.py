"""Arrow tables: read from files, checked, and their columns as arrays. Nothing in a file is run or unpickled."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Collection, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fedjax_sim.data._files import check_is_file
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data.formats._pictures import is_encoded, pictures
from fedjax_sim.data.formats._tables import text_ids

if TYPE_CHECKING:
    import pyarrow as pa

_PARQUET = (".parquet", ".pq")
SUFFIXES = (*_PARQUET, ".arrow", ".feather")

_END_OF_STREAM = b"\xff\xff\xff\xff\x00\x00\x00\x00"
_FIRST_ROWS = 16
_PANDAS_INDEX = "__index_level_"

_FIX = "choose other columns by columns=, or turn this one into numbers by decode={{{name!r}: function}}"


def is_parquet(path: Path) -> bool:
    """Whether a file is one of Parquet, by its name: what is damaged may not look like one."""
    return path.suffix.lower() in _PARQUET


@contextlib.contextmanager
def arrow_errors(path: Path, kind: str) -> Iterator[None]:
    """Turns what pyarrow raises for a damaged file into a ``ValueError`` that begins with its name."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError, TypeError, KeyError, MemoryError) as error:
        raise ValueError(
            f"{path} is no readable {kind} file (truncated, or of another kind): {error}"
        ) from error


def read_table(path: Path, names: Collection[str] | None = None, optional: Collection[str] = ()) -> pa.Table:
    """The table of a Parquet file, or of an Arrow file or stream.

    Args:
      path: the file.
      names: columns that are enough, if all of them are there; by default all. Files other than Parquet are read whole.
      optional: columns that are read, too, if they are there.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: it is damaged, was cut off, is of another kind, or names a column twice.
    """
    import pyarrow.parquet as pq

    check_is_file(path)
    if not is_parquet(path):
        return _read_arrow(path)
    with arrow_errors(path, "Parquet"), pq.ParquetFile(path, page_checksum_verification=True) as file:
        about = file.metadata
        there = file.schema_arrow.names
        if names is None or not set(names) <= set(there):
            table = file.read()
        else:
            table = file.read([name for name in there if name in {*names, *optional}])
        rows = sum(about.row_group(group).num_rows for group in range(about.num_row_groups))
        if not rows == about.num_rows == table.num_rows:
            raise ValueError(
                f"it has {table.num_rows} rows, its groups say {rows} and the file says {about.num_rows}"
            )
    return _checked(table, path, "Parquet")


def read_batches(
    path: Path, size: int, names: Collection[str] | None = None, optional: Collection[str] = ()
) -> Iterator[pa.Table]:
    """The table of ``read_table`` in pieces, one after the other: at least one, which may be empty.

    Of a Parquet file a group of rows is read at a time, compressed as it is; an Arrow file is mapped into memory.

    Args:
      path: the file.
      size: bytes of a piece, about, in the file; a row at least.
      names: as for ``read_table``.
      optional: as for ``read_table``.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: as ``read_table``, when the piece is reached.
    """
    check_is_file(path)
    kind = "Parquet" if is_parquet(path) else "Arrow"
    pieces = (
        _parquet_batches(path, size, names, optional) if kind == "Parquet" else _arrow_batches(path, True)
    )
    with contextlib.closing(pieces):
        while True:
            with arrow_errors(path, kind):
                piece = next(pieces, None)
                if piece is None:
                    return
                _check_names(piece)
            there = piece.column_names
            if names is not None and set(names) <= set(there):
                piece = piece.select([name for name in there if name in {*names, *optional}])
            rows = max(1, piece.num_rows * size // max(piece.nbytes, 1))
            for start in range(0, max(piece.num_rows, 1), rows):
                yield _checked(piece.slice(start, rows), path, kind)


def _parquet_batches(
    path: Path, size: int, names: Collection[str] | None, optional: Collection[str]
) -> Generator[pa.Table]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        about, schema = file.metadata, file.schema_arrow
        groups = [about.row_group(group) for group in range(about.num_row_groups)]
        rows = sum(group.num_rows for group in groups)
        if rows != about.num_rows:
            raise ValueError(f"its groups have {rows} rows and the file says {about.num_rows}")
        wanted = list(schema.names)
        if names is not None and set(names) <= set(wanted):
            wanted = [name for name in wanted if name in {*names, *optional}]
        start = pa.Table.from_batches([], schema)
        yield start.select(wanted) if len(set(wanted)) == len(wanted) else start
        # How long rows are in memory shows when some are: encoded, a thousand equal numbers take a few bytes.
        found, length = 0, max(1, size // _FIRST_ROWS)
        for group in range(len(groups)):
            for batch in file.iter_batches(max(1, size // length), row_groups=[group], columns=wanted):
                # The metadata of the schema, such as names of classes, are those of the file.
                table = pa.Table.from_batches([batch]).replace_schema_metadata(schema.metadata)
                found += table.num_rows
                yield table
                length = max(1, table.nbytes // max(table.num_rows, 1))
        if found != rows:
            raise ValueError(f"it has {found} rows, its groups say {rows}")


def _arrow_batches(path: Path, mapped: bool) -> Generator[pa.Table]:
    """Pieces as they were written; ``mapped`` ones change with the file."""
    import pyarrow as pa

    with pa.memory_map(str(path)) if mapped else pa.OSFile(str(path)) as stream:
        if stream.read(6) == b"ARROW1":
            stream.seek(0)
            reader = pa.ipc.open_file(stream)
            yield pa.Table.from_batches([], reader.schema)
            for place in range(reader.num_record_batches):
                yield pa.Table.from_batches([reader.get_batch(place)])
            return
        # A stream that was cut off between two batches reads as a shorter one.
        stream.seek(max(0, stream.size() - len(_END_OF_STREAM)))
        if stream.read() != _END_OF_STREAM:
            raise ValueError("the mark of the end is missing")
        stream.seek(0)
        reader = pa.ipc.open_stream(stream)
        yield pa.Table.from_batches([], reader.schema)
        for batch in reader:
            yield pa.Table.from_batches([batch])
        if stream.read(1):
            raise ValueError("it goes on after the end of its table")


def _read_arrow(path: Path) -> pa.Table:
    import pyarrow as pa

    with arrow_errors(path, "Arrow"):
        table = pa.concat_tables(_arrow_batches(path, False))
    return _checked(table, path, "Arrow")


def _checked(table: pa.Table, path: Path, kind: str) -> pa.Table:
    with arrow_errors(path, kind):
        table.validate(full=True)  # offsets that point outside, text that is no UTF-8
        _check_names(table)
    return table


def _check_names(table: pa.Table) -> None:
    for name, count in Counter(table.column_names).items():
        if count > 1:
            raise ValueError(f"column {name!r} is there twice")


def default_names(table: pa.Table, without: Collection[str | None]) -> list[str]:
    """All columns but these and the index that pandas stores."""
    return [n for n in table.column_names if n not in without and not n.startswith(_PANDAS_INDEX)]


def class_names(table: pa.Table, column: str) -> list[str] | None:
    """Names of the classes of a column, where the ``datasets`` package wrote them into the schema."""
    try:
        features = json.loads((table.schema.metadata or {})[b"huggingface"])["info"]["features"]
        feature = features[column]
        names = feature["names"] if feature["_type"] == "ClassLabel" else None
    except (KeyError, TypeError, ValueError, RecursionError):
        return None
    return names if isinstance(names, list) else None


def ids_of(table: pa.Table, name: str, what: str = "column") -> np.ndarray:
    """A column of ids, ``int64[rows]`` or text ``[rows]``: clients, or parts of a set.

    Raises:
      ValueError: the column is not there, or holds something that is no id; names the row.
    """
    import pyarrow as pa

    if name not in table.column_names:
        raise ValueError(f"no {what} is called {name!r}, the file has {', '.join(table.column_names)}.")
    column = table.column(name)
    _check_no_null(column, f"{what} {name!r}")
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        values = to_numpy(column, name) if len(column) else np.zeros(0, np.int64)
        return values if values.dtype == bool else as_ids(name, values)
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)):
        raise ValueError(f"{what} {name!r} is of type {column.type}, expected text or integers.")
    encoded = column.cast(pa.large_string()).combine_chunks().dictionary_encode()
    values = text_ids(encoded.dictionary.to_pylist(), f"{what} {name!r}")
    return values[encoded.indices.to_numpy()]


def to_numpy(column: pa.ChunkedArray, name: str) -> np.ndarray:
    """A column of at least one row as an array ``[rows, ...]``.

    Numbers keep their dtype. Lists of one length become axes. Encoded images, as they are or as the ``datasets`` package
    stores them, become arrays, where all have one shape.

    Raises:
      ValueError: the column holds nulls, text, lists of several lengths or something else that is no array.
    """
    import pyarrow as pa

    _check_no_null(column, f"column {name!r}")
    if pa.types.is_struct(column.type) and {field.name for field in column.type} == {"bytes", "path"}:
        encoded = (raw.as_py() for chunk in column.chunks for raw in chunk.field("bytes"))
        return pictures(encoded, f"column {name!r}")
    if (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)) and is_encoded(
        column[0].as_py()
    ):
        return pictures((raw.as_py() for raw in column), f"column {name!r}")
    chunks = [chunk for chunk in column.chunks if len(chunk)]
    arrays = [_array(chunk, name) for chunk in chunks]
    shapes = {array.shape[1:] for array in arrays}
    if len(shapes) > 1:
        raise ValueError(_ragged(name, [list(shape) for shape in sorted(shapes)]))
    return np.concatenate(arrays) if len(arrays) != 1 else arrays[0]


def _array(array: pa.Array, name: str) -> np.ndarray:
    import pyarrow as pa

    if isinstance(array, pa.FixedShapeTensorArray):
        return array.to_numpy_ndarray()
    if isinstance(array, pa.ExtensionArray):
        return _array(array.storage, name)
    if isinstance(array, pa.DictionaryArray):
        return _array(array.dictionary_decode(), name)
    kind = array.type
    if array.null_count:
        raise ValueError(f"column {name!r} holds a null inside a list, expected values alone.")
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
        return array.to_numpy(zero_copy_only=False)
    if pa.types.is_fixed_size_list(kind) or pa.types.is_list(kind) or pa.types.is_large_list(kind):
        lengths = array.value_lengths().unique().to_pylist()
        if len(lengths) > 1:
            raise ValueError(_ragged(name, [[length] for length in sorted(lengths)]))
        flat = array.flatten()
        inner = _array(flat, name)
        return inner.reshape(len(array), lengths[0], *inner.shape[1:])
    raise ValueError(f"column {name!r} is of type {kind}, expected numbers: {_FIX.format(name=name)}.")


def _check_no_null(column: pa.ChunkedArray, what: str) -> None:
    if column.null_count:
        row = column.is_null().index(True).as_py()
        raise ValueError(f"{what} is null in row {row}, expected a value in every row.")


def _ragged(name: str, shapes: list) -> str:
    return (
        f"column {name!r} holds arrays of several shapes, such as {shapes[0]} and {shapes[-1]}, expected one. Pad "
        f"them, or {_FIX.format(name=name)}."
    )
