"""Rows of a run's metrics, and their form in JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.evaluation import Evaluation
from fedjax_sim.history import History


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
