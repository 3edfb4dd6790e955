"""Whole experiments as their papers time them: all rounds and evaluations, by one call of ``Simulation.run``.

``cifar10``  pfl-research's benchmark: 1,500 rounds of 50 of 1,000 clients, central evaluation on 10,000 images every 10 rounds.
``cifar10-factored``  the same with ``rules.factored_sgd``: equal to rounding, and the way for accelerators.
``femnist``  FLUTE's: 1,500 rounds of 10 of 3,400 writers; evaluation once, on 10,000 images at the end.
``blazefl``  BlazeFL's: 5 rounds of 5 epochs of all 100 clients, evaluation on 10,000 images at the end.

Images are noise of the true shape, and so is what is learnt. Two rounds with two evaluations compile everything and are
reported apart; they also bring the training examples to the device. The time is that of ``run`` from a new state, until its
results are there: planning, training, metrics, and evaluation with bringing its images to the device. ``evaluation s`` is the
host's time, which on an accelerator holds the wait for rounds that were given before (``history.Costs``).

``default`` is JAX's default precision of products, TF32 on NVIDIA GPUs; ``float32`` is ``products="highest"``;
``bfloat16`` is ``compute="bfloat16"``. Floors are explained in ``fedjax_sim/bench/_floors.py`` and are those of training.

    fedjax-sim bench published
    fedjax-sim bench published -- --experiments cifar10 --precision default float32 --rounds 20
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_sim import engines
from fedjax_sim.bench import _floors, _measure
from fedjax_sim.bench._floors import Machine
from fedjax_sim.bench._workloads import WORKLOADS, images_of
from fedjax_sim.data import ClientData
from fedjax_sim.history import Costs
from fedjax_sim.simulate import Simulation

COLUMNS = (
    "experiment", "precision", "lanes", "rounds", "s", "min", "evaluation s", "examples/s", "TFLOP/s", "floor s", "of",
    "of floor", "compile s", "published",
)  # fmt: skip
PRECISIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "float32": {"products": "highest"},
    "bfloat16": {"compute": "bfloat16"},
}
"""Name to arguments of ``tasks.with_precision``."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is run as a whole.

    Attributes:
      workload: what is trained.
      rounds: how many.
      every: rounds between evaluations; ``None`` for one at the end.
      images: of an evaluation.
      published: the time that its authors, or those who ask for it, state.
      factored: whether the workload's wide layers are kept as outer products.
    """

    workload: str
    rounds: int
    every: int | None = None
    images: int = 10_000
    published: str = ""
    factored: bool = False


EXPERIMENTS = {
    "cifar10": Experiment("cifar10", 1500, every=10, published="pfl-research, 8 s asked for"),
    "cifar10-factored": Experiment(
        "cifar10", 1500, every=10, published="pfl-research, 8 s asked for", factored=True
    ),
    "femnist": Experiment("femnist", 1500, published="FLUTE 8 min 22 s"),
    "blazefl": Experiment("blazefl", 5, published="BlazeFL 30 s"),
    # To try the machinery; its times say nothing.
    "toy": Experiment("toy", 4, every=2, images=100),
}
"""By name."""


def evaluation_set(train: ClientData, images: int) -> ClientData:
    """So many images like those that are trained on, of one client: evaluation is central."""
    return images_of(np.array([images]), train.columns["x"].shape[1:], int(train.columns["y"].max()) + 1)


def measure(name: str, args, machines: dict[str, Machine]) -> list[dict[str, Any]]:
    """One row per precision, interleaved."""
    experiment = EXPERIMENTS[name]
    workload, rounds = WORKLOADS[experiment.workload], args.rounds or experiment.rounds
    data = workload.data()
    test = evaluation_set(data, experiment.images)
    calls: dict[str, Callable[[], float]] = {}
    warm: dict[str, Costs] = {}
    seen: dict[str, list[Costs]] = {}
    works: dict[str, _floors.Work] = {}
    for precision in args.precision:
        steps = int(workload.local.steps(data.sizes).max()) if experiment.factored else None
        sim = Simulation(
            workload.algorithm(factored_steps=steps, **PRECISIONS[precision]), data, cohort=workload.cohort, local=workload.local,
            engine=engines.lanes(args.lanes or "auto"),
        )  # fmt: skip
        # A chunk that begins with the state of another one is the program's last form.
        _, history = sim.run(sim.init(0), 2, evaluate_on=test, every=1)
        warm[precision], seen[precision] = history.costs, []

        def call(sim=sim, precision=precision) -> float:
            state = jax.block_until_ready(sim.init(0))
            start = time.perf_counter()
            state, history = sim.run(state, rounds, evaluate_on=test, every=experiment.every)
            jax.block_until_ready(state)
            seconds = time.perf_counter() - start
            if history.costs.compile_seconds:
                raise RuntimeError(f"{name}, {precision}: the rounds were compiled within the time.")
            seen[precision].append(history.costs)
            unwritten = workload.wide if experiment.factored else ()
            works[precision] = _floors.work_of(sim, state, history.costs, unwritten=unwritten)
            return seconds

        calls[precision] = call
    rows = []
    for precision, values in _measure.interleaved(calls, args.repeats).items():
        costs, work, seconds = seen[precision][-1], works[precision], _measure.spread(values)
        floors = work.floors(machines[precision])
        rows.append({
            "experiment": name, "precision": precision, "computes": costs.precision, "lanes": costs.lanes,
            "rounds": rounds, "seconds": seconds,
            "evaluation_seconds": _measure.spread([each.evaluation_seconds for each in seen[precision]]),
            "examples": float(costs.examples), "examples_per_second": costs.examples / seconds["median"],
            "step_occupancy": costs.step_occupancy, "flops_per_second": work.flops / seconds["median"],
            **floors, "share_of_floor": floors["floor_seconds"] / seconds["median"],
            "compile_seconds": warm[precision].compile_seconds,
            "first_evaluations_seconds": warm[precision].evaluation_seconds, "published": experiment.published,
        })  # fmt: skip
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints the table, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench published",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    real = [name for name in EXPERIMENTS if name != "toy"]
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=real)
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=["default"])
    parser.add_argument("--rounds", type=int, default=None, help="instead of the experiment's, for a trial")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lanes", type=int, default=None, help="clients side by side; auto by default")
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    hardware = _measure.hardware(_measure.use_cores(None))
    print(_measure.headline(hardware))
    bandwidth, machines = _measure.bytes_per_second(), {}
    for precision in args.precision:
        rate = _measure.matmul_flops_per_second(_floors.precision_of(**PRECISIONS[precision]))
        machines[precision] = Machine(rate, bandwidth)
        print(f"matrix product, {precision}: {rate / 1e12:.3g} TFLOP/s")
    print(f"memory: {bandwidth / 1e9:,.0f} GB/s\n")
    rows = [row for name in args.experiments for row in measure(name, args, machines)]
    _measure.print_table(COLUMNS, [
        (
            r["experiment"], r["precision"], r["lanes"], f"{r['rounds']:,}", r["seconds"]["median"], r["seconds"]["min"],
            r["evaluation_seconds"]["median"], r["examples_per_second"], r["flops_per_second"] / 1e12,
            r["floor_seconds"], _floors.bounding(r), f"{r['share_of_floor']:.0%}", r["compile_seconds"], r["published"],
        )
        for r in rows
    ])  # fmt: skip
    print(f"\ncomputed with: {'; '.join(dict.fromkeys(row['computes'] for row in rows))}")
    if args.out is not None:
        _measure.write_json(args.out, {
            "hardware": hardware, "bytes_per_second": bandwidth,
            "matmul_flops_per_second": {name: machine.flops_per_second for name, machine in machines.items()},
            "repeats": args.repeats, "rows": rows,
        })  # fmt: skip
