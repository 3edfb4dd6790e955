"""TensorFlow Federated's SQLite files: a serialised example per row, opened for reading alone."""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from fedjax_sim.data._files import errors_name
from fedjax_sim.data.formats._tables import text_ids
from fedjax_sim.data.formats._tf_example import Features, parse_example
from fedjax_sim.data.formats._tff_part import Part, Values, errors_name_client, text

MAGIC = b"SQLite format 3\0"

_JOURNALS = ("-wal", "-journal")
"""What is written and not yet in the file, or what a writer that was killed began to overwrite; opened as it is, neither is read."""

_TABLES = {
    "examples": ("split_name", "client_id", "serialized_example_proto"),
    "client_metadata": ("client_id", "split_name", "num_examples"),
}


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    with errors_name(path):
        try:
            yield
        except (sqlite3.Error, OverflowError, MemoryError) as error:
            raise ValueError(f"the SQLite file is damaged, or of another kind: {error}") from error


class SqliteFile:
    """A file with the tables ``examples`` and ``client_metadata``.

    Args:
      place: where it is.
      path: how messages name it.

    Attributes:
      path: how messages name it.
      sizes: by split, the number of examples of each client, as ``client_metadata`` says.

    Raises:
      ValueError: it is damaged, or lacks a table or a column.
    """

    def __init__(self, place: Path, path: Path):
        self.path = path
        place = place.resolve()  # a link's journals lie beside the file itself
        for kind in _JOURNALS:
            journal = place.with_name(place.name + kind)
            if journal.exists() and _begun(journal):
                raise ValueError(
                    f"{path} has unfinished changes in {journal.name}, expected a file that nobody writes. Open it once with "
                    "sqlite3, read something, and close it."
                )
        self._lock = threading.Lock()
        with _errors(path):
            _check_length(place)
            # Threads that gather the next cohorts share the connection, one at a time.
            self._connection = sqlite3.connect(
                f"file:{urllib.parse.quote(str(place))}?mode=ro&immutable=1",
                uri=True,
                check_same_thread=False,
            )
            try:
                for table, columns in _TABLES.items():
                    self._check_table(table, columns)
                self.sizes = self._read_sizes()
                total = sum(size for sizes in self.sizes.values() for size in sizes.values())
                if total > place.stat().st_size:
                    raise ValueError(
                        f"client_metadata counts {total} examples, more than a file of {place.stat().st_size} bytes holds."
                    )
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        self._connection.close()

    def part(self, split: str) -> SqlitePart:
        """The clients of one split."""
        return SqlitePart(self, split)

    def rows(self, splits: Sequence[str]) -> Iterator[tuple[str, str, bytes | None]]:
        """Split, client and example of every row; ``None`` for an example of another split.

        Raises:
          ValueError: at the end, if rows are missing or there are more than ``client_metadata`` says.
        """
        marks = ",".join("?" * len(splits))
        # The table itself, not its indices: a damaged index would hide rows.
        query = (
            f"SELECT split_name, client_id, CASE WHEN split_name IN ({marks}) THEN serialized_example_proto END "
            "FROM examples NOT INDEXED ORDER BY rowid"
        )
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        with _errors(self.path):
            for split, client, raw in self._connection.execute(query, list(splits)):
                counts[split][client] += 1
                if counts[split][client] > self.sizes.get(split, {}).get(client, 0):
                    self._disagree(split, client, "more")
                yield split, client, raw
            for split, sizes in self.sizes.items():
                for client, size in sizes.items():
                    if counts[split][client] != size:
                        self._disagree(split, client, counts[split][client])

    def rows_of(self, split: str, client: str) -> list[bytes]:
        """The examples of one client."""
        query = "SELECT serialized_example_proto FROM examples WHERE split_name = ? AND client_id = ? ORDER BY rowid"
        with _errors(self.path), self._lock:
            found = [raw for (raw,) in self._connection.execute(query, (split, client))]
            if len(found) != self.sizes[split][client]:
                self._disagree(split, client, len(found))
        return found

    def check_index(self) -> None:
        """Raises ``ValueError`` where finding one client's examples means reading the whole file."""
        query = "EXPLAIN QUERY PLAN SELECT 1 FROM examples WHERE split_name = ? AND client_id = ?"
        with _errors(self.path):
            plan = [row[-1] for row in self._connection.execute(query, ("", ""))]
            if not all(step.startswith("SEARCH") for step in plan):
                raise ValueError(
                    "the table 'examples' has no index, so every client would be searched in the whole file. Make one: "
                    "CREATE INDEX by_client ON examples (split_name, client_id)."
                )

    def _disagree(self, split: str, client: str, found: int | str) -> None:
        size = self.sizes.get(split, {}).get(client, 0)
        raise ValueError(
            f"client {client!r} has {found} examples in split {split!r}, but client_metadata says {size}; expected as "
            "many. The file was cut off or changed."
        )

    def _check_table(self, table: str, columns: Sequence[str]) -> None:
        master = self._connection.execute("SELECT name, type, rootpage FROM sqlite_master").fetchall()
        # A view or a virtual table could compute anything, for ever.
        if not any(kind == "table" and name == table and page for name, kind, page in master):
            there = ", ".join(str(name) for name, kind, _ in master if kind == "table") or "none"
            raise ValueError(f"no table is called {table!r}, the file has {there}.")
        found = {row[1]: row[6] for row in self._connection.execute(f"PRAGMA table_xinfo({table})")}
        for column in columns:
            if found.get(column, 1):
                raise ValueError(
                    f"table {table!r} has the columns {', '.join(map(str, found))}, expected {', '.join(columns)}."
                )

    def _read_sizes(self) -> dict[str, dict[str, int]]:
        sizes: dict[str, dict[str, int]] = defaultdict(dict)
        query = "SELECT split_name, client_id, num_examples FROM client_metadata NOT INDEXED"
        for split, client, size in self._connection.execute(query):
            if not (
                isinstance(split, str) and isinstance(client, str) and isinstance(size, int) and size >= 0
            ):
                raise ValueError(
                    f"client_metadata holds {split!r}, {client!r}, {size!r}, expected two texts and a number."
                )
            if client in sizes[split]:
                raise ValueError(
                    f"client_metadata names client {client!r} twice in split {split!r}, expected once."
                )
            sizes[split][client] = size
        if not sizes:
            raise ValueError("client_metadata is empty, expected at least one client.")
        return dict(sizes)


def _begun(journal: Path) -> bool:
    """Whether there is something in it: one that is kept for the next time is empty, or begins with zeros."""
    with journal.open("rb") as stream:
        return any(stream.read(8))


def _check_length(place: Path) -> None:
    """SQLite itself reads what is missing at the end of a page as zeros."""
    with place.open("rb") as stream:
        header, length = stream.read(100), place.stat().st_size
    page = int.from_bytes(header[16:18], "big")
    page = 65536 if page == 1 else max(page, 1)
    counted = header[24:28] == header[92:96]  # else an old SQLite wrote the file, which did not count
    pages = int.from_bytes(header[28:32], "big") if counted else length // page
    if len(header) < 100 or length != pages * page:
        raise ValueError(
            f"the SQLite file is damaged, or of another kind: it has {length} bytes, expected {pages} pages of {page}."
        )


class SqlitePart(Part):
    """The clients of one split, sorted by their ids."""

    def __init__(self, file: SqliteFile, split: str):
        sizes = file.sizes[split]
        names = sorted(sizes)
        with errors_name(file.path):
            super().__init__(file.path, text_ids(names, "client_metadata"), [sizes[name] for name in names])
        self._file, self._split, self._names = file, split, names

    def client(self, position: int) -> Values:
        rows = self._file.rows_of(self._split, self._names[position])
        return self._values(position, [self._parsed(position, raw) for raw in rows])

    def clients(self) -> Iterator[tuple[int, Values]]:
        positions = {name: position for position, name in enumerate(self._names)}
        pending: dict[int, list[Features]] = defaultdict(list)
        for split, name, raw in self._file.rows([self._split]):
            if split != self._split:
                continue
            position = positions[name]
            pending[position].append(self._parsed(position, raw))
            if len(pending[position]) == self.sizes[position]:
                yield position, self._values(position, pending.pop(position))

    def _parsed(self, position: int, raw: bytes | None) -> Features:
        with errors_name(self.source), errors_name_client(self, position):
            return parse_example(raw)

    def _values(self, position: int, examples: list[Features]) -> Values:
        """One array ``[examples, values]`` per feature; a list of text where it holds bytes."""
        with errors_name(self.source), errors_name_client(self, position):
            return {field: _column(field, examples) for field in examples[0]}


def _column(field: str, examples: list[Features]) -> np.ndarray | list:
    """``[examples, values]``; a list where the field holds bytes, or as many values not in each example."""
    column = [example.get(field, ()) for example in examples]
    if (
        all(isinstance(values, np.ndarray) for values in column)
        and len({len(values) for values in column}) == 1
    ):
        return np.stack(column)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return [
        text(values[0])
        if len(values) == 1 and isinstance(values, list)
        else [*map(text, values)]
        if isinstance(values, list)
        else values
        for values in column
    ]
