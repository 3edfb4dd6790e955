"""FedProx against FedAvg on synthetic(alpha, beta) where 0, 50 or 90 % of each round's devices are too slow.

The setting of Li et al. 2020 ("Federated Optimization in Heterogeneous Networks", section 5.2 and appendix C): softmax
regression, 10 of 30 devices per round, 20 epochs with batches of 10, step size 0.01, 200 rounds. The paper has two ways to
draw devices, both without replacement here: uniformly, their models averaged by number of examples (its experiments), or in
proportion to their number of examples, their models averaged as equals (its algorithm 2, ``--devices by-size``). A slow
device has time for a number of epochs drawn uniformly from 1 to 20. FedAvg leaves slow devices out, FedProx keeps what they did, with mu = 0 or mu = 1. Devices, slow devices and batches
are the same for all three, as in the paper, so methods are compared draw by draw. The training loss is that of all devices'
training data, the test accuracy that of all their test examples. The paper shows figures only; its data were drawn once, by
its code, so these are other draws from the same law.

python examples/reproductions/fedprox_synthetic.py --results fedprox_synthetic.jsonl --plot fedprox_synthetic.png
python examples/reproductions/fedprox_synthetic.py --devices by-size --results fedprox_synthetic.jsonl --plot fedprox_by_size.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
import optax
from matplotlib.figure import Figure

import fedjax_sim as fs

SETS = {
    "IID": {"iid": True},
    "synthetic(0, 0)": {"alpha": 0.0, "beta": 0.0},
    "synthetic(1, 1)": {"alpha": 1.0, "beta": 1.0},
}
STRAGGLERS = (0.0, 0.5, 0.9)
METHODS = ("FedAvg", "FedProx, mu = 0", "FedProx, mu = 1")
COLOURS = ("#d95f02", "#7570b3", "#1b9e77")
WINDOW = 50  # rounds, whose evaluations are averaged: curves go up and down


def runs(data, devices: str, stragglers: float, seed: int, rounds: int, every: int) -> list[fs.History]:
    """One history for each of the methods, on the same devices in the same rounds."""
    task = fs.tasks.classification(fs.models.linear(classes=10))
    sgd = optax.sgd(0.01)
    if devices == "uniform":
        cohort, mean = fs.cohorts.uniform(10), fs.aggregation.mean(over="examples")
    else:
        cohort, mean = fs.cohorts.weighted(10, data.train.sizes), fs.aggregation.mean(over="clients")

    def simulation(drop: bool) -> fs.Simulation:
        local = fs.LocalWork(epochs=20, batch_size=10, stragglers=stragglers, drop_stragglers=drop)
        fedavg = fs.algorithms.fedavg(task, sgd, aggregate=mean)
        return fs.Simulation(fedavg, data.train, cohort=cohort, local=local)

    sets = {"test": data.test, "train": data.train}
    drops, keeps = simulation(drop=True), simulation(drop=False)
    fedprox = keeps.sweep(
        [seed, seed], rounds, evaluate_on=sets, every=every,
        algorithm=lambda mu: fs.algorithms.fedprox(task, sgd, mu=mu, aggregate=mean), hyperparameters={"mu": [0.0, 1.0]},
    )  # fmt: skip
    if stragglers == 0:
        return [fedprox[0], *fedprox]  # with nobody to drop, FedAvg is FedProx with mu = 0
    _, fedavg = drops.run(drops.init(seed), rounds, evaluate_on=sets, every=every)
    return [fedavg, *fedprox]


def curves(history: fs.History) -> list[list[float]]:
    """Test accuracy and training loss at every evaluation, ``[2, evaluations]``."""
    found = [
        (e["test"].examples["accuracy"], e["train"].examples["loss"]) for e in history.evaluations.values()
    ]
    return [[round(float(value), 5) for value in values] for values in zip(*found, strict=True)]


def measured(file: Path | None, setting: dict, data) -> list[list[list[float]]]:
    """``[methods, 2, evaluations]`` of one draw: from the file, or measured and added to it."""
    if file is not None and file.exists():
        for line in file.read_text().splitlines():
            found = json.loads(line)
            if {name: found[name] for name in setting} == setting:
                return found["curves"]
    made = [
        curves(history)
        for history in runs(
            data, setting["devices"], setting["slow"], setting["draw"], setting["rounds"], setting["every"]
        )
    ]
    if file is not None:
        with file.open("a") as lines:
            lines.write(json.dumps({**setting, "curves": made}) + "\n")
    return made


def picture(results: np.ndarray, sets: list[str], rounds: np.ndarray) -> Figure:
    """Training loss: a row for each set, a column for each share of slow devices."""
    figure = Figure(figsize=(10, 2.7 * len(sets)), layout="constrained")
    axes = figure.subplots(len(sets), len(STRAGGLERS), sharex=True, sharey="row", squeeze=False)
    for row, name in enumerate(sets):
        for column, share in enumerate(STRAGGLERS):
            ax = axes[row, column]
            for method, label in enumerate(METHODS):
                values = results[:, row, column, method, 1]
                mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1) if len(values) > 1 else 0.0
                ax.plot(rounds, mean, color=COLOURS[method], label=label)
                ax.fill_between(rounds, mean - spread, mean + spread, color=COLOURS[method], alpha=0.15, lw=0)
            ax.set_title(f"{name}, {share:.0%} slow", fontsize=10)
            ax.spines[["top", "right"]].set_visible(False)
            if column == 0:
                ax.set_ylabel("training loss")
            if row == len(sets) - 1:
                ax.set_xlabel("rounds")
    axes[0, 0].legend(frameon=False, fontsize=9)
    return figure


def table(means: np.ndarray, sets: list[str], window: str) -> str:
    """Means of each method, and how far each is from FedAvg in the same draw; ``means`` is ``[draws, sets, slow, methods, 2]``."""
    draws = len(means)
    once = min(1, draws - 1)
    lines = [
        f"the {window} {WINDOW} rounds: test accuracy and training loss, mean over their evaluations and over {draws} draws "
        "(standard deviation over draws)",
        f"{'':<26}" + "".join(f"{method:>34}" for method in METHODS),
    ]
    for row, name in enumerate(sets):
        for column, share in enumerate(STRAGGLERS):
            own = means[:, row, column]
            cells = (
                f"{mean[0]:>14.3f} ({spread[0]:.3f}){mean[1]:>7.3f} ({spread[1]:.3f})"
                for mean, spread in zip(own.mean(axis=0), own.std(axis=0, ddof=once), strict=True)
            )
            lines.append(f"{f'{name}, {share:.0%} slow':<26}" + "".join(cells))
    lines += [
        "",
        "accuracy beyond FedAvg's, and loss below it, in the same draw: mean +- its standard error, and in how many draws it is better",
        f"{'':<26}" + "".join(f"{method:>50}" for method in METHODS[1:]),
    ]
    for row, name in enumerate(sets):
        for column, share in enumerate(STRAGGLERS):
            own = means[:, row, column]
            gains = (own[:, 1:] - own[:, :1]) * [1, -1]  # [draws, methods but FedAvg, 2]
            error = gains.std(axis=0, ddof=once) / np.sqrt(draws)
            cells = (
                "".join(
                    f"{gains[:, method, which].mean():>+10.3f} +- {error[method, which]:.3f}"
                    f" {f'{int((gains[:, method, which] > 0).sum())}/{draws}':>5}"
                    for which in range(2)
                )
                for method in range(len(METHODS) - 1)
            )
            lines.append(f"{f'{name}, {share:.0%} slow':<26}" + "".join(cells))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--draws", type=int, default=6, help="draws of the data, each with a seed of its own")
    parser.add_argument("--every", type=int, default=5, help="rounds between evaluations")
    parser.add_argument(
        "--devices", choices=["uniform", "by-size"], default="uniform", help="how they are drawn"
    )
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--results", type=Path, help="file that measured curves are added to, and taken from")
    parser.add_argument("--plot", help="where the picture goes")
    options = parser.parse_args()

    results = np.array(
        [
            [
                [
                    measured(
                        options.results,
                        {
                            "draw": draw,
                            "set": name,
                            "slow": share,
                            "devices": options.devices,
                            "rounds": options.rounds,
                            "every": options.every,
                        },
                        data,
                    )
                    for share in STRAGGLERS
                ]
                for name, data in (
                    (name, fs.data.synthetic(seed=draw, **SETS[name])) for name in options.sets
                )
            ]
            for draw in range(options.draws)
        ]
    )  # [draws, sets, stragglers, methods, 2, evaluations]
    rounds = np.arange(1, results.shape[-1] + 1) * options.every
    print(table(results[..., rounds <= WINDOW].mean(axis=-1), options.sets, "first"), end="\n\n")
    print(table(results[..., rounds > options.rounds - WINDOW].mean(axis=-1), options.sets, "last"))
    if options.plot:
        picture(results, options.sets, rounds).savefig(options.plot, dpi=110)


if __name__ == "__main__":
    main()
