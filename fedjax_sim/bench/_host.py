"""What the host costs: a long run of a model so small that the device has little to do.

The run is that of the command line, with its metrics file, checkpoints and evaluations. The host's time per round is
what is left of the whole when the same compiled rounds, called one chunk after the other without any of that, are
taken off.

    fedjax-sim bench host                 # 10,000 rounds; table and JSON
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax

from fedjax_sim import experiment
from fedjax_sim._src import machine
from fedjax_sim.bench import _measure

CHANGES = [
    "data.clients=20", "cohort.size=5", "model=linear", "plots=false", "rounds_per_chunk=50", "evaluation.every=1000",
    "checkpoints.every=500",
]  # fmt: skip
COLUMNS = ("part", "ms/round", "s in all")


def resident_megabytes() -> float:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def device_seconds(found: experiment.Experiment, chunks: int) -> float:
    """Seconds per round of the compiled program alone, the median over chunks."""
    sim = found.simulation()
    state = sim.init(0)
    rounds, (plan, columns) = sim.engine.compile(sim._problem), sim.chunk(state, sim.rounds_per_chunk)
    state = rounds.place_state(state)
    times = []
    for _ in range(chunks + 1):
        start = time.perf_counter()
        state, report = rounds(state, columns, plan)
        jax.block_until_ready((state, report))
        times.append(time.perf_counter() - start)
    return _measure.spread(times[1:])["median"] / int(plan.rounds)


def measure(rounds: int) -> dict:
    """One long run in a temporary folder."""
    found = experiment.load(changes=[*CHANGES, f"rounds={rounds}"])
    memory: list[tuple[int, float]] = []

    def look(progress) -> None:
        if progress.done % 1000 == 0:
            memory.append((progress.done, resident_megabytes()))

    with tempfile.TemporaryDirectory() as folder:
        outcome = experiment.run(found, Path(folder) / "run", callbacks=[look])
        rows = len((outcome.folder / "metrics.jsonl").read_text().splitlines())
    costs = outcome.histories[0].costs
    device = device_seconds(found, 50)
    return {
        "hardware": _measure.hardware(machine.cores()),
        "rounds": rounds,
        "rows": rows,
        "changes": CHANGES,
        "seconds": {
            "compile": costs.compile_seconds,
            "run": costs.run_seconds,
            "evaluation": costs.evaluation_seconds,
            "checkpoints": costs.checkpoint_seconds,
        },
        "device_seconds_per_round": device,
        "host_seconds_per_round": (costs.run_seconds + costs.checkpoint_seconds) / rounds - device,
        "resident_megabytes": memory,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench host",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    result = measure(args.rounds)
    seconds, rounds = result["seconds"], result["rounds"]
    table = [
        ("run", 1e3 * seconds["run"] / rounds, seconds["run"]),
        ("  of it the device", 1e3 * result["device_seconds_per_round"], result["device_seconds_per_round"] * rounds),
        ("checkpoints", 1e3 * seconds["checkpoints"] / rounds, seconds["checkpoints"]),
        ("evaluation", 1e3 * seconds["evaluation"] / rounds, seconds["evaluation"]),
        ("host", 1e3 * result["host_seconds_per_round"], result["host_seconds_per_round"] * rounds),
    ]  # fmt: skip
    print(f"\n{rounds:,} rounds, {result['rows']:,} rows written; compiled in {seconds['compile']:.1f} s\n")
    _measure.print_table(COLUMNS, table)
    print(
        "\nmemory in use (MB) after so many rounds: "
        + ", ".join(f"{r}: {m:.0f}" for r, m in result["resident_megabytes"])
    )
    if args.out is not None:
        _measure.write_json(args.out, result)
