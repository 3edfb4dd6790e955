"""How a round's time grows with lanes, cohort, population and devices, and whether memory does.

A logistic regression 60-10 over clients whose sizes follow a power law, batch 10; one row each for a number of lanes, of
clients a round, of clients altogether, of devices. ``planning`` is the host's share of a round; ``growth`` the resident
memory that the measured rounds added. Floors are explained in ``fedjax_sim/bench/_floors.py``; of the devices that a row uses.

    fedjax-sim bench scaling
    fedjax-sim bench scaling -- --only population --populations 1000000 --cohort 10000
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from fedjax_sim import algorithms, engines, models, tasks
from fedjax_sim.bench import _floors, _measure
from fedjax_sim.bench._floors import Machine
from fedjax_sim.bench._workloads import features_of, power_law_clients
from fedjax_sim.data import ClientData, cohorts
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.engines import Engine, SimState
from fedjax_sim.simulate import Simulation

CLASSES, BATCH = 10, 10
COLUMNS = (
    "what", "population", "cohort", "devices", "lanes", "ms/round", "min", "max", "examples/s", "of floor",
    "steps occ.", "planning", "memory MB", "growth MB", "compile s",
)  # fmt: skip


def equal_clients(clients: int, rows: int = 4, seed: int = 0) -> ClientData:
    """Many clients with a few examples each."""
    return features_of(np.random.default_rng(seed), np.full(clients, rows))


def resident_megabytes() -> float:
    """Memory of this process that is in RAM; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def cases(args) -> Iterator[tuple[str, ClientData, int, Engine]]:
    """What, data, clients a round, engine."""
    clients = power_law_clients(args.clients)
    if "lanes" in args.only:
        for lanes in args.lanes:
            yield "lanes", clients, args.cohort or 100, engines.lanes(lanes)
    if "cohort" in args.only:
        for cohort in args.cohorts:
            yield "cohort", clients, min(cohort, args.clients), engines.lanes(4)
    if "devices" in args.only:
        for devices in range(1, len(jax.devices()) + 1):
            yield (
                "devices",
                clients,
                args.cohort or 100,
                engines.sharded(engines.client_mesh(devices), lanes=4),
            )
    if "population" in args.only:
        for population in args.populations:
            yield "population", equal_clients(population), args.cohort or 100, engines.lanes(4)


def measure(what: str, data: ClientData, cohort: int, engine: Engine, args, machine: Machine) -> dict:
    task = tasks.classification(models.linear(CLASSES))
    rounds = args.rounds
    sim = Simulation(
        algorithms.fedavg(task, optax.sgd(0.01)), data, cohort=cohorts.uniform(cohort),
        local=LocalWork(epochs=1, batch_size=BATCH), engine=engine, rounds_per_chunk=rounds,
    )  # fmt: skip
    state, history = sim.run(sim.init(0), rounds)
    compile_seconds = history.costs.compile_seconds
    before, times = resident_megabytes(), []
    compiling = 0.0
    for _ in range(args.repeats):
        start = time.perf_counter()
        state, history = sim.run(state, rounds)
        jax.block_until_ready(state)
        times.append((time.perf_counter() - start) / rounds)
        compiling += history.costs.compile_seconds
    # To find a program that is there already takes milliseconds, to compile one takes seconds.
    if compiling > 0.2:
        raise RuntimeError(f"{what}: {compiling:.1f} s went into compiling after the first chunk.")
    memory = resident_megabytes()
    planning = statistics.median(_planning(sim, state, rounds) for _ in range(args.repeats))
    seconds, costs = _measure.spread(times), history.costs
    part = engine.devices / len(jax.devices())
    floors = _floors.work_of(sim, state, costs, rounds).floors(
        Machine(part * machine.flops_per_second, part * machine.bytes_per_second)
    )
    return {
        "what": what, "population": data.num_clients, "cohort": cohort, "devices": engine.devices, "lanes": costs.lanes,
        "seconds_per_round": seconds, "examples_per_second": costs.examples / rounds / seconds["median"],
        "step_occupancy": costs.step_occupancy, "planning_share": planning / seconds["median"],
        "resident_megabytes": memory, "growth_megabytes": memory - before,
        **floors, "share_of_floor": floors["floor_seconds"] / seconds["median"], "compile_seconds": compile_seconds,
    }  # fmt: skip


def _planning(sim: Simulation, state: SimState, rounds: int) -> float:
    """Seconds that the host takes to plan a round."""
    start = time.perf_counter()
    sim.plan(state, rounds)
    return (time.perf_counter() - start) / rounds


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    groups = ("lanes", "cohort", "devices", "population")
    parser.add_argument("--only", nargs="+", choices=groups, default=list(groups))
    parser.add_argument("--lanes", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--cohorts", nargs="+", type=int, default=[10, 100, 1000])
    parser.add_argument("--populations", nargs="+", type=int, default=[1_000, 100_000, 1_000_000])
    parser.add_argument("--clients", type=int, default=1000, help="population of the other rows")
    parser.add_argument("--cohort", type=int, default=None, help="clients a round; 100 if not given")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of a repetition")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    cores = _measure.use_cores(None)
    if "devices" in args.only:
        jax.config.update("jax_num_cpu_devices", cores)
    hardware = _measure.hardware(cores)
    print(f"{_measure.headline(hardware)}\n")
    machine = Machine(_measure.matmul_flops_per_second(), _measure.bytes_per_second())
    rows = [measure(*case, args, machine) for case in cases(args)]
    _measure.print_table(COLUMNS, [
        (
            row["what"], f"{row['population']:,}", f"{row['cohort']:,}", row["devices"], row["lanes"],
            *(1e3 * row["seconds_per_round"][name] for name in ("median", "min", "max")), row["examples_per_second"],
            f"{row['share_of_floor']:.1%} of {_floors.bounding(row)}", f"{row['step_occupancy']:.1%}", f"{row['planning_share']:.1%}", row["resident_megabytes"],
            row["growth_megabytes"], row["compile_seconds"],
        )
        for row in rows
    ])  # fmt: skip
    if args.out is not None:
        _measure.write_json(
            args.out,
            {
                "hardware": hardware, "matmul_flops_per_second": machine.flops_per_second,
                "bytes_per_second": machine.bytes_per_second, "rounds": args.rounds, "repeats": args.repeats, "rows": rows,
            },
        )  # fmt: skip
