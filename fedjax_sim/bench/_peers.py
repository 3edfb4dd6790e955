"""Other simulators at the same work: the same arrays, clients, cohorts, initial weights and order of examples.

Each peer runs in a virtual environment of its own, which the first call makes (pip needs a package index) and later
ones find again. First everybody trains two rounds, deep networks at a hundredth of the learning rate, where float32
does not yet make small differences large; a peer whose update is not ours is not timed. Then everybody is timed on one core, in
turn: rounds after the warm-up for a peer, chunks of the same rounds for this package. Dropout is off on all sides.
``x`` says how many times as many examples this package trains in a core-second. The floor is that of this package's rounds
(``fedjax_sim/bench/_floors.py``), at rates that its process measures on the same core; a share is by time on the clock.

    fedjax-sim bench peers
    fedjax-sim bench peers -- --workloads emnist --peers torch fedjax --out peers.json
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.bench import _environments, _exchange, _floors, _measure
from fedjax_sim.bench._exchange import Result, Work
from fedjax_sim.bench._workloads import WORKLOADS

SCRIPTS = Path(__file__).parent / "peers"
_TORCH = "torch==2.13.0"
COLUMNS = (
    "workload",
    "program",
    "examples/s",
    "min",
    "max",
    "per core-s",
    "x",
    "apart",
    "ms/round",
    "of floor",
    "start s",
)
OURS = "fedjax_sim"
_CHECK_ROUNDS, _WARM_ROUNDS = 2, 3


class Peer(NamedTuple):
    """Another program.

    Attributes:
      script: what it runs, in its own environment.
      requirements: what pip installs there, one call after the other; none for our own environment.
    """

    script: Path
    requirements: tuple[tuple[str, ...], ...]


PEERS = {
    "torch": Peer(SCRIPTS / "torch_loop.py", ((_TORCH, "numpy==2.4.6"),)),
    "jitted": Peer(SCRIPTS / "jitted_loop.py", ()),
    # jax.tree_map, which it calls, went in jax 0.6.
    "fedjax": Peer(SCRIPTS / "fedjax_loop.py", (("jax==0.5.3", "jaxlib==0.5.3", "fedjax==0.0.17"),)),
    # torch alone first: what depends on it must not bring another build.
    "pfl": Peer(SCRIPTS / "pfl_loop.py", ((_TORCH,), ("pfl==0.6.0",))),
    "flower": Peer(SCRIPTS / "flower_loop.py", ((_TORCH,), ("flwr[simulation]==1.41.0", "ray==2.55.1"))),
}
"""By name."""


class PeerFailed(Exception):
    """A program ended with an error; the message is what it said last."""


def interpreters(names: Sequence[str], folder: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Interpreter of each peer, and why others have none."""
    found, failed = {}, {}
    for name in names:
        try:
            requirements = PEERS[name].requirements
            found[name] = (
                str(_environments.python_of(name, requirements, folder)) if requirements else sys.executable
            )
        except _environments.EnvironmentFailed as error:
            failed[name] = str(error)
    return found, failed


def run(command: list[str], job: Path, laps: int, timeout: float) -> Result:
    """One process from start to end, with one thread for whatever starts threads.

    Args:
      command: what to run; the job's file is its last argument.
      job: from ``write_job``.
      laps: times that it has to leave.
      timeout: seconds; afterwards it ends, with all processes that it started.

    Raises:
      PeerFailed: it ended with an error, left no result or another number of times, or took too long.
    """
    alone = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    # Quiet peers: none of them may report its use to its makers.
    quiet = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONWARNINGS": "ignore"}
    # What somebody measured on this machine before is not part of the comparison.
    settings = alone | quiet | {"JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(job.parent / "cache")}
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*command, str(job)], env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=said, cwd=job.parent,
            start_new_session=True,
        )  # fmt: skip
        try:
            process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise PeerFailed(f"did not end within {timeout:.0f} s") from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.returncode:
            said.seek(0)
            lines = [line for line in said.read().splitlines() if line.strip()]
            raise PeerFailed(
                f"ended with {process.returncode}: {lines[-1].strip() if lines else 'no message'}"
            )
    try:
        result = _exchange.read_result(job)
    except (OSError, ValueError, TypeError) as error:
        raise PeerFailed(f"left no result: {error}") from error
    if not laps == len(result.seconds) == len(result.cpu_seconds):
        raise PeerFailed(f"left {len(result.seconds)} times, expected {laps}")
    return result


def check(
    work: Work, commands: dict[str, list[str]], rounds: int, args
) -> tuple[dict[str, float], dict[str, str]]:
    """How far each peer's update is from ours, and why some are not timed."""
    rate = work.workload.learning_rate * work.workload.check_factor
    ours, apart, failed = None, {}, {}
    for name, command in commands.items():
        job = _exchange.write_job(
            work, f"check-{name}", core=args.core, learning_rate=rate, warm=0, rounds=rounds, chunks=1
        )
        try:
            result = run(command, job, 1 if name == OURS else rounds, args.timeout)
        except PeerFailed as error:
            if name == OURS:
                raise
            failed[name] = str(error)
            continue
        if ours is None:
            ours = result
            continue
        apart[name] = _exchange.disagreement(result.params, ours.params, work.params)
        if apart[name] > args.tolerance:
            failed[name] = (
                f"disagrees: its update is {apart[name]:.2g} of ours away, more than {args.tolerance:g}"
            )
    return apart, failed


def rates(name: str, result: Result, examples: np.ndarray) -> tuple[list[float], list[float]]:
    """Examples per second and per CPU second of each observation; ``examples``, of the timed rounds."""
    per_observation = [float(examples.sum())] * len(result.seconds) if name == OURS else examples.tolist()
    pairs = list(zip(per_observation, result.seconds, result.cpu_seconds, strict=True))
    return [n / wall for n, wall, _ in pairs], [n / cpu for n, _, cpu in pairs if cpu > 0]


def measure(workload: str, interpreters: dict[str, str], args) -> list[dict[str, Any]]:
    """A row for this package and for each peer."""
    chosen = WORKLOADS[workload]
    rounds = args.rounds or chosen.rounds
    # A workload of few rounds has long ones.
    warm = min(_WARM_ROUNDS, chosen.rounds) if args.warm is None else args.warm
    check_rounds = min(_CHECK_ROUNDS, chosen.rounds)
    commands = {OURS: [sys.executable, "-m", "fedjax_sim.bench._ours"]}
    commands |= {name: [python, str(PEERS[name].script)] for name, python in interpreters.items()}
    with tempfile.TemporaryDirectory(prefix="fedjax-sim-peers-") as folder:
        work = _exchange.write_work(chosen, Path(folder), max(warm + rounds, check_rounds))
        examples = work.examples[warm : warm + rounds]
        apart, failed = check(work, commands, check_rounds, args)
        results: dict[str, list[Result]] = {name: [] for name in commands if name not in failed}
        for repetition in range(0 if args.check_only else args.repeats):
            for name in [name for name in results if name not in failed]:
                job = _exchange.write_job(
                    work, f"time-{name}-{repetition}", core=args.core, learning_rate=chosen.learning_rate,
                    warm=warm, rounds=rounds, chunks=args.chunks,
                )  # fmt: skip
                try:
                    laps = args.chunks if name == OURS else rounds
                    results[name].append(run(commands[name], job, laps, args.timeout))
                except PeerFailed as error:
                    if name == OURS:
                        raise
                    failed[name] = str(error)
    timed = {name: found for name, found in results.items() if found and name not in failed}
    rows = [
        row(workload, name, found, examples, None if name == OURS else apart[name])
        for name, found in timed.items()
    ]
    for other in rows:
        other["ours_times_as_fast"] = (
            rows[0]["examples_per_core_second"]["median"] / other["examples_per_core_second"]["median"]
        )
        other |= floors_of(timed[OURS], other["seconds_per_round"]["median"])
    missing = [name for name in commands if name in failed or name not in timed]
    reasons = {name: failed.get(name, "agrees, times were not asked for") for name in missing}
    return rows + [
        {"workload": workload, "program": name, "apart": apart.get(name), "not_measured": reasons[name]}
        for name in missing
    ]


def floors_of(ours: list[Result], seconds: float) -> dict[str, Any]:
    """The least time of a round of mean size, the same for everybody, and the share of it that so many seconds are."""
    found = [result.floors for result in ours if result.floors is not None]
    each = {
        name: statistics.median(floors["floors_seconds"][name] for floors in found)
        for name in found[0]["floors_seconds"]
    }
    least = max(each.values())
    return {"floors_seconds": each, "floor_seconds": least, "share_of_floor": least / seconds}


def row(
    workload: str, name: str, found: list[Result], examples: np.ndarray, apart: float | None
) -> dict[str, Any]:
    """What the repetitions of one program gave."""
    wall, cpu = [], []
    for result in found:
        of_wall, of_cpu = rates(name, result, examples)
        wall, cpu = wall + of_wall, cpu + of_cpu
    return {
        "workload": workload, "program": name, "versions": found[0].versions, "layout": found[0].layout, "apart": apart,
        "examples_per_second": _measure.spread(wall), "examples_per_core_second": _measure.spread(cpu or wall),
        # Rounds differ in size, so a time is that of a round of mean size at the rate.
        "seconds_per_round": _measure.spread([float(examples.mean()) / rate for rate in wall]),
        "startup_seconds": _measure.spread([result.startup_seconds for result in found]),
        "observations": len(wall), "examples_per_round": float(examples.mean()),
    }  # fmt: skip


def show(rows: Sequence[dict[str, Any]]) -> None:
    table = [
        (
            row["workload"], row["program"], *(row["examples_per_second"][name] for name in ("median", "min", "max")),
            row["examples_per_core_second"]["median"], f"{row['ours_times_as_fast']:.2f}",
            "" if row["apart"] is None else f"{row['apart']:.1e}", 1e3 * row["seconds_per_round"]["median"],
            f"{row['share_of_floor']:.1%} of {_floors.bounding(row)}", row["startup_seconds"]["median"],
        )
        for row in rows
        if "not_measured" not in row
    ]  # fmt: skip
    _measure.print_table(COLUMNS, table)
    for row in rows:
        if "not_measured" in row:
            apart = "" if row["apart"] is None else f" (update {row['apart']:.1e} of ours away)"
            print(f"{row['workload']} {row['program']}: not measured: {row['not_measured']}{apart}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    able = [name for name, workload in WORKLOADS.items() if workload.layers]
    parser.add_argument("--workloads", nargs="+", choices=able, default=["emnist", "logistic", "cifar10"])
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=2, help="processes of each program, in turn")
    parser.add_argument(
        "--warm", type=int, default=None, help="rounds before the clock is read; 3 by default"
    )
    parser.add_argument("--rounds", type=int, default=None, help="timed rounds; the workload says by default")
    parser.add_argument(
        "--chunks", type=int, default=3, help="how often this package repeats the timed rounds"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-3, help="largest distance of updates, relative to ours"
    )
    parser.add_argument("--check-only", action="store_true", help="agreement, no times")
    parser.add_argument(
        "--core", type=int, default=max(os.sched_getaffinity(0)), help="the one core that is used"
    )
    parser.add_argument("--timeout", type=float, default=1800, help="seconds that one process may take")
    parser.add_argument("--environments", type=Path, default=_environments.default_folder())
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    found, failed = interpreters(args.peers, args.environments)
    hardware = _measure.hardware(1)
    print(
        f"\n{hardware['processor']}, core {args.core} alone, jax {hardware['jax']}; examples/s: median, min, max of "
        f"rounds in {args.repeats} process(es) each; per core-s: by CPU seconds, children's included\n"
    )
    rows = []
    for workload in args.workloads:
        rows += measure(workload, found, args)
        rows += [
            {"workload": workload, "program": name, "apart": None, "not_measured": reason}
            for name, reason in failed.items()
        ]
    show(rows)
    if args.out is not None:
        _measure.write_json(args.out, {
            "hardware": hardware, "core": args.core, "repeats": args.repeats, "tolerance": args.tolerance,
            "rows": rows,
        })  # fmt: skip
