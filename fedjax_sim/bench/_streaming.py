"""Training from a set on disk that is ten times the memory a process may have, against the same work with all of it in memory.

Images 28 x 28 of 62 classes by clients of skewed sizes, written by ``data.write``. Each measurement is a process of its own,
resident and streamed in turn; the streamed one may not allocate more than ``--limit`` (RLIMIT_DATA, so on Linux), and what
the system holds of the files is dropped before it starts. ``ratio`` is the streamed speed in units of the resident.

    fedjax-sim bench streaming
    fedjax-sim bench streaming -- --gigabytes 2 --models linear
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import optax

from fedjax_sim import algorithms, models, tasks
from fedjax_sim._src import machine
from fedjax_sim.bench import _measure
from fedjax_sim.data import ClientData, cohorts, stored, write
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.simulate import Simulation

CLASSES, EXAMPLES = 62, 140
COLUMNS = ("model", "set GB", "limit GB", "feed", "examples/s", "min", "max", "ratio", "data GB")
GIGABYTE = 1e9


def clients(gigabytes: float, seed: int = 0) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Random images until there are so many gigabytes of them; log-normal sizes around 140."""
    generator, left, client = np.random.default_rng(seed), gigabytes * GIGABYTE, 0
    while left > 0:
        size = max(1, int(EXAMPLES * generator.lognormal(-0.08, 0.4)))
        x = generator.integers(0, 256, (size, 28, 28, 1), np.uint8)
        yield client, {"x": x, "y": generator.integers(CLASSES, size=size).astype(np.int32)}
        left, client = left - x.nbytes - 4 * size, client + 1


def measure(args) -> dict:
    """In a process of its own: examples a second, the median over chunks, compilation left out."""
    train = stored(args.folder).train
    if args.measure == "streamed":
        import resource  # which Windows lacks

        limit = int(args.limit * GIGABYTE)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        for path in args.folder.iterdir():
            with path.open("rb") as stream:
                os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    else:  # a memory map would be read as it is wanted, too
        columns = {name: np.array(column) for name, column in train.columns.items()}
        train = ClientData(columns, train.offsets, train.ids)
    task = tasks.classification(getattr(models, args.models[0])(classes=CLASSES))
    sim = Simulation(
        algorithms.fedavg(task, optax.sgd(0.01)), train, cohort=cohorts.uniform(args.cohort),
        local=LocalWork(epochs=1, batch_size=20), rounds_per_chunk=args.rounds, stream=args.measure == "streamed",
    )  # fmt: skip
    moments, seen = [], []

    def look(progress) -> None:
        moments.append(time.perf_counter())
        seen.append(progress.chunk.costs.examples)

    sim.run(sim.init(0), args.rounds * (args.chunks + 2), callbacks=[look])
    # The first chunk compiles, and what the second needed was gathered meanwhile.
    seconds, examples = np.diff(moments[1:]), np.diff(seen[1:])
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "examples_per_second": float(examples.sum() / seconds.sum()),
        "data_gigabytes": int(status["VmData"].split()[0]) * 1024 / GIGABYTE,
    }


def _measured(args, model: str, feed: str) -> dict:
    own = ["--measure", feed, "--models", model, "--folder", str(args.folder)]
    same = [f"--{name}={getattr(args, name)}" for name in ("limit", "cohort", "rounds", "chunks")]
    command = [sys.executable, "-m", "fedjax_sim", "bench", "streaming", "--", *own, *same]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600)
    if done.returncode:
        raise RuntimeError(f"the {feed} run of {model} ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--gigabytes", type=float, default=10.0, help="size of the set")
    parser.add_argument(
        "--limit", type=float, default=1.0, help="gigabytes that the streamed run may allocate"
    )
    parser.add_argument("--models", nargs="+", default=["linear", "mlp"])
    parser.add_argument("--cohort", type=int, default=100, help="clients a round")
    parser.add_argument("--rounds", type=int, default=4, help="rounds of a chunk")
    parser.add_argument("--chunks", type=int, default=5, help="chunks that are measured")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where the set is, or goes; temporary by default"
    )
    parser.add_argument("--measure", choices=("resident", "streamed"), default=None, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    if args.measure is not None:
        print(json.dumps(measure(args)))
        return
    hardware = _measure.hardware(machine.cores())
    with tempfile.TemporaryDirectory() as temporary:
        args.folder = args.folder or Path(temporary) / "set"
        if not args.folder.exists():
            write(args.folder, clients(args.gigabytes))
        size = stored(args.folder).train.nbytes / GIGABYTE
        rows = [row for model in args.models for row in _rows(args, model, size)]
    _measure.print_table(COLUMNS, [
        (
            row["model"], row["set_gigabytes"], row["limit_gigabytes"] or "none", row["feed"],
            *(row["examples_per_second"][name] for name in ("median", "min", "max")), row["ratio"], row["data_gigabytes"],
        )
        for row in rows
    ])  # fmt: skip
    if args.out is not None:
        _measure.write_json(args.out, {"hardware": hardware, "repeats": args.repeats, "rows": rows})


def _rows(args, model: str, size: float) -> list[dict]:
    found: dict[str, list[dict]] = {"resident": [], "streamed": []}
    for _ in range(args.repeats):
        for feed, results in found.items():
            results.append(_measured(args, model, feed))
    speeds = {feed: [r["examples_per_second"] for r in results] for feed, results in found.items()}
    ratio = float(np.median(np.divide(speeds["streamed"], speeds["resident"])))
    return [
        {
            "model": model, "feed": feed, "set_gigabytes": size,
            "limit_gigabytes": args.limit if feed == "streamed" else None,
            "examples_per_second": _measure.spread(speeds[feed]), "ratio": 1.0 if feed == "resident" else ratio,
            "data_gigabytes": max(r["data_gigabytes"] for r in results),
        }
        for feed, results in found.items()
    ]  # fmt: skip
