"""Accuracy against epsilon: DP-FedAvg with a fixed and an adaptive clip, and DP-FTRL, for clients as the unit of privacy.

python examples/reproductions/dp_fedavg.py
python examples/reproductions/dp_fedavg.py --mnist PATH

Without files: 100,000 clients with 20 digits each, drawn anew from fewer synthetic writers (fs.data.redraw of fs.data.glyphs), so
epsilon holds for the clients of the simulation. With --mnist (MNIST by NIST's writers, a folder as fs.data.mnist_by_writer
reads it) there are only hundreds of clients: noise is that of a larger deployment, and so is the epsilon, which is reported as
simulated. Every epsilon is calibrated before a run for the sampler and the chain that run, and checked against the
simulation's own price. Step sizes and clip norms were not tuned on the runs that are shown; what tuning costs is in no epsilon.
"""

import argparse
import time
from pathlib import Path

import matplotlib
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CLIP, BANDS = 0.5, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mnist", type=Path, default=None, help="a folder with MNIST by writer")
    parser.add_argument("--writers", type=int, default=500, help="synthetic writers that clients draw from")
    parser.add_argument("--clients", type=int, default=100_000)
    parser.add_argument("--cohort", type=int, default=500)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[2.0, 4.0, 8.0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument(
        "--methods", nargs="+", default=None, help="some of the methods, by the start of their names"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".png"), help="the picture")
    options = parser.parse_args()
    rounds, population, cohort = options.rounds, options.clients, options.cohort
    delta = 0.1 / population

    if options.mnist is None:
        glyphs = fs.data.glyphs(clients=options.writers, classes=10, test_clients=50)
        test = glyphs.test.in_memory
        train = fs.data.redraw(glyphs, population, examples=20).train
        print(
            f"{population:,} clients with 20 digits each, drawn anew from {options.writers} synthetic writers"
        )
    else:
        mnist = fs.data.mnist_by_writer(options.mnist)
        train, test = mnist.train, mnist.test
        print(f"MNIST by {train.num_clients} writers; simulated: {population:,} clients, cohorts of {cohort}")
    task = fs.tasks.classification(fs.models.mlp(10, hidden=(64,)))
    mean, fixed = agg.mean(over="expected_cohort"), agg.clip_by_global_norm(CLIP)
    count_std = cohort / 20

    # Per method: who takes part, and what the noise multiplier z makes of the chain.
    methods = {
        "fixed clip": (
            fs.cohorts.poisson(cohort / population),
            lambda z: (fixed, mean, agg.gaussian_noise(z)),
        ),
        "adaptive clip": (
            fs.cohorts.poisson(cohort / population),
            lambda z: (agg.adaptive_clip(0.1, count_noise_std=count_std), mean, agg.gaussian_noise(z)),
        ),
        "DP-FTRL, tree": (fs.cohorts.cyclic(cohort), lambda z: (fixed, mean, agg.tree_noise(z))),
        f"DP-FTRL, {BANDS} bands": (
            fs.cohorts.cyclic_poisson(BANDS * cohort / population, BANDS),
            lambda z: (fixed, mean, agg.banded_noise(z, BANDS, rounds)),
        ),
    }
    local = fs.LocalWork(epochs=1, batch_size=20)
    print(
        f"{rounds} rounds, cohorts of {cohort}, delta {delta:.0e}, {options.seeds} seeds, MLP of 50,890 numbers"
    )
    print(f"{'accuracy on other writers':<26}" + "".join(f"{f'epsilon {e:g}':>18}" for e in options.epsilon))

    found = {}
    for name, (sampler, layers) in methods.items():
        if options.methods is not None and not name.startswith(tuple(options.methods)):
            continue
        started = time.perf_counter()
        run = {"rounds": rounds, "delta": delta, "population": population}
        multipliers = [
            fs.privacy.calibrate(
                epsilon, sampler, source=lambda z, layers=layers: agg.chain(*layers(z)), **run
            )
            for epsilon in options.epsilon
        ]

        def algorithm(z, layers=layers, sampler=sampler):
            clip, divide, noise = layers(z)
            if options.mnist is not None:
                noise = agg.simulated(noise, sampler, population)
                clip = (
                    clip if clip is fixed else agg.simulated(clip, sampler, population)
                )  # whose count is noisy
            return fs.algorithms.fedavgm(
                task, client=optax.sgd(0.05), momentum=0.9, aggregate=agg.chain(clip, divide, noise)
            )

        own = sampler if options.mnist is None else fs.cohorts.uniform(50)
        sims = fs.Simulation(algorithm(multipliers[0]), train, cohort=own, local=local)
        for epsilon, z in zip(options.epsilon, multipliers, strict=True):
            price = fs.Simulation(algorithm(z), train, cohort=own, local=local).privacy(rounds, delta)
            assert price.epsilon <= epsilon * (1 + 1e-6), price
        seeds = [seed for _ in multipliers for seed in range(options.seeds)]
        every = np.repeat(multipliers, options.seeds).tolist()
        histories = sims.sweep(
            seeds=seeds, rounds=rounds, algorithm=algorithm, hyperparameters={"z": every}, evaluate_on=test
        )
        accuracy = np.array([h.last("accuracy").value for h in histories]).reshape(
            len(multipliers), options.seeds
        )
        found[name] = accuracy
        cells = "".join(f"{shown(a):>18}" for a in accuracy)
        print(
            f"{name:<26}{cells}   z {', '.join(f'{z:.3g}' for z in multipliers)}; {time.perf_counter() - started:.0f} s",
            flush=True,
        )
    plain = fs.algorithms.fedavgm(
        task, client=optax.sgd(0.05), momentum=0.9, aggregate=agg.mean(over="expected_cohort")
    )
    own = fs.cohorts.poisson(cohort / population) if options.mnist is None else fs.cohorts.uniform(50)
    histories = fs.Simulation(plain, train, cohort=own, local=local).sweep(
        seeds=range(options.seeds), rounds=rounds, evaluate_on=test
    )
    ceiling = np.array([h.last("accuracy").value for h in histories])
    print(f"{'no clip, no noise':<26}{shown(ceiling):>18}")
    draw(options, found, float(ceiling.mean()))


def shown(accuracy: np.ndarray) -> str:
    """Mean and standard deviation over seeds; one seed has none."""
    spread = f" +- {accuracy.std():.1%}" if len(accuracy) > 1 else ""
    return f"{accuracy.mean():.1%}{spread}"


def draw(options, found, ceiling: float) -> None:
    """One line a method, with the range over seeds."""
    figure, axes = plt.subplots(figsize=(6, 3.6), layout="constrained")
    for marker, (name, accuracy) in zip("osD^", found.items(), strict=False):
        mean = 100 * accuracy.mean(axis=1)
        spread = [mean - 100 * accuracy.min(axis=1), 100 * accuracy.max(axis=1) - mean]
        axes.errorbar(options.epsilon, mean, yerr=spread, marker=marker, capsize=3, label=name)
    axes.axhline(100 * ceiling, color="0.5", linestyle="--", linewidth=1)
    axes.text(options.epsilon[0], 100 * ceiling, "no clip, no noise", color="0.4", va="bottom", fontsize=8)
    axes.set_xscale("log", base=2)
    axes.set_xticks(options.epsilon, [f"{e:g}" for e in options.epsilon])
    axes.minorticks_off()
    simulated = "simulated epsilon" if options.mnist is not None else "epsilon"
    axes.set_xlabel(f"{simulated} for one client, {options.clients:,} clients, {options.rounds} rounds")
    axes.set_ylabel("accuracy, %")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, fontsize=8)
    figure.savefig(options.out, dpi=150)
    print(f"wrote {options.out.name}")


if __name__ == "__main__":
    main()
