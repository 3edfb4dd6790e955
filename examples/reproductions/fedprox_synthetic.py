"""FedProx against FedAvg on synthetic(alpha, beta) where 0, 50 or 90 % of each round's devices are too slow.

The setting of Li et al. 2020 ("Federated Optimization in Heterogeneous Networks", figure 1): softmax regression, 10 of 30
devices per round, 20 epochs with batches of 10, step size 0.01, 200 rounds. FedAvg leaves slow devices out, FedProx keeps
what they did, with mu = 0 or mu = 1. The slow devices of a round are the same for all three. The paper shows figures
only; its data were drawn without a seed, so these are other draws from the same law.

python examples/reproductions/fedprox_synthetic.py --draws 5 --plot fedprox_synthetic.png
"""

import argparse
import time

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


def runs(data, stragglers: float, seed: int, rounds: int, every: int) -> list[fs.History]:
    """One history for each of the methods, on the same devices in the same rounds."""
    task = fs.tasks.classification(fs.models.linear(classes=10))
    sgd = optax.sgd(0.01)

    def simulation(drop: bool) -> fs.Simulation:
        local = fs.LocalWork(epochs=20, batch_size=10, stragglers=stragglers, drop_stragglers=drop)
        return fs.Simulation(
            fs.algorithms.fedavg(task, sgd), data.train, cohort=fs.cohorts.uniform(10), local=local
        )

    sets = {"test": data.test, "train": data.train}
    drops, keeps = simulation(drop=True), simulation(drop=False)
    _, fedavg = drops.run(drops.init(seed), rounds, evaluate_on=sets, every=every)
    fedprox = keeps.sweep(
        [seed, seed], rounds, evaluate_on=sets, every=every,
        algorithm=lambda mu: fs.algorithms.fedprox(task, sgd, mu=mu), hyperparameters={"mu": [0.0, 1.0]},
    )  # fmt: skip
    return [fedavg, *fedprox]


def curves(history: fs.History) -> np.ndarray:
    """Test accuracy and training loss at every evaluation, ``[2, evaluations]``."""
    found = history.evaluations.values()
    return np.array([[e["test"].examples["accuracy"], e["train"].examples["loss"]] for e in found]).T


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--draws", type=int, default=5, help="draws of the data, each with a seed of its own")
    parser.add_argument("--every", type=int, default=10, help="rounds between evaluations")
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--plot", help="where the picture goes")
    options = parser.parse_args()

    started = time.perf_counter()
    results = np.array(
        [
            [
                [
                    [curves(history) for history in runs(data, share, draw, options.rounds, options.every)]
                    for share in STRAGGLERS
                ]
                for data in (fs.data.synthetic(seed=draw, **SETS[name]) for name in options.sets)
            ]
            for draw in range(options.draws)
        ]
    )  # [draws, sets, stragglers, methods, 2, evaluations]
    last = results[..., -5:].mean(axis=-1)  # curves go up and down: the mean of the last five evaluations
    print(
        f"test accuracy and training loss, mean (standard deviation) over {options.draws} draws, end of training"
    )
    print(f"{'':<24}" + "".join(f"{method:>34}" for method in METHODS))
    for row, name in enumerate(options.sets):
        for column, share in enumerate(STRAGGLERS):
            cells = []
            for method in range(len(METHODS)):
                own = last[:, row, column, method]
                mean, spread = own.mean(axis=0), own.std(axis=0, ddof=min(1, len(own) - 1))
                cells.append(f"{mean[0]:>14.3f} ({spread[0]:.3f}){mean[1]:>7.3f} ({spread[1]:.3f})")
            print(f"{f'{name}, {share:.0%} slow':<24}" + "".join(cells))
    if "synthetic(1, 1)" in options.sets:
        gain = last[:, options.sets.index("synthetic(1, 1)"), STRAGGLERS.index(0.9), :, 0]
        print(
            "synthetic(1, 1), 90% slow: FedProx with mu = 1 is "
            f"{np.mean(gain[:, 2] - gain[:, 0]):+.3f} in accuracy over FedAvg (+0.22 in the paper, on average over its sets)"
        )
    print(f"{time.perf_counter() - started:.0f} s")
    if options.plot:
        picture(results, options.sets, np.arange(1, results.shape[-1] + 1) * options.every).savefig(
            options.plot, dpi=110
        )


if __name__ == "__main__":
    main()
