"""This package's process in the benchmark of peers: ``python -m fedjax_sim.bench._ours job.json``.

It reads the same arrays and cohorts as the peers' scripts and runs whole chunks through ``Simulation``.
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import json  # noqa: E402  the clock runs while packages are imported
import os  # noqa: E402
import sys  # noqa: E402
from importlib import metadata  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import flax.traverse_util  # noqa: E402
import jax  # noqa: E402
import numpy as np  # noqa: E402

from fedjax_sim import engines  # noqa: E402
from fedjax_sim._src.types import Variables  # noqa: E402
from fedjax_sim.bench import _floors, _measure  # noqa: E402
from fedjax_sim.bench._exchange import weights_by_name  # noqa: E402
from fedjax_sim.bench._floors import Machine  # noqa: E402
from fedjax_sim.bench._workloads import WORKLOADS  # noqa: E402
from fedjax_sim.data import ClientData  # noqa: E402
from fedjax_sim.data.local_work import LocalWork  # noqa: E402
from fedjax_sim.simulate import Simulation  # noqa: E402


def main(path: str) -> None:
    """Trains what a job asks for, and writes its result."""
    job = json.loads(Path(path).read_text())
    os.sched_setaffinity(0, {job["core"]})  # before JAX counts the cores for its threads
    sim, variables = simulation(job)
    state = sim.init(0, variables)
    if job["warm"]:
        state, _ = sim.run(state, job["warm"])
    jax.block_until_ready(state)
    startup = time.perf_counter() - STARTED
    seconds, cpu_seconds, end = [], [], state
    for _ in range(job["chunks"]):
        before = time.perf_counter(), time.process_time()
        end, history = sim.run(state, job["rounds"])
        jax.block_until_ready(end)
        seconds.append(time.perf_counter() - before[0])
        cpu_seconds.append(time.process_time() - before[1])
    # On the same core and right behind what is held against it.
    machine = Machine(_measure.matmul_flops_per_second(), _measure.bytes_per_second())
    floors = _floors.work_of(sim, end, history.costs, job["rounds"]).floors(machine)
    result = Path(job["result"])
    weights: dict[str, Any] = weights_by_name(sim, end)
    np.savez(result.with_suffix(".npz"), **weights)
    packages = ("fedjax-sim", "jax", "numpy")
    result.write_text(json.dumps({
        "seconds": seconds, "cpu_seconds": cpu_seconds, "startup_seconds": startup, "layout": str(sim._rounds.layout),
        "floors": floors,
        "versions": {"python": sys.version.split()[0], **{name: metadata.version(name) for name in packages}},
    }))  # fmt: skip


def simulation(job: dict) -> tuple[Simulation, Variables]:
    """The job's clients, cohorts and local work, on lanes of an automatic number."""
    workload = WORKLOADS[job["workload"]]
    with np.load(job["arrays"], allow_pickle=False) as arrays:
        columns = {name.removeprefix("column:"): arrays[name] for name in arrays.files if "column:" in name}
        params = {name.removeprefix("param:"): arrays[name] for name in arrays.files if "param:" in name}
        offsets, cohorts = arrays["offsets"], arrays["cohorts"]
    data = ClientData(columns, offsets, np.arange(len(offsets) - 1))
    cohort = workload.cohort._replace(
        sample=lambda generator, round_, population: cohorts[round_],
        cap=lambda population: cohorts.shape[1],
        expected=lambda population: float(cohorts.shape[1]),
    )
    sim = Simulation(
        workload.algorithm(dropout=False, learning_rate=job["learning_rate"]), data, cohort=cohort,
        local=LocalWork(epochs=job["epochs"], batch_size=job["batch_size"], shuffle=False),
        engine=engines.lanes("auto"), rounds_per_chunk=job["rounds"],
    )  # fmt: skip
    return sim, Variables(flax.traverse_util.unflatten_dict(params, sep="/"), (), ())


if __name__ == "__main__":
    main(sys.argv[1])
