"""Rows as one JSON object per line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_sim.tracking import _files
from fedjax_sim.tracking._rows import as_json


class JsonLines:
    """A file with one JSON object per line, each on disk as soon as it is written.

    NumPy and JAX scalars and arrays become numbers and lists; NaN and infinity, which JSON lacks, become null.

    Args:
      path: the file to make, in a folder that exists.
      keep_rounds: continue the file of a run that stopped: rows of rounds below this number stay, later rows go, and so
        does a last line that was cut off. The file is replaced in one move. One that is missing is begun.

    Raises:
      FileExistsError: the file is there already and ``keep_rounds`` is not given; it is never overwritten.
      ValueError: a line of the file to continue is no row, or ``keep_rounds`` is no count.

    Example:
      >>> import tempfile, numpy as np
      >>> from pathlib import Path
      >>> from fedjax_sim.tracking import JsonLines
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     path = Path(folder) / "metrics.jsonl"
      ...     with JsonLines(path) as tracker:
      ...         tracker.write({"round": 0, "loss": np.float32(0.5), "accuracy": float("nan")})
      ...         tracker.write({"round": 1, "loss": 0.25})
      ...     with JsonLines(path, keep_rounds=1) as tracker:
      ...         tracker.write({"round": 1, "loss": 0.375})
      ...     print(path.read_text(), end="")
      {"round": 0, "loss": 0.5, "accuracy": null}
      {"round": 1, "loss": 0.375}
    """

    def __init__(self, path: str | Path, keep_rounds: int | None = None):
        self.path = Path(path)
        _files.check_keep_rounds(keep_rounds)
        if keep_rounds is None or not self.path.exists():
            self._file = _files.create(self.path)
        else:
            kept = "".join(_rows_before(self.path, keep_rounds))
            _files.replace(self.path, lambda file: file.write(kept))
            self._file = _files.append(self.path)

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds one line.

        Raises:
          TypeError: a key is not a string, or a value has no form in JSON; nothing is written then.
          ValueError: the tracker is closed.
        """
        # The line is complete before the file sees any of it, and goes out in one piece.
        line = json.dumps(as_json(row), allow_nan=False) + "\n"
        self._file.write(line)
        self._file.flush()

    def close(self) -> None:
        """Closes the file; closing again does nothing."""
        self._file.close()

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _rows_before(path: Path, rounds: int) -> list[str]:
    """The lines of a file that belong to earlier rounds, as they are."""
    # A line that was cut off may end inside a character.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            before = row["round"] < rounds
        except (ValueError, TypeError, KeyError):
            if number == len(lines):
                break  # nothing, after the last line's end, or a line that was cut off
            raise ValueError(
                f"line {number} of {path} is {line[:60]!r}, expected a JSON object with the number 'round'; "
                "mend or remove the line, then continue the run."
            ) from None
        if before:
            kept.append(line + "\n")
    return kept
