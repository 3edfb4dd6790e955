"""Law 1: sequential = lanes = sharded. The sharded engine's meshes are in ``tests/multidevice``."""

import jax
import jax.numpy as jnp
import pytest
from laws.members import (
    BFLOAT16,
    COHORTS,
    COMPILING,
    LANES,
    NAMES,
    TOLERANCE,
    comparable,
    largest_error,
    metrics_error,
    named,
    narrow,
    new_trial,
    one_round,
    oracle,
    trial,
    warm_state,
)

import fedjax_sim as fs


@pytest.mark.parametrize("engine", COMPILING)
@pytest.mark.parametrize("name", NAMES)
def test_one_round_equals_the_oracle(name, engine):
    """Server, client table and metrics after a round are those of the sequential engine, whoever takes part."""
    for cohort in COHORTS.values():
        expected, expected_metrics = oracle(name, cohort)
        state, metrics = one_round(trial(name, engine), warm_state(name), cohort)
        assert largest_error(comparable(state), comparable(expected)) < TOLERANCE, cohort
        assert metrics_error(metrics, expected_metrics) < TOLERANCE, cohort


@pytest.mark.parametrize("name", ["fedavg", "scaffold"])
def test_a_program_with_room_for_one(name):
    """More lanes than the queue has room for: the lanes that cannot be used are not made."""
    full = trial(name, LANES).sim
    sim = fs.Simulation(
        full.algorithm,
        full.data,
        cohort=fs.cohorts.fixed(COHORTS["one"]),
        local=full.local,
        engine=fs.engines.lanes(5, finish="masked"),
    )
    state, history = sim.run(warm_state(name), rounds=1)
    assert largest_error(comparable(state), comparable(oracle(name, COHORTS["one"])[0])) < TOLERANCE
    assert history.costs.step_occupancy == 1


@pytest.mark.parametrize("name", NAMES)
def test_narrow_parameters(name):
    """Models in bfloat16 run on every engine alike, stay in bfloat16, and their servers' moments, too."""
    states = []
    for engine in (fs.engines.sequential(), fs.engines.lanes(3)):
        narrowed = new_trial(narrow(named(name), jnp.bfloat16), engine)
        state, _ = one_round(narrowed, narrowed.sim.init(seed=3), COHORTS["some"])
        params = narrowed.sim.algorithm.params(state.server).params
        assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
        states.append(state)
    assert largest_error(comparable(states[1]), comparable(states[0])) < 2 * BFLOAT16
