"""FLamby's heart disease: four hospitals, a logistic regression, and the rules that FLamby compares, beside what it reports.

FLamby (Ogier du Terrail et al. 2022) trains for 15 rounds; in each, all four hospitals take 100 steps on batches of 4, in
passes over their patients that go on from round to round. Features are normalised by each hospital for itself. The
reported accuracies are the means of five seeds over the pooled test patients of all hospitals, normalised together.

python examples/reproductions/heart_disease.py --data FOLDER

FOLDER holds UCI's processed.cleveland.data, processed.hungarian.data, processed.switzerland.data and processed.va.data.
"""

import argparse
import math
from pathlib import Path

import jax
import numpy as np
import optax
from flax import linen as nn

import fedjax_sim as fs
from fedjax_sim.algorithms import server_optimizers

# Mean and standard deviation over seeds 42 to 46 of "Pooled Test" and of the mean over the four hospitals' own tests, from
# FLamby's result files (flamby/results/results_benchmark_fed_heart_disease_seed*.csv).
PUBLISHED = {
    "FedAvg": (0.7480, 0.0268, 0.6850, 0.0283),
    "FedProx": (0.7480, 0.0268, 0.6850, 0.0283),
    "Scaffold": (0.7480, 0.0268, 0.6840, 0.0280),
    "FedAdam": (0.7787, 0.0146, 0.7255, 0.0138),
    "FedYogi": (0.7787, 0.0153, 0.7314, 0.0125),
    "FedAdagrad": (0.7787, 0.0153, 0.7314, 0.0125),
}
ROUNDS = 15


class Logistic(nn.Module):
    """One logit; weights and bias start as torch's ``Linear`` starts, evenly within 1/sqrt(features)."""

    @nn.compact
    def __call__(self, x):
        bound = 1 / math.sqrt(x.shape[-1])

        def evenly(key, shape, dtype=np.float32):
            return jax.random.uniform(key, shape, dtype, -bound, bound)

        return nn.Dense(1, kernel_init=evenly, bias_init=evenly)(x)


def algorithms(task):
    """FLamby's rules with FLamby's rates: moments begin at 0, nothing is corrected for bias."""
    adaptive = {"b1": 0.9, "tau": 1e-8, "initial_second": 0.0}
    fedavg, sgd, servers = fs.algorithms.fedavg, optax.sgd, server_optimizers
    return {
        "FedAvg": fedavg(task, sgd(0.001)),
        "FedProx": fs.algorithms.fedprox(task, sgd(0.001), mu=0.01),
        # By patients, as FLamby averages; the paper averages over clients.
        "Scaffold": fs.algorithms.scaffold(task, 0.001, aggregate=fs.aggregation.mean(over="examples")),
        "FedAdam": fedavg(task, sgd(0.01), server=servers.fedadam(0.01, b2=0.999, **adaptive)),
        "FedYogi": fedavg(
            task, sgd(0.01 / math.sqrt(10)), server=servers.fedyogi(0.01, b2=0.999, **adaptive)
        ),
        "FedAdagrad": fedavg(
            task, sgd(0.01 / math.sqrt(10)), server=servers.fedadagrad(math.sqrt(0.1), **adaptive)
        ),
    }


def accuracies(algorithm, train, tests, seeds) -> np.ndarray:
    """Accuracy on all patients and mean over hospitals, ``[seeds, 2]``: all seeds train in one program."""
    local = fs.LocalWork(epochs=None, max_steps=100, batch_size=4, continue_epochs=True)
    sim = fs.Simulation(algorithm, train, cohort=fs.cohorts.all_clients(), local=local)
    histories = sim.sweep(seeds, ROUNDS, evaluate_on=tests)
    last = [history.evaluations[ROUNDS] for history in histories]
    return np.array(
        [[e["pooled"].examples["accuracy"], e["hospitals"].clients["accuracy"]["mean"]] for e in last]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with UCI's four files")
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()

    own = fs.data.heart_disease(options.data, normalise="client")
    pooled = fs.data.heart_disease(options.data, normalise="pooled")
    tests = {"pooled": pooled.test, "hospitals": own.test}
    task = fs.tasks.from_flax(Logistic(), loss="sigmoid_binary_cross_entropy")
    print(own.train)
    print(f"{'':<11}{'all test patients':>19}{'FLamby':>17}{'mean of hospitals':>20}{'FLamby':>17}")
    outside = []
    for name, algorithm in algorithms(task).items():
        found = accuracies(algorithm, own.train, tests, range(options.seeds))
        means, spreads = found.mean(axis=0), found.std(axis=0, ddof=1)
        pooled_mean, pooled_spread, mean, spread = PUBLISHED[name]
        print(
            f"{name:<11}{means[0]:>10.4f} ({spreads[0]:.4f}){pooled_mean:>9.4f} ({pooled_spread:.4f})"
            f"{means[1]:>11.4f} ({spreads[1]:.4f}){mean:>9.4f} ({spread:.4f})"
        )
        if abs(means[0] - pooled_mean) > pooled_spread or abs(means[1] - mean) > spread:
            outside.append(name)
    print(f"{options.seeds} seeds; standard deviations in brackets")
    print(f"outside the published mean plus or minus its spread: {', '.join(outside) or 'none'}")


if __name__ == "__main__":
    main()
