"""Law 11: ``sweep(seeds)[i]`` equals a run with that seed, and with those hyper-parameters."""

import optax
import pytest
from laws.members import (
    COHORTS,
    LANES,
    NAMES,
    TOLERANCE,
    comparable,
    largest_error,
    linear,
    make_data,
    metrics_error,
    trial,
)

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

ROUNDS = 2


def assert_equal_runs(state, history, expected, expected_history):
    assert largest_error(comparable(state), comparable(expected)) < TOLERANCE
    for index in range(ROUNDS):
        got, want = ({n: v[index] for n, v in h.metrics.items()} for h in (history, expected_history))
        assert metrics_error(got, want) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_a_replica_equals_a_run_with_its_seed(name):
    """Replicas share lanes and program, and nothing else."""
    sim, script = trial(name, LANES)
    script.cohorts = [COHORTS["some"], COHORTS["all"]]
    seeds = [5, 6]
    swept = sim.sweep(seeds, rounds=ROUNDS)
    for seed, history, state in zip(seeds, swept, swept.states, strict=True):
        assert_equal_runs(state, history, *sim.run(sim.init(seed), rounds=ROUNDS))


@pytest.mark.parametrize("engine", [fs.engines.sequential, lambda: fs.engines.lanes(4, finish="masked")])
def test_replicas_draw_their_own_cohorts(engine):
    """Cohorts follow each replica's seed, under every engine that can sweep."""
    sim = fs.Simulation(
        fs.algorithms.scaffold(linear(), 0.1),
        make_data(),
        cohort=fs.cohorts.poisson(0.4),
        local=fs.LocalWork(batch_size=4, shuffle=False),
        engine=engine(),
        rounds_per_chunk=2,
    )
    seeds = [1, 2, 3]
    swept = sim.sweep(seeds, rounds=ROUNDS)
    for seed, history, state in zip(seeds, swept, swept.states, strict=True):
        assert_equal_runs(state, history, *sim.run(sim.init(seed), rounds=ROUNDS))


HYPERPARAMETERS = {
    "client_rate": (0.1, 0.2),
    "server_rate": (1.0, 0.5),
    "mu": (0.1, 2.0),
    "noise_multiplier": (0.1, 0.3),
    "clip_norm": (0.5, 0.2),
}
"""Name to its usual value and another."""


def tunable(client_rate, server_rate, mu, noise_multiplier, clip_norm) -> fs.Algorithm:
    private = agg.chain(
        agg.clip_by_global_norm(clip_norm),
        agg.mean(over="expected_cohort"),
        agg.gaussian_noise(noise_multiplier),
    )
    return fs.algorithms.fedprox(linear(), optax.sgd(client_rate), mu, optax.sgd(server_rate), private)


def test_a_replica_equals_a_run_with_its_hyperparameters():
    """Step sizes, FedProx's mu, clip norm and noise multiplier may be traced: one program, each with its own."""
    usual = {name: pair[0] for name, pair in HYPERPARAMETERS.items()}
    settings = [usual, *[usual | {name: pair[1]} for name, pair in HYPERPARAMETERS.items()]]

    def simulation(algorithm):
        return fs.Simulation(
            algorithm,
            make_data(),
            cohort=fs.cohorts.fixed(COHORTS["some"]),
            engine=fs.engines.lanes(3),
            local=fs.LocalWork(batch_size=4, shuffle=False),
            rounds_per_chunk=ROUNDS,
        )

    values = {name: [setting[name] for setting in settings] for name in HYPERPARAMETERS}
    swept = simulation(tunable(**usual)).sweep(
        [4] * len(settings), rounds=ROUNDS, algorithm=tunable, hyperparameters=values
    )
    for setting, history, state in zip(settings, swept, swept.states, strict=True):
        sim = simulation(tunable(**setting))
        assert_equal_runs(state, history, *sim.run(sim.init(4), rounds=ROUNDS))
    for changed in swept.states[1:]:
        assert largest_error(comparable(changed), comparable(swept.states[0])) > 100 * TOLERANCE
