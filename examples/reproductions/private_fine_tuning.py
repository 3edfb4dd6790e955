"""What is not trained needs no noise: fine-tuning a public model with client-level differential privacy, at equal epsilon.

python examples/reproductions/private_fine_tuning.py

A model learns 52 letters from public writers and is saved as safetensors. Then clients with digits, which the model has never
seen, train it with DP-FedAvg and adaptive clipping: all of it from scratch, all of it from the public weights, a new
head alone, or low-rank adapters and a new head. The same noise multiplier, hence the same epsilon, for all of them; what
differs is how many numbers are noised. Clients are drawn anew from fewer writers (fs.data.redraw), so epsilon holds for the
clients of the simulation, not for the writers that stand behind them.
"""

import argparse
import tempfile
from pathlib import Path

import jax
import numpy as np
import optax

import fedjax_sim as fs
from fedjax_sim import aggregation as agg


def of_classes(part: fs.ClientData, first: int, last: int) -> fs.ClientData:
    """The characters of some classes, counted from 0."""
    y = part.columns["y"]
    kept = part.filter((y >= first) & (y <= last))
    columns = {"x": kept.columns["x"], "y": kept.columns["y"] - first}
    return fs.ClientData(columns, kept.offsets, kept.ids)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writers", type=int, default=400, help="half of them public")
    parser.add_argument("--clients", type=int, default=20_000, help="drawn anew from the private writers")
    parser.add_argument("--rate", type=float, default=0.005, help="share of the clients in a round")
    parser.add_argument("--epsilon", type=float, nargs="+", default=[0.5, 2.0, 8.0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--public-rounds", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()

    glyphs = fs.data.glyphs(clients=options.writers, classes=62, test_clients=50)
    writers, half = glyphs.train.in_memory, options.writers // 2
    public = of_classes(writers.select(np.arange(half)), 10, 61)
    private = of_classes(writers.select(np.arange(half, options.writers)), 0, 9)
    test = of_classes(glyphs.test.in_memory, 0, 9)
    many = fs.data.redraw(fs.data.Federated(private, test, "digits"), options.clients, examples=20)

    letters, digits = (fs.tasks.classification(fs.models.mlp(classes)) for classes in (52, 10))
    weights = Path(tempfile.mkdtemp()) / "letters.safetensors"
    algorithm = fs.algorithms.fedavgm(letters, client=optax.sgd(0.05), momentum=0.9)
    sim = fs.Simulation(algorithm, public, cohort=fs.cohorts.uniform(min(20, half)))
    state, _ = sim.run(sim.init(0), options.public_rounds)
    fs.tasks.save_weights(weights, algorithm.params(state.server))
    accuracy = sim.evaluate(state, public).examples["accuracy"]
    print(f"public model: {accuracy:.1%} of {public.num_examples:,} letters, saved to {weights.name}")

    tuned = fs.tasks.pretrained(digits, weights, fresh="params/Dense_2/")
    ways = {
        "everything, from scratch": (digits, 0.05),
        "everything": (tuned, 0.05),
        "head alone": (fs.tasks.trainable(tuned, "^Dense_2/"), 0.05),
        "adapters and head": (
            fs.tasks.lora(tuned, rank=4, targets="^Dense_[01]/kernel", full="^Dense_2/"),
            0.05,
        ),
        "adapters' B and head": (
            fs.tasks.lora(tuned, rank=4, targets="^Dense_[01]/kernel", full="^Dense_2/", freeze_a=True),
            0.05,
        ),
    }
    cohort = fs.cohorts.poisson(options.rate)
    expected = cohort.expected(options.clients)
    delta = 0.1 / options.clients
    run = {"rounds": options.rounds, "delta": delta, "population": options.clients}
    budgets = {epsilon: fs.privacy.calibrate(epsilon, cohort, **run) for epsilon in options.epsilon}
    print(
        f"{options.clients:,} clients with {many.train.sizes[0]} digits of {half} writers, Poisson cohorts of {expected:.0f}, "
        f"{options.rounds} rounds, delta {delta:.0e}, {options.seeds} seeds"
    )
    print(
        f"{'trained and sent':<26}{'numbers':>10}"
        + "".join(f"{f'epsilon {e:g}':>18}" for e in budgets)
        + f"{'no noise':>18}"
    )
    for name, (task, rate) in ways.items():
        row, numbers = "", 0
        for z in (*budgets.values(), None):
            clip = agg.adaptive_clip(1.0, count_noise_std=expected / 20 if z else 0.0)
            layers = [clip, agg.mean(over="expected_cohort")]
            if z is not None:
                layers.append(agg.gaussian_noise(fs.privacy.update_noise_multiplier(z, expected / 20)))
            algorithm = fs.algorithms.fedavgm(
                task, client=optax.sgd(rate), momentum=0.9, aggregate=agg.chain(*layers)
            )
            sim = fs.Simulation(algorithm, many.train, cohort=cohort, local=fs.LocalWork(batch_size=20))
            if z is not None:
                assert sim.privacy(options.rounds, delta).epsilon <= max(budgets) * 1.001
            histories = sim.sweep(seeds=range(options.seeds), rounds=options.rounds, evaluate_on=test)
            found = [history.last("accuracy").value for history in histories]
            numbers = sum(
                x.size for x in jax.tree.leaves(algorithm.params(histories.states[0].server).params)
            )
            row += f"{f'{np.mean(found):.1%} +- {np.std(found):.1%}':>18}"
        print(f"{name:<26}{numbers:>10,}{row}", flush=True)


if __name__ == "__main__":
    main()
