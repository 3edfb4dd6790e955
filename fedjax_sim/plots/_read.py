"""Reads a run folder for pictures and reports: what is missing stays empty, what is broken is an error."""

from __future__ import annotations

import dataclasses
import difflib
import json
import tomllib
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

NO_METRICS = ("round", "seed", "sweep")
"""Names in a row that say which row it is."""


@dataclasses.dataclass(frozen=True)
class Replica:
    """One seed of one setting of a sweep.

    Attributes:
      seed: of the replica; ``None`` where the rows name none.
      setting: swept settings, ``{}`` without a sweep.
      rows: its rows, by round.
    """

    seed: int | None
    setting: Mapping[str, Any]
    rows: tuple[Mapping[str, Any], ...]

    def values(self, name: str) -> np.ndarray:
        """A metric in every row, ``f64[rows]``; NaN where it is missing or null."""
        return np.array(
            [np.nan if row.get(name) is None else row[name] for row in self.rows], dtype=np.float64
        )

    @property
    def rounds(self) -> np.ndarray:
        """Rounds done after every row, ``i64[rows]``: a row's index plus one."""
        return np.array([row["round"] + 1 for row in self.rows], dtype=np.int64)


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run folder holds.

    Attributes:
      path: the folder.
      name: the configuration's name, else the folder's.
      config: ``config.toml``; ``{}`` where a file is missing, as for the next three.
      environment: ``environment.json``.
      summary: ``summary.json``.
      clients: arrays of ``clients.npz``.
      replicas: seeds and settings, in the order in which the rows first name them.
      notes: what was odd about the files, in sentences.
    """

    path: Path
    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    summary: Mapping[str, Any]
    clients: Mapping[str, np.ndarray]
    replicas: tuple[Replica, ...]
    notes: tuple[str, ...] = ()

    @property
    def rounds(self) -> int:
        """Rounds done by the replica that did the most."""
        return max((int(replica.rounds[-1]) for replica in self.replicas), default=0)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics, in the order in which the rows first have them."""
        names: dict[str, None] = {}
        for replica in self.replicas:
            for row in replica.rows:
                names |= dict.fromkeys(row)
        return tuple(name for name in names if name not in NO_METRICS)

    @property
    def settings(self) -> tuple[Mapping[str, Any], ...]:
        """The settings of a sweep, each once; ``({},)`` without one."""
        found: list[Mapping[str, Any]] = []
        for replica in self.replicas:
            if replica.setting not in found:
                found.append(replica.setting)
        return tuple(found)

    def of_setting(self, setting: Mapping[str, Any]) -> tuple[Replica, ...]:
        """The replicas with a setting: its seeds."""
        return tuple(replica for replica in self.replicas if replica.setting == setting)

    def check_metric(self, name: str) -> None:
        """Raises ``ValueError``, with the nearest name, unless some row has the metric."""
        _check_name("metric", name, self.metrics, self.path)

    def client_array(self, name: str) -> np.ndarray:
        """An array of ``clients.npz``.

        Raises:
          ValueError: the file has none of that name.
        """
        _check_name("array of clients", name, tuple(self.clients), self.path)
        return self.clients[name]


def read_run(folder: str | Path | RunData) -> RunData:
    """Reads a run folder.

    Args:
      folder: with ``metrics.jsonl``, and any of ``config.toml``, ``environment.json``, ``summary.json`` and
        ``clients.npz``. What is read already is returned as it is.

    Raises:
      FileNotFoundError: no such folder, or no run folder.
      ValueError: a file that cannot be read, with its line where there is one. A last line of ``metrics.jsonl`` that
        was cut off is no error but a note.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from fedjax_sim import plots
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = (Path(folder) / "metrics.jsonl").write_text('{"round": 0, "seed": 0, "loss": 0.5}\\n')
      ...     run = plots.read_run(folder)
      >>> run.metrics, run.rounds
      (('loss',), 1)
    """
    if isinstance(folder, RunData):
        return folder
    path = Path(folder)
    if not path.is_dir():
        raise FileNotFoundError(f"{path} is no folder, expected a run folder, as fedjax-sim run makes it.")
    if not (path / "metrics.jsonl").is_file():
        inside = sorted(p.parent.name for p in path.glob("*/metrics.jsonl"))
        hint = f" It holds run folders, name one: {', '.join(inside[:5])}." if inside else ""
        raise FileNotFoundError(f"{path} is no run folder: it has no metrics.jsonl.{hint}")
    rows, notes = _rows(path / "metrics.jsonl")
    config = _config(path / "config.toml")
    return RunData(
        path=path,
        name=str(config.get("name") or path.resolve().name),
        config=config,
        environment=_json(path / "environment.json"),
        summary=_json(path / "summary.json"),
        clients=_arrays(path / "clients.npz"),
        replicas=_replicas(rows),
        notes=notes,
    )


def _check_name(kind: str, name: str, known: tuple[str, ...], path: Path) -> None:
    if name in known:
        return
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"no {kind} {name!r} in {path}; there are {', '.join(known) or 'none'}.{hint}")


def _rows(path: Path) -> tuple[list[dict[str, Any]], tuple[str, ...]]:
    # A line that was cut off may end inside a character.
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
            if not isinstance(row["round"], int):
                raise TypeError
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise ValueError(
                    f"line {number} of {path} is {line[:60]!r}, expected a JSON object with an integer 'round'; "
                    "mend or remove the line."
                ) from None
            return rows, (f"the last line of {path.name} was cut off and is left out",) if line else ()
        rows.append(row)
    return rows, ()


def _replicas(rows: list[dict[str, Any]]) -> tuple[Replica, ...]:
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault(json.dumps([row.get("sweep"), row.get("seed")], sort_keys=True), []).append(row)
    return tuple(
        Replica(
            group[0].get("seed"),
            group[0].get("sweep") or {},
            tuple(sorted(group, key=lambda row: row["round"])),
        )
        for group in groups.values()
    )


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no TOML: {error}.") from error


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__}, expected a JSON object.")
    return content


def _arrays(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of plain NumPy arrays: {error}.") from error
