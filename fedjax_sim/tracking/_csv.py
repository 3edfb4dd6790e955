"""Rows as a table of comma-separated values."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TextIO

from fedjax_sim.tracking import _files
from fedjax_sim.tracking._rows import as_json


class Csv:
    """A table with a header line, for spreadsheets; each row is on disk as soon as it is written.

    The columns are those of all rows so far. A row with a new name (``eval/...`` on the first evaluated round) writes
    the file anew with the column at the end, in one move, so a crash leaves the whole old or the whole new table.
    Settings of a sweep become columns ``sweep/<setting>``; lists are written as JSON; what a row lacks, null, NaN and
    infinity are empty cells.

    Args:
      path: the file to make, in a folder that exists.
      keep_rounds: continue the file of a run that stopped, as for ``JsonLines``.

    Raises:
      FileExistsError: the file is there already and ``keep_rounds`` is not given; it is never overwritten.
      ValueError: the file to continue is no table with a column ``round``, or ``keep_rounds`` is no count.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from fedjax_sim.tracking import Csv
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with Csv(Path(folder) / "metrics.csv") as tracker:
      ...         tracker.write({"round": 0, "loss": 0.5})
      ...         tracker.write({"round": 1, "loss": 0.25, "eval/accuracy": 0.9})
      ...     print(tracker.path.read_text(), end="")
      round,loss,eval/accuracy
      0,0.5,
      1,0.25,0.9
    """

    def __init__(self, path: str | Path, keep_rounds: int | None = None):
        self.path = Path(path)
        self.columns: list[str] = []
        _files.check_keep_rounds(keep_rounds)
        if keep_rounds is None or not self.path.exists():
            self._file = _files.create(self.path)
        else:
            self.columns, rows = _rows_before(self.path, keep_rounds)
            _files.replace(self.path, lambda file: _write(file, self.columns, rows))
            self._file = _files.append(self.path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one row.

        Raises:
          TypeError: a key is not a string, or a value has no form in JSON; nothing is written then.
          ValueError: the tracker is closed.
        """
        if self._file.closed:
            raise ValueError(f"{self.path} is closed: it takes no more rows.")
        cells = dict(_cells(as_json(row)))
        new = [name for name in cells if name not in self.columns]
        if new:
            self._add_columns(new)
        # The line is complete before the file sees any of it, and goes out in one piece.
        line = io.StringIO()
        _write(line, [], [[cells.get(name, "") for name in self.columns]])
        self._file.write(line.getvalue())
        self._file.flush()

    def _add_columns(self, new: list[str]) -> None:
        columns = self.columns + new
        with self.path.open(encoding="utf-8", newline="") as old:
            rows = csv.reader(old)
            next(rows, None)
            padded = (row + [""] * (len(columns) - len(row)) for row in rows)
            _files.replace(self.path, lambda file: _write(file, columns, padded))
        self._file.close()
        self._file = _files.append(self.path)
        self.columns = columns

    def close(self) -> None:
        """Closes the file; closing again does nothing."""
        self._file.close()

    def __enter__(self) -> Csv:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _write(file: TextIO, columns: list[str], rows) -> None:
    writer = csv.writer(file, lineterminator="\n")
    if columns:
        writer.writerow(columns)
    writer.writerows(rows)


def _cells(row: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """``{"sweep": {"lr": 0.1}}`` is the cell ``sweep/lr``."""
    for name, value in row.items():
        if isinstance(value, dict):
            yield from _cells(value, f"{prefix}{name}/")
        elif value is None:
            yield prefix + name, ""
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def _rows_before(path: Path, rounds: int) -> tuple[list[str], list[list[str]]]:
    """The header, and the rows of earlier rounds; a last row that was cut off is none."""
    text = path.read_text(encoding="utf-8", errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    table: list[list[str]] = []
    try:
        table.extend(reader)
        cut = not text.endswith("\n")
    except csv.Error:
        cut = False  # a quoted cell without its end: the reader did not give that row
    if cut and table:
        table.pop()
    if not table:
        return [], []
    header, *rows = table
    if "round" not in header:
        raise ValueError(
            f"the columns of {path} are {', '.join(header)[:80]}, expected one named 'round'; this is no table of a run, "
            "choose another file."
        )
    place = header.index("round")
    try:
        return header, [row for row in rows if int(row[place]) < rounds]
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"{path} has a row without a round ({error}); mend or remove it, then continue."
        ) from None
