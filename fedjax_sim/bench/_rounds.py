"""Time of a round: the lanes and sharded engines against the sequential one, on the same cores, interleaved.

Each row is one (workload, engine, layout). Times are medians over interleaved repetitions, compilation apart, blocking
on results; a workload's repetitions stop when they have taken ``--seconds`` altogether, but there are two at least.

The floor of a row is the larger of two times, by arithmetic and by memory traffic, as ``fedjax_sim/bench/_floors.py``
explains them.

Compilation beyond the budget of 10 s is marked with an exclamation mark.

    fedjax-sim bench rounds                       # one core, then the whole machine; table and JSON
    fedjax-sim bench rounds -- --cores 1 --workloads linear emnist
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from fedjax_sim import engines
from fedjax_sim.bench import _floors, _measure
from fedjax_sim.bench._floors import Machine
from fedjax_sim.bench._workloads import WORKLOADS, Workload
from fedjax_sim.engines import Engine
from fedjax_sim.simulate import Simulation

COMPILE_BUDGET_SECONDS = 10.0
COLUMNS = (
    "workload", "engine", "devices", "lanes", "ms/round", "examples/s", "steps occ.", "GFLOP/s", "floor ms", "of",
    "of floor", "x sequential", "compile s",
)  # fmt: skip
Layout = tuple[str, int, int]
"""Engine, devices, lanes."""


def layouts(lanes: Sequence[int], cores: int) -> dict[Layout, Engine]:
    found: dict[Layout, Engine] = {("sequential", 1, 1): engines.sequential()}
    found |= {("lanes", 1, count): engines.lanes(count) for count in lanes}
    if cores > 1:
        mesh = engines.client_mesh(cores)
        found |= {("sharded", cores, count): engines.sharded(mesh, lanes=count) for count in lanes[:3]}
    return found


def measure(workload: Workload, cores: int, args, machine: Machine) -> list[dict[str, Any]]:
    """One row per layout, interleaved."""
    data, rounds = workload.data(), workload.rounds
    calls, last, expected = {}, {}, 0.0
    for name, engine in layouts(args.lanes or workload.lanes, cores).items():
        sim = Simulation(
            workload.algorithm(compute=args.compute, products=args.products), data, cohort=workload.cohort, local=workload.local, engine=engine, rounds_per_chunk=rounds
        )  # fmt: skip
        state, history = sim.run(sim.init(0), rounds)
        compile_seconds = history.costs.compile_seconds
        expected += history.costs.run_seconds

        def call(sim=sim, state=state, name=name, compile_seconds=compile_seconds) -> float:
            start = time.perf_counter()
            new, history = sim.run(state, rounds)
            jax.block_until_ready(new)
            seconds = (time.perf_counter() - start) / rounds
            last[name] = history.costs, _floors.work_of(sim, new, history.costs, rounds), compile_seconds
            return seconds

        calls[name] = call
    repeats = max(2, min(args.repeats, int(args.seconds / expected)))
    times = _measure.interleaved(calls, repeats)
    sequential = times["sequential", 1, 1]
    rows = []
    for name, values in times.items():
        costs, work, compile_seconds = last[name]
        seconds, floors = _measure.spread(values), work.floors(machine)
        ratios = [a / b for a, b in zip(sequential, values, strict=True)]
        rows.append({
            "workload": workload.name, "engine": name[0], "devices": name[1], "lanes": name[2], "cores": cores,
            "seconds_per_round": {**seconds, "repetitions": repeats, "rounds": rounds},
            "examples_per_second": costs.examples / rounds / seconds["median"],
            "precision": costs.precision, "step_occupancy": costs.step_occupancy, "example_occupancy": costs.example_occupancy,
            "flops_per_second": work.flops / seconds["median"], "bytes_per_round": work.bytes,
            **floors, "share_of_floor": floors["floor_seconds"] / seconds["median"], "times_sequential": _measure.spread(ratios),
            "compile_seconds": compile_seconds, "steps_per_round": costs.steps / rounds,
        })  # fmt: skip
    return rows


def one_process(args) -> dict[str, Any]:
    """Measures on the cores that ``args.cores`` asks for."""
    cores = _measure.use_cores(None if args.cores == "all" else int(args.cores))
    if cores > 1 and not args.accelerator:
        jax.config.update("jax_num_cpu_devices", cores)
    precision = _floors.precision_of(args.compute, args.products)
    machine = Machine(_measure.matmul_flops_per_second(precision), _measure.bytes_per_second())
    rows = [row for name in args.workloads for row in measure(WORKLOADS[name], cores, args, machine)]
    return {
        "hardware": _measure.hardware(cores), "matmul_flops_per_second": machine.flops_per_second,
        "bytes_per_second": machine.bytes_per_second, "repeats": args.repeats,
        "compile_budget_seconds": COMPILE_BUDGET_SECONDS, "rows": rows,
    }  # fmt: skip


def show(result: dict[str, Any]) -> None:
    hardware = result["hardware"]
    print(
        f"{_measure.headline(hardware)}; matrix product {result['matmul_flops_per_second'] / 1e9:.0f} GFLOP/s, "
        f"memory {result['bytes_per_second'] / 1e9:.0f} GB/s\n"
    )
    slow = [row for row in result["rows"] if row["compile_seconds"] > COMPILE_BUDGET_SECONDS]
    table = [
        (
            r["workload"], r["engine"], r["devices"], r["lanes"], 1e3 * r["seconds_per_round"]["median"],
            r["examples_per_second"], f"{r['step_occupancy']:.1%}", r["flops_per_second"] / 1e9,
            1e3 * r["floor_seconds"], _floors.bounding(r),
            f"{r['share_of_floor']:.0%}", f"{r['times_sequential']['median']:.2f}",
            f"{'! ' if r in slow else ''}{r['compile_seconds']:.1f}",
        )
        for r in result["rows"]
    ]  # fmt: skip
    _measure.print_table(COLUMNS, table)
    print(f"\nprecision: {'; '.join(dict.fromkeys(row['precision'] for row in result['rows']))}")
    if slow:
        print(f"\n! {len(slow)} row(s) took longer to compile than {COMPILE_BUDGET_SECONDS:.0f} s")


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
    real = [name for name in WORKLOADS if name != "toy"]
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=real)
    parser.add_argument("--lanes", nargs="+", type=int, default=None, help="the workload says by default")
    parser.add_argument("--compute", default=None, help="what models compute in: float32 or bfloat16")
    parser.add_argument("--products", default=None, help="precision of products: default, high or highest")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--seconds", type=float, default=120, help="for a workload's repetitions; two are made in any case"
    )
    parser.add_argument("--accelerator", action="store_true", help="leave the CPU's device count alone")
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
            sys.executable, "-m", "fedjax_sim", "bench", "rounds", "--", "--cores", cores, "--workloads",
            *args.workloads, "--repeats", str(args.repeats), "--seconds", str(args.seconds), "--out", str(part),
            *(["--lanes", *map(str, args.lanes)] if args.lanes else []),
            *(["--compute", args.compute] if args.compute else []),
            *(["--products", args.products] if args.products else []),
            *(["--accelerator"] if args.accelerator else []),
        ]  # fmt: skip
        subprocess.run(command, check=True)
        results.append(json.loads(part.read_text()))
        part.unlink()
    if args.out is not None:
        _measure.write_json(args.out, results)
