"""Time of a round: the lanes and sharded engines against the sequential one, on the same cores, interleaved.

Each row is one (workload, engine, layout). Times are medians over interleaved repetitions, compilation apart, blocking
on results; a workload's repetitions stop when they have taken ``--seconds`` altogether, but there are two at least. One core and
the whole machine are two processes, which take turns: ``x 1 core`` is a median over pairs of neighbours in time.

The floor of a row is the larger of two times, by arithmetic and by memory traffic, as ``fedjax_sim/bench/_floors.py``
explains them. The machine's rates are measured anew before every repetition, and a share is a median over repetitions.

Compilation beyond the budget of 10 s is marked with an exclamation mark.

    fedjax-sim bench rounds                       # one core and the whole machine in turn; table and JSON
    fedjax-sim bench rounds -- --cores 1 --workloads linear emnist
    fedjax-sim bench rounds -- --accelerator      # all of JAX's devices
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

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
    "of floor", "x sequential", "x 1 core", "compile s",
)  # fmt: skip
Layout = tuple[str, int, int]
"""Engine, devices, lanes."""


def layouts(lanes: Sequence[int], devices: int) -> dict[Layout, Engine]:
    found: dict[Layout, Engine] = {("sequential", 1, 1): engines.sequential()}
    found |= {("lanes", 1, count): engines.lanes(count) for count in lanes}
    if devices > 1:
        mesh = engines.client_mesh(devices)
        found |= {("sharded", devices, count): engines.sharded(mesh, lanes=count) for count in lanes[:3]}
    return found


class Measurement:
    """A workload on this process's cores: one compiled program for each layout, which are called in turn."""

    def __init__(self, workload: Workload, cores: int, args):
        self._workload, self._cores = workload, cores
        self._layouts: dict[Layout, tuple[Simulation, Any, float]] = {}
        self._times: dict[Layout, list[float]] = {}
        self._last: dict[Layout, Any] = {}
        self._precision: _measure.Precision = _floors.precision_of(args.compute, args.products)
        self.machines: list[Machine] = []
        self.expected = 0.0
        """Seconds that one repetition will take."""
        data, rounds = workload.data(), workload.rounds
        devices = cores if jax.default_backend() == "cpu" else len(jax.devices())
        for name, engine in layouts(args.lanes or workload.lanes, devices).items():
            algorithm = workload.algorithm(compute=args.compute, products=args.products)
            sim = Simulation(
                algorithm, data, cohort=workload.cohort, local=workload.local, engine=engine, rounds_per_chunk=rounds
            )  # fmt: skip
            state, history = sim.run(sim.init(0), rounds)
            self._layouts[name] = sim, state, history.costs.compile_seconds
            self.expected += history.costs.run_seconds

    def repeat(self) -> None:
        """Times every layout once, behind the machine itself."""
        rounds = self._workload.rounds
        rate, bandwidth = _measure.matmul_flops_per_second(self._precision), _measure.bytes_per_second()
        self.machines.append(Machine(rate, bandwidth))
        for name, (sim, state, _) in self._layouts.items():
            start = time.perf_counter()
            new, history = sim.run(state, rounds)
            jax.block_until_ready(new)
            self._times.setdefault(name, []).append((time.perf_counter() - start) / rounds)
            self._last[name] = history.costs, _floors.work_of(sim, new, history.costs, rounds)

    def rows(self) -> list[dict[str, Any]]:
        """One row per layout."""
        sequential, rounds, rows = self._times["sequential", 1, 1], self._workload.rounds, []
        for name, values in self._times.items():
            (costs, work), compile_seconds = self._last[name], self._layouts[name][2]
            seconds, floors = _measure.spread(values), work.floors(typical(self.machines))
            each = [work.floors(machine)["floor_seconds"] for machine in self.machines]
            rows.append({
                "workload": self._workload.name, "engine": name[0], "devices": name[1], "lanes": name[2], "cores": self._cores,
                "seconds_per_round": {**seconds, "repetitions": len(values), "rounds": rounds, "in_turn": values},
                "examples_per_second": costs.examples / rounds / seconds["median"],
                "precision": costs.precision, "step_occupancy": costs.step_occupancy, "example_occupancy": costs.example_occupancy,
                "flops_per_second": work.flops / seconds["median"], "bytes_per_round": work.bytes,
                **floors, "share_of_floor": times_as_fast(each, values)["median"],
                "times_sequential": times_as_fast(sequential, values),
                "compile_seconds": compile_seconds, "steps_per_round": costs.steps / rounds,
            })  # fmt: skip
        return rows


def times_as_fast(baseline: Sequence[float], values: Sequence[float]) -> dict[str, float]:
    """Spread of the quotients of what was measured one after the other."""
    return _measure.spread([a / b for a, b in zip(baseline, values, strict=True)])


def typical(machines: Sequence[Machine]) -> Machine:
    """Medians of what was measured several times."""
    return Machine(*map(statistics.median, zip(*machines, strict=True)))


# --- who measures --------------------------------------------------------------------------------------------


class Station(Protocol):
    """Cores that measure: ``ask`` to ``"prepare"`` a workload, to ``"repeat"``, for the ``"rows"``, and in the end for the ``"machine"``.

    ``"start"`` does nothing, but is answered when the process is there.
    """

    def ask(self, what: str, name: str = "") -> Any: ...


class Here:
    """This process, on the cores that ``args.cores`` asks for."""

    def __init__(self, args):
        self._args = args
        accelerator = args.accelerator
        self._cores = _measure.use_cores(None if accelerator or args.cores == "all" else int(args.cores))
        if self._cores > 1 and not accelerator:
            jax.config.update("jax_num_cpu_devices", self._cores)
        if (jax.default_backend() == "cpu") == accelerator:
            raise ValueError(
                f"JAX runs on {jax.default_backend()}: {'leave out' if accelerator else 'add'} --accelerator, which measures "
                "its devices instead of the processor's cores."
            )
        self._machines: list[Machine] = []

    def ask(self, what: str, name: str = "") -> Any:
        if what == "start":
            return None
        if what == "prepare":
            self._now = Measurement(WORKLOADS[name], self._cores, self._args)
            return self._now.expected
        if what == "repeat":
            return self._now.repeat()
        if what == "rows":
            self._machines += self._now.machines
            return self._now.rows()
        machine = typical(self._machines)
        return {
            "hardware": _measure.hardware(self._cores), "matmul_flops_per_second": machine.flops_per_second,
            "bytes_per_second": machine.bytes_per_second, "repeats": self._args.repeats,
            "compile_budget_seconds": COMPILE_BUDGET_SECONDS,
        }  # fmt: skip

    def serve(self) -> None:
        """Answers the questions on standard input, a line of JSON each, on standard output."""
        for line in sys.stdin:
            print(json.dumps(self.ask(*json.loads(line))), flush=True)


class There:
    """Another process, which does nothing but what it is asked for."""

    def __init__(self, process: subprocess.Popen):
        self._process = process

    def ask(self, what: str, name: str = "") -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps([what, name]), file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        if not answer:
            raise ValueError(
                f"the process of {self._process.args} ended with {self._process.wait()}; what it said stands above."
            )
        return json.loads(answer)


@contextlib.contextmanager
def processes(args) -> Iterator[list[Station]]:
    """One core, and all of them."""
    with contextlib.ExitStack() as stack:
        stations: list[Station] = []
        for cores in ("1", "all"):
            command = [
                sys.executable, "-m", "fedjax_sim", "bench", "rounds", "--", "--serve", "--cores", cores,
                "--repeats", str(args.repeats),
                *(["--lanes", *map(str, args.lanes)] if args.lanes else []),
                *(["--compute", args.compute] if args.compute else []),
                *(["--products", args.products] if args.products else []),
            ]  # fmt: skip
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            stack.enter_context(process)
            stack.callback(process.kill)
            stations.append(There(process))
        yield stations


def measure(stations: Sequence[Station], args) -> list[dict[str, Any]]:
    """What each found. They take turns, so that a drift of the machine's speed meets all alike, and none has the cores of another."""
    for station in stations:
        station.ask("start")
    found: list[list[dict[str, Any]]] = [[] for _ in stations]
    for name in args.workloads:
        expected = sum(station.ask("prepare", name) for station in stations)
        for _ in range(max(2, min(args.repeats, int(args.seconds / expected)))):
            for station in stations:
                station.ask("repeat")
        parts = [station.ask("rows") for station in stations]
        fastest = min(parts[0], key=lambda row: row["seconds_per_round"]["median"])
        for place, rows in enumerate(parts):
            for row in rows if place else []:
                one, all_of_them = (which["seconds_per_round"]["in_turn"] for which in (fastest, row))
                row["times_one_core"] = times_as_fast(one, all_of_them)
            found[place] += rows
    return [station.ask("machine") | {"rows": rows} for station, rows in zip(stations, found, strict=True)]


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
            f"{r['times_one_core']['median']:.2f}" if "times_one_core" in r else "",
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
        "--cores", default="both", help="a number, 'all', or 'both': one core and all of them, in turn"
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
    parser.add_argument(
        "--accelerator", action="store_true", help="measure JAX's devices, with all cores beside"
    )
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    if args.serve:
        Here(args).serve()
        return
    if args.cores == "both" and not args.accelerator:
        with processes(args) as stations:
            results = measure(stations, args)
    else:
        results = measure([Here(args)], args)
    for result in results:
        show(result)
    if args.out is not None:
        _measure.write_json(args.out, results if len(results) > 1 else results[0])
