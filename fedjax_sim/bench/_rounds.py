"""Time of a round: the lanes and sharded engines against the sequential one, on the same cores, interleaved.

Each row is one (model, engine, layout). Times are medians over interleaved repetitions, compilation apart, blocking
on results. The floor of a row is the arithmetic of its real examples (XLA's count of one step, scaled to them) at the
rate of a large float32 matrix product on the same cores.

    fedjax-sim bench rounds                       # one core, then the whole machine; table and JSON
    fedjax-sim bench rounds --cores 1 --models linear mlp
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from fedjax_sim import algorithms, engines, models, tasks
from fedjax_sim.bench import _measure
from fedjax_sim.data import ClientData, cohorts, mnist_by_writer
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.simulate import Simulation

MODELS = ("linear", "mlp", "cnn", "reference_cnn")
LANES = {"linear": (1, 2, 4, 8), "mlp": (1, 2, 4), "cnn": (1, 2), "reference_cnn": (1, 2)}
ROUNDS = {"linear": 10, "mlp": 4, "cnn": 1, "reference_cnn": 1}
COLUMNS = (
    "model", "engine", "devices", "lanes", "ms/round", "examples/s", "steps occ.", "GFLOP/s", "floor ms", "of floor",
    "x sequential", "compile s",
)  # fmt: skip


def load(folder: Path):
    """MNIST by writer where it is present, else as many 28 x 28 images of noise in clients of the same sizes."""
    if folder.exists():
        return "mnist_by_writer", mnist_by_writer(folder).train
    generator = np.random.default_rng(0)
    sizes = np.clip(generator.normal(111, 22, 539), 19, 131).astype(np.int64)
    columns = {
        "x": generator.integers(0, 256, (sizes.sum(), 28, 28, 1), dtype=np.uint8),
        "y": generator.integers(0, 10, sizes.sum(), dtype=np.int32),
    }
    return "noise", ClientData.from_arrays(columns, np.repeat(np.arange(len(sizes)), sizes))


def layouts(model: str, cores: int) -> dict:
    found = {("sequential", 1, 1): engines.sequential()}
    found |= {("lanes", 1, lanes): engines.lanes(lanes) for lanes in LANES[model]}
    if cores > 1:
        mesh = engines.client_mesh(cores)
        found |= {("sharded", cores, lanes): engines.sharded(mesh, lanes=lanes) for lanes in LANES[model][:3]}
    return found


def measure(model: str, data, cores: int, args, rate: float) -> list[dict]:
    """One row per layout, interleaved."""
    task = tasks.classification(getattr(models, model)(classes=10))
    rounds, calls, last = ROUNDS[model], {}, {}
    for name, engine in layouts(model, cores).items():
        sim = Simulation(
            algorithms.fedavg(task, client=optax.sgd(0.05)), data, cohort=cohorts.uniform(args.clients),
            local=LocalWork(epochs=1, batch_size=args.batch_size), engine=engine, rounds_per_chunk=rounds,
        )  # fmt: skip
        state, history = sim.run(sim.init(0), rounds)
        compile_seconds = history.costs.compile_seconds

        def call(sim=sim, state=state, name=name, compile_seconds=compile_seconds) -> float:
            start = time.perf_counter()
            new, history = sim.run(state, rounds)
            jax.block_until_ready(new)
            last[name] = history.costs, compile_seconds
            return (time.perf_counter() - start) / rounds

        calls[name] = call
    times = _measure.interleaved(calls, args.repeats)
    sequential = times["sequential", 1, 1]
    rows = []
    for name, values in times.items():
        costs, compile_seconds = last[name]
        seconds = _measure.spread(values)
        flops = costs.flops / rounds * costs.examples / (costs.steps * costs.rows_per_step)
        ratios = [a / b for a, b in zip(sequential, values, strict=True)]
        rows.append({
            "model": model, "engine": name[0], "devices": name[1], "lanes": name[2], "cores": cores,
            "seconds_per_round": seconds, "examples_per_second": costs.examples / rounds / seconds["median"],
            "step_occupancy": costs.step_occupancy, "example_occupancy": costs.example_occupancy,
            "flops_per_second": flops / seconds["median"], "floor_seconds": flops / rate,
            "share_of_floor": flops / rate / seconds["median"], "times_sequential": _measure.spread(ratios),
            "compile_seconds": compile_seconds, "steps_per_round": costs.steps / rounds,
        })  # fmt: skip
    return rows


def one_process(args) -> dict:
    """Measures on the cores that ``args.cores`` asks for."""
    cores = _measure.use_cores(None if args.cores == "all" else int(args.cores))
    if cores > 1 and not args.accelerator:
        jax.config.update("jax_num_cpu_devices", cores)
    rate = _measure.matmul_flops_per_second()
    name, data = load(args.data)
    rows = [row for model in args.models for row in measure(model, data, cores, args, rate)]
    return {
        "hardware": _measure.hardware(cores), "matmul_flops_per_second": rate, "data": name,
        "clients_per_round": args.clients, "batch_size": args.batch_size, "repeats": args.repeats, "rows": rows,
    }  # fmt: skip


def show(result: dict) -> None:
    hardware = result["hardware"]
    print(
        f"\n{hardware['processor']}, {hardware['cores']} core(s), jax {hardware['jax']} on {hardware['backend']}; "
        f"{result['data']}, {result['clients_per_round']} clients a round, batch {result['batch_size']}; "
        f"matrix product {result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s\n"
    )
    table = [
        (
            r["model"], r["engine"], r["devices"], r["lanes"], 1e3 * r["seconds_per_round"]["median"],
            r["examples_per_second"], f"{r['step_occupancy']:.1%}", r["flops_per_second"] / 1e9,
            1e3 * r["floor_seconds"], f"{r['share_of_floor']:.0%}", f"{r['times_sequential']['median']:.2f}",
            r["compile_seconds"],
        )
        for r in result["rows"]
    ]  # fmt: skip
    _measure.print_table(COLUMNS, table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--cores", default="both", help="a number, 'all', or 'both': one core, then all of them"
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--clients", type=int, default=100, help="clients a round")
    parser.add_argument("--batch-size", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--accelerator", action="store_true", help="leave the CPU's device count alone")
    parser.add_argument("--data", type=Path, default=Path("../shared/data/mnist_by_writer"))
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    if args.cores != "both":
        result = one_process(args)
        show(result)
        if args.out is not None:
            _measure.write_json(args.out, result)
        return
    results = []
    for cores in ("1", "all"):
        part = Path(f"{args.out or 'rounds.json'}.{cores}.part")
        command = [
            sys.executable, "-m", "fedjax_sim", "bench", "rounds", "--", "--cores", cores, "--models", *args.models, "--clients", str(args.clients),
            "--batch-size", str(args.batch_size), "--repeats", str(args.repeats), "--data", str(args.data),
            "--out", str(part),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        results.append(json.loads(part.read_text()))
        part.unlink()
    if args.out is not None:
        _measure.write_json(args.out, results)
