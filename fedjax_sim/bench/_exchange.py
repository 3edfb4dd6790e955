"""One workload as files that programs without this package can read, and what they leave behind.

A work folder holds ``arrays.npz``: the columns of the clients that are drawn, their offsets, the cohorts of every
round and the initial weights, in flax's layout. A job is a JSON file that says what to do with them; its result is a
JSON file with times and an ``.npz`` file with the trained weights.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.traverse_util
import numpy as np

from fedjax_sim._runner import root_words
from fedjax_sim.bench._workloads import Workload
from fedjax_sim.simulate import Simulation


@dataclasses.dataclass(frozen=True)
class Work:
    """A workload in a folder.

    Attributes:
      workload: what it is.
      folder: where its files are.
      arrays: the columns, offsets, cohorts and weights.
      scale: what inputs are multiplied with, or ``None``.
      examples: that a cohort trains on, passes counted, ``int64[rounds]``.
      params: the initial weights by name.
    """

    workload: Workload
    folder: Path
    arrays: Path
    scale: float | None
    examples: np.ndarray
    params: dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Result:
    """What a process measured.

    Attributes:
      seconds, cpu_seconds: of each observation: a round, or a chunk of rounds.
      startup_seconds: from the first import to the end of the first round; of the warm-up, where it runs as one chunk.
      versions: of what it ran on.
      params: the trained weights by name.
      layout: how clients shared the device, where they did.
      floors: the least time of a round, from this package's process (``bench/_floors.py``).
    """

    seconds: list[float]
    cpu_seconds: list[float]
    startup_seconds: float
    versions: dict[str, str]
    params: dict[str, np.ndarray]
    layout: str | None = None
    floors: dict[str, Any] | None = None


def write_work(workload: Workload, folder: Path, rounds: int, seed: int = 0) -> Work:
    """Draws cohorts as the simulation does, and initial weights, and writes all that a job needs."""
    data = workload.data()
    sim = Simulation(workload.algorithm(dropout=False), data, cohort=workload.cohort, local=workload.local)
    state = sim.init(seed)
    # Cohorts of these workloads are all of one size.
    drawn = sim.planner().turns(root_words(state), 0, rounds).client.reshape(rounds, -1)
    # Only who is drawn: the population costs nobody anything, but its images fill the disk.
    present, positions = np.unique(drawn, return_inverse=True)
    chosen, cohorts = data.select(present).in_memory, positions.reshape(drawn.shape)
    params = weights_by_name(sim, state)
    arrays = folder / "arrays.npz"
    content: dict[str, Any] = {
        "offsets": np.asarray(chosen.offsets, np.int64),
        "cohorts": cohorts.astype(np.int64),
    }
    content |= {f"column:{name}": column for name, column in chosen.columns.items()}
    content |= {f"param:{name}": value for name, value in params.items()}
    np.savez(arrays, **content)
    passes = workload.local.epochs or 1
    scale = 1 / 255 if data.columns["x"].dtype == np.uint8 else None
    return Work(workload, folder, arrays, scale, chosen.sizes[cohorts].sum(axis=1) * passes, params)


def weights_by_name(sim: Simulation, state: Any) -> dict[str, np.ndarray]:
    """The global model's parameters, such as ``Dense_0/kernel``."""
    params = sim.algorithm.params(state.server).params
    flat = flax.traverse_util.flatten_dict(params, sep="/")
    return {str(name): np.asarray(value) for name, value in flat.items()}


def write_job(
    work: Work, name: str, *, core: int, learning_rate: float, warm: int, rounds: int, chunks: int
) -> Path:
    """A job's file.

    Args:
      work: of which workload.
      name: of the job; its files are called after it.
      core: the only one to run on.
      learning_rate: of the clients.
      warm: rounds before the clock is read.
      rounds: rounds that are timed.
      chunks: for programs that run rounds in chunks: how often all timed rounds are repeated.
    """
    workload, path = work.workload, work.folder / f"{name}.job.json"
    content = {
        "workload": workload.name, "arrays": str(work.arrays), "result": str(work.folder / f"{name}.result.json"),
        "layers": workload.layers, "scale": work.scale, "weights": workload.weights,
        "batch_size": workload.local.batch_size, "epochs": workload.local.epochs, "learning_rate": learning_rate,
        "core": core, "warm": warm, "rounds": rounds, "chunks": chunks,
    }  # fmt: skip
    path.write_text(json.dumps(content, indent=1))
    return path


def read_result(job: Path) -> Result:
    """What the process of a job left."""
    path = Path(json.loads(job.read_text())["result"])
    with np.load(path.with_suffix(".npz"), allow_pickle=False) as arrays:
        params = {name: arrays[name] for name in arrays.files}
    return Result(**json.loads(path.read_text()), params=params)


def disagreement(
    found: dict[str, np.ndarray], expected: dict[str, np.ndarray], start: dict[str, np.ndarray]
) -> float:
    """Norm of the difference of two updates over that of the expected one; infinite where weights are missing.

    Raises nothing for other shapes either: a peer that returns them disagrees.
    """
    if {k: v.shape for k, v in found.items()} != {k: v.shape for k, v in expected.items()}:
        return float("inf")
    wide = {name: value.astype(np.float64) for name, value in start.items()}
    difference = sum(float(np.sum((found[k].astype(np.float64) - expected[k]) ** 2)) for k in start)
    update = sum(float(np.sum((expected[k] - wide[k]) ** 2)) for k in start)
    ratio = np.sqrt(difference / update) if update else float("inf")
    return float(ratio) if np.isfinite(ratio) else float("inf")
