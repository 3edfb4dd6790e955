"""Law 11: ``sweep(seeds)[i]`` equals a run with that seed, and with those hyper-parameters."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws.members import (
    BFLOAT16,
    COHORTS,
    LANES,
    NAMES,
    TOLERANCE,
    comparable,
    largest_error,
    linear,
    make_data,
    metrics_error,
    mlp,
    named,
    narrow,
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


FAMILIES = {
    "fedsgd": lambda rate: fs.algorithms.fedsgd(linear(), rate),
    "scaffold": lambda rate: fs.algorithms.scaffold(linear(), rate),
    "mime": lambda rate: fs.algorithms.mime(linear(), optax.sgd(rate, momentum=0.9)),
    "ifca": lambda rate: fs.algorithms.ifca(linear(), optax.sgd(rate), models=2),
    "heterofl": lambda rate: fs.algorithms.heterofl({"wide": mlp(6), "narrow": mlp(3)}, optax.sgd(rate)),
}
"""Other stages, local work, groups and states than FedAvg's."""


def of_family(algorithm, engine, groups=None):
    return fs.Simulation(
        algorithm,
        make_data(),
        cohort=fs.cohorts.fixed(COHORTS["some"]),
        engine=engine,
        local=fs.LocalWork(epochs=2, batch_size=4, shuffle=False),
        groups=groups,
        rounds_per_chunk=ROUNDS,
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_sweep_may_be_over_another_family(name):
    """A sweep plans, evaluates and describes with its own algorithm, whatever the simulation's is."""
    factory, rates, data = FAMILIES[name], (0.1, 0.2), make_data()
    groups = named("heterofl").groups if name == "heterofl" else None
    # Only a simulation with groups can sweep an algorithm that has them.
    own = named("heterofl").build() if groups else fs.algorithms.fedavg(linear(), optax.sgd(0.1))
    swept = of_family(own, fs.engines.lanes(3), groups).sweep(
        [4, 4], ROUNDS, algorithm=factory, hyperparameters={"rate": rates}, evaluate_on=data
    )
    for rate, history, state in zip(rates, swept, swept.states, strict=True):
        sim = of_family(factory(rate), fs.engines.lanes(3), groups)
        expected, expected_history = sim.run(sim.init(4), ROUNDS, evaluate_on=data)
        assert_equal_runs(state, history, expected, expected_history)
        assert history.last("loss").value == pytest.approx(expected_history.last("loss").value, rel=TOLERANCE)


def test_a_simulation_with_groups_may_sweep_an_algorithm_without():
    groups, factory = named("heterofl").groups, FAMILIES["scaffold"]
    swept = of_family(named("heterofl").build(), fs.engines.lanes(3), groups).sweep(
        [4], ROUNDS, algorithm=factory, hyperparameters={"rate": [0.1]}
    )
    sim = of_family(factory(0.1), fs.engines.lanes(3))
    assert_equal_runs(swept.states[0], swept[0], *sim.run(sim.init(4), rounds=ROUNDS))


@pytest.mark.parametrize("name", ["fedadam", "scaffold", "fedprox"])
def test_hyperparameters_do_not_widen_a_narrow_model(name):
    """A traced step size computes as the Python number that it stands for."""
    factory = {
        "fedadam": lambda rate: fs.algorithms.fedadam(linear(), optax.sgd(rate), learning_rate=rate),
        "scaffold": lambda rate: fs.algorithms.scaffold(linear(), rate),
        "fedprox": lambda rate: fs.algorithms.fedprox(linear(), optax.sgd(rate), mu=rate),
    }[name]

    def half(rate):
        return narrow(named(name)._replace(build=lambda: factory(rate)), jnp.bfloat16).build()

    sim = of_family(half(0.1), fs.engines.lanes(3))
    swept = sim.sweep([4, 4], ROUNDS, algorithm=half, hyperparameters={"rate": np.array([0.1, 0.2])})
    expected, _ = sim.run(sim.init(4), rounds=ROUNDS)
    assert largest_error(comparable(swept.states[0]), comparable(expected)) < 2 * BFLOAT16
