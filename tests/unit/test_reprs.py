"""What is made of functions shows itself in one line."""

from __future__ import annotations

import functools

import optax
import pytest
from unit import small

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

CHAIN = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(1.0))
SHOWN = {
    "chain": (lambda: CHAIN, "Transform(clip_by_global_norm, mean, gaussian_noise)"),
    "layer": (agg.mean, "Transform(mean)"),
    "algorithm": (lambda: small.fedavg(CHAIN), f"Algorithm(fedavg: {CHAIN!r})"),
    "stages": (
        lambda: fs.algorithms.mime(small.task(), optax.sgd(0.1), aggregate=CHAIN),
        f"Algorithm(mime: Transform(mean); {CHAIN!r})",
    ),
    "stage": (lambda: small.fedavg().stages[0], "Stage(ClientRule("),
    "task": (small.task, "Task(loss, accuracy)"),
    "cohort": (lambda: fs.cohorts.poisson(0.1), "Cohort(truncated_poisson, rate 0.1)"),
    "engine": (fs.engines.lanes, "Engine(lanes, 1 device)"),
    "simulation": (
        small.simulation,
        "Simulation(Algorithm(fedavg: Transform(mean)), 4 clients with 15 examples, Cohort(",
    ),
    "state": (lambda: run()[0], "SimState(round 2; server 32 B, clients 0 B)"),
    "history": (
        lambda: run()[1],
        "History(2 rounds from 0; metrics accuracy, aggregate_norm, loss, update_norm, clients",
    ),
    "histories": (
        lambda: small.simulation().sweep(seeds=[0, 1], rounds=3),
        "Histories(2 replicas, 3 rounds)",
    ),
    "evaluation": (lambda: run()[1].evaluations[2]["eval"], "Evaluation(accuracy 0."),
    "personalised": (
        lambda: small.simulation().personalised(run()[0], small.make_data()),
        "Personalised(accuracy 0.",
    ),
}


@functools.cache
def run():
    sim = small.simulation()
    return sim.run(sim.init(seed=0), rounds=2, evaluate_on=small.make_data(), every=1)


@pytest.mark.parametrize("what", SHOWN)
def test_a_thing_is_shown_in_one_line(what):
    make, says = SHOWN[what]
    shown = repr(make())
    assert shown.startswith(says)
    assert "\n" not in shown and " at 0x" not in shown and len(shown) < 200


def test_data_is_shown_in_short_lines():
    data = fs.data.load("digits", clients=50, alpha=0.3, seed=0)
    shown = repr(data)
    assert shown.startswith("Federated(digits, 10 classes\n  train: ClientData(50 clients")
    assert max(map(len, shown.splitlines())) < 130
