"""The job, the arrays and the clock of every peer's script; needs nothing but numpy.

A script is started as ``python <script> job.json``. A job says which rounds to train, of which arrays, and where the
results go; ``fedjax_sim/bench/_exchange.py`` writes it.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402  the clock runs while packages are imported
import os  # noqa: E402
import sys  # noqa: E402
from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402


class Job:
    """What is to be done.

    Attributes:
      layers: of the model, each ``kind`` or ``kind:name``, where the name is that of the layer's parameters.
      batch_size, epochs, learning_rate: of every client's plain SGD, in the order of storage; the last batch of an
        epoch is short.
      weights: ``"examples"`` or ``"clients"``, of the mean over a cohort.
      scale: what uint8 inputs are multiplied with, or ``None``.
      warm, rounds: rounds before the clock is read, and rounds after.
      columns: ``x`` and ``y``, ``[examples, ...]``, grouped by client.
      offsets: ``int64[clients + 1]``.
      cohorts: ``int64[rounds, cohort]``, clients of each round.
      params: the initial weights by name, such as ``Dense_0/kernel``.
    """

    def __init__(self, path: str):
        content = json.loads(Path(path).read_text())
        # Before the frameworks look how many cores there are.
        os.sched_setaffinity(0, {content["core"]})
        self.layers: list[str] = content["layers"]
        self.batch_size: int = content["batch_size"]
        self.epochs: int = content["epochs"]
        self.learning_rate: float = content["learning_rate"]
        self.weights: str = content["weights"]
        self.scale: float | None = content["scale"]
        self.warm: int = content["warm"]
        self.rounds: int = content["rounds"]
        self._result = Path(content["result"])
        with np.load(content["arrays"], allow_pickle=False) as arrays:
            self.columns = _with_prefix(arrays, "column:")
            self.params = _with_prefix(arrays, "param:")
            self.offsets, self.cohorts = arrays["offsets"], arrays["cohorts"]
        self._laps: list[tuple[float, float]] = []
        self._first: float | None = None
        self._last = time.perf_counter(), cpu_seconds()

    def schedule(self) -> list[np.ndarray]:
        """The cohorts to train, warm-up included."""
        return list(self.cohorts[: self.warm + self.rounds])

    def client(self, client: int) -> dict[str, np.ndarray]:
        """One client's columns."""
        start, stop = self.offsets[client], self.offsets[client + 1]
        return {name: column[start:stop] for name, column in self.columns.items()}

    def slices(self, client: int) -> list[slice]:
        """Rows of each batch of one epoch, within the client's columns."""
        size = int(self.offsets[client + 1] - self.offsets[client])
        return [slice(i, min(i + self.batch_size, size)) for i in range(0, size, self.batch_size)]

    def weight(self, client: int) -> float:
        """Of the client in the mean."""
        return float(self.offsets[client + 1] - self.offsets[client]) if self.weights == "examples" else 1.0

    def start_round(self) -> None:
        """Reads the clock before a round."""
        self._last = time.perf_counter(), cpu_seconds()

    def end_round(self) -> None:
        """Reads the clock after a round, whose results exist."""
        now = time.perf_counter(), cpu_seconds()
        self._laps.append((now[0] - self._last[0], now[1] - self._last[1]))
        self._first = now[0] - STARTED if self._first is None else self._first

    def finish(self, params: dict[str, np.ndarray], packages: list[str]) -> None:
        """Writes the trained weights, the rounds' times and the versions of ``packages``."""
        np.savez(self._result.with_suffix(".npz"), **params)
        laps = self._laps[self.warm :]
        content = {
            "seconds": [wall for wall, _ in laps],
            "cpu_seconds": [cpu for _, cpu in laps],
            "startup_seconds": self._first,
            "versions": {"python": sys.version.split()[0], **{p: metadata.version(p) for p in packages}},
        }
        self._result.write_text(json.dumps(content))


def _with_prefix(arrays, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): arrays[name] for name in arrays.files if name.startswith(prefix)}


def cpu_seconds() -> float:
    """Of this process and all that descend from it, wherever they are in the tree (Ray's workers are grandchildren)."""
    parents, own = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # The name in parentheses may hold anything: what counts stands behind the last one.
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile; its time is its parent's now
        parents[int(folder.name)] = int(fields[1])
        own[int(folder.name)] = sum(map(int, fields[11:15]))
    family, pending = set(), [os.getpid()]
    while pending:
        process = pending.pop()
        pending += [child for child, parent in parents.items() if parent == process]
        family.add(process)
    # The system counts others in hundredths of a second; this process knows its own time better.
    others = sum(own[process] for process in family - {os.getpid()} if process in own)
    return time.process_time() + others / os.sysconf("SC_CLK_TCK")
