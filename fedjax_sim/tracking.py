"""Trackers: where the metrics of a run are written while it runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.evaluation import Evaluation
from fedjax_sim.history import History
from fedjax_sim.simulate import NonFiniteModelError, Progress


class JsonLines:
    """A file with one JSON object per line, each on disk as soon as it is written.

    NumPy and JAX scalars and arrays become numbers and lists; NaN and infinity, which JSON lacks, become null.

    Args:
      path: the file to make, in a folder that exists.

    Raises:
      FileExistsError: the file is there already; it is never overwritten.

    Example:
      >>> import tempfile, numpy as np
      >>> from pathlib import Path
      >>> from fedjax_sim.tracking import JsonLines
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with JsonLines(Path(folder) / "metrics.jsonl") as tracker:
      ...         tracker.write({"round": 0, "loss": np.float32(0.5), "accuracy": float("nan")})
      ...     print(tracker.path.read_text(), end="")
      {"round": 0, "loss": 0.5, "accuracy": null}
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        try:
            self._file = self.path.open("x", encoding="utf-8")
        except FileExistsError:
            raise FileExistsError(
                f"{self.path} exists already and is not overwritten; choose another folder."
            ) from None

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


class Recorder:
    """Callback of a simulation that gives every tracker the rounds that are new.

    As a context manager around the run it also records the rounds before a model that became NaN or infinite.

    Args:
      *trackers: with a method ``write`` that takes the row of a round; see ``round_rows``.

    Attributes:
      recorded: rounds that every tracker has.

    Example:
      ``with JsonLines(path) as tracker: sim.run(state, rounds=100, callbacks=[Recorder(tracker)])``
    """

    def __init__(self, *trackers: JsonLines):
        self.trackers = trackers
        self.recorded = 0
        self._next: int | None = None

    def __call__(self, progress: Progress) -> None:
        self.record(progress.chunk)

    def record(self, history: History) -> None:
        """Writes the rounds of a history that earlier ones did not have."""
        start = 0 if self._next is None else max(0, self._next - history.first_round)
        for row in round_rows(history, start):
            for tracker in self.trackers:
                tracker.write(row)
            self._next, self.recorded = row["round"] + 1, self.recorded + 1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, NonFiniteModelError):
            self.record(error.history)


def as_json(value: Any) -> Any:
    """The value in JSON's types: see ``JsonLines`` for what becomes of arrays, NaN and infinity.

    Raises:
      TypeError: a key of a mapping is not a string, or a value has no form in JSON.
    """
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"key {key!r} is {type(key).__name__}, expected a string.")
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, np.generic) or (hasattr(value, "__array__") and hasattr(value, "dtype")):
        return as_json(np.asarray(value).tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{value!r} is {type(value).__name__}, expected a number, text, array, list or mapping.")


def round_rows(history: History, start: int = 0) -> Iterator[dict[str, Any]]:
    """One row per round: its index, its metrics, and ``<set>/...`` where the model was evaluated after it.

    Args:
      history: of a run.
      start: how many of its rounds to leave out.
    """
    for index in range(start, history.rounds):
        round_ = history.first_round + index
        row = {"round": round_} | {name: float(values[index]) for name, values in history.metrics.items()}
        yield row | evaluation_row(history.evaluations.get(round_ + 1, {}))


def evaluation_row(evaluations: Mapping[str, Evaluation]) -> dict[str, float]:
    """Of a set named ``eval``: ``eval/accuracy`` over all examples; ``eval/accuracy/mean``, ``/std`` ... over clients."""
    row = {}
    for where, evaluation in evaluations.items():
        for metric, value in evaluation.examples.items():
            row[f"{where}/{metric}"] = value
            row |= {f"{where}/{metric}/{over}": x for over, x in evaluation.clients[metric].items()}
    return row


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file at once: a reader sees the whole file or none."""
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(as_json(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    partial.replace(path)
