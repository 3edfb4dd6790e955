"""Accuracy on real images, of the lanes engine beside the sequential one: the same seed, cohorts and random bits.

The model and the local work of pfl-research's CIFAR10 benchmark, on a folder of images that ``fs.data.images`` reads, dealt out
evenly. ``apart`` is the distance of the two models relative to how far they have come: rounding at first, which training at this
learning rate makes larger from round to round.

    fedjax-sim bench accuracy -- FOLDER
    fedjax-sim bench accuracy -- FOLDER --rounds 100 --every 20 --out accuracy.json
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedjax_sim import data as sets
from fedjax_sim import engines
from fedjax_sim._src import tree
from fedjax_sim.bench import _measure
from fedjax_sim.bench._workloads import WORKLOADS
from fedjax_sim.data import partitions
from fedjax_sim.simulate import Simulation

COLUMNS = ("rounds", "sequential", "lanes", "apart")
EXAMPLES = 50
"""Of each client, as in the benchmark."""


def measure(folder: str, args) -> list[dict[str, Any]]:
    """One row for every so many rounds and each engine."""
    data = sets.images(folder)
    data = sets.repartition(data, partitions.iid(data.train.num_examples // EXAMPLES))
    workload = WORKLOADS[args.workload]
    both = {"sequential": engines.sequential(), "lanes": engines.lanes(args.lanes)}
    sims = {
        name: Simulation(
            workload.algorithm(), data.train, cohort=workload.cohort, local=workload.local, engine=engine
        )
        for name, engine in both.items()
    }
    states = {name: sim.init(args.seed) for name, sim in sims.items()}
    model = lambda name: sims[name].algorithm.params(states[name].server).params  # noqa: E731
    start, rows = model("lanes"), []
    for rounds in range(args.every, args.rounds + 1, args.every):
        found = {}
        for name, sim in sims.items():
            states[name], _ = sim.run(states[name], args.every)
            found[name] = sim.evaluate(states[name], data.test)
        apart, come = (
            float(tree.global_norm(tree.subtract(model("lanes"), other)))
            for other in (model("sequential"), start)
        )
        rows += [
            {
                "workload": workload.name, "engine": name, "rounds": rounds, "accuracy": score.examples["accuracy"],
                "loss": score.examples["loss"], "apart": apart / come,
            }
            for name, score in found.items()
        ]  # fmt: skip
        show(rows[-2:])
    return rows


def show(pair: Sequence[dict[str, Any]]) -> None:
    sequential, lanes = pair
    accuracies = f"{sequential['accuracy']:>10.1%}  {lanes['accuracy']:>5.1%}"
    print(f"{lanes['rounds']:>6}  {accuracies}  {lanes['apart']:>5.0e}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Trains, prints the table as it grows, and writes the JSON where ``--out`` says."""
    parser = argparse.ArgumentParser(
        prog="fedjax-sim bench accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", help="of images, as fs.data.images reads them")
    parser.add_argument(
        "--workload", choices=WORKLOADS, default="cifar10", help="model, cohort and local work"
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--every", type=int, default=10, help="rounds between evaluations")
    parser.add_argument("--lanes", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=None, help="where the JSON goes")
    args = parser.parse_args(arguments)
    hardware = _measure.hardware(_measure.use_cores(None))
    print(f"{_measure.headline(hardware)}\n\n{'  '.join(COLUMNS)}")
    rows = measure(args.folder, args)
    if args.out is not None:
        _measure.write_json(
            args.out, {"hardware": hardware, "seed": args.seed, "lanes": args.lanes, "rows": rows}
        )
