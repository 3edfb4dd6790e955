"""What a run is, as far as it can be seen: a checkpoint belongs to one such description."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim._runner import root_words
from fedjax_sim._src.types import Algorithm
from fedjax_sim.data import ClientData
from fedjax_sim.data.client_source import Clients
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.engines import SimState
from fedjax_sim.engines._problem import Problem, example_batch
from fedjax_sim.tasks.precision import precision_of


def describe(
    algorithm: Algorithm,
    data: Clients,
    group: np.ndarray,
    cohort: Cohort,
    local: LocalWork,
    state: SimState,
    precision: str,
) -> dict[str, Any]:
    """Seed, algorithm, chain, precision, cohort, local work and data of a run, in JSON's types."""
    population = data.num_clients
    work = {f.name: getattr(local, f.name) for f in dataclasses.fields(local) if f.name != "rows"}
    return {
        "seed": [list(words) for words in root_words(state)],
        "algorithm": algorithm.name,
        "chain": [[facts.name for facts in stage.aggregate.facts] for stage in algorithm.stages],
        "precision": precision,
        "cohort": {
            "sampling": cohort.sampling,
            "expected": cohort.expected(population),
            "largest": cohort.cap(population),
        },
        "local": work | {"explicit_rows": local.rows is not None},
        "data": {
            "clients": population,
            "examples": data.num_examples,
            "sizes": _checksum(data.sizes),
            "groups": _checksum(group),
            "columns": {name: _checksum(column) for name, column in _looked_at(data).items()},
        },
    }


def model_precision(algorithm: Algorithm, problem: Problem, state: SimState) -> str:
    """What the global model computes with on one batch of a client; ``state``: arrays or specs, no replica axis."""
    if "precision" not in problem.known:
        batch = example_batch(problem.columns, dataclasses.replace(problem.local, batches_per_step=1))
        params = jax.eval_shape(algorithm.params, state.server)
        problem.known["precision"] = precision_of(algorithm.task, params, batch)
    return problem.known["precision"]


def _looked_at(data: Clients) -> Mapping[str, np.ndarray]:
    """Columns to tell data apart by: of a source, those of a few of its clients."""
    if isinstance(data, ClientData):
        return data.columns
    few = np.unique(np.linspace(0, data.num_clients - 1, 8).astype(np.int64))
    return data.select(few).in_memory.columns


def _checksum(array: np.ndarray) -> str:
    """Type, shape, and a checksum of at most some thousand rows, so that data larger than memory stays on disk."""
    rows = array[:: max(1, len(array) // 4096)]
    return f"{array.dtype}{list(array.shape)} {zlib.crc32(np.ascontiguousarray(rows).tobytes()):08x}"
