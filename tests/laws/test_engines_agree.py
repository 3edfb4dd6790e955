"""Law 1: sequential = lanes = sharded. The sharded engine's meshes are in ``tests/multidevice``."""

import pytest
from laws.members import (
    COHORTS, COMPILING, NAMES, TOLERANCE, comparable, largest_error, metrics_error, one_round, oracle, trial, warm_state,
)  # fmt: skip


@pytest.mark.parametrize("engine", COMPILING)
@pytest.mark.parametrize("name", NAMES)
def test_one_round_equals_the_oracle(name, engine):
    """Server, client table and metrics after a round are those of the sequential engine, whoever takes part."""
    for cohort in COHORTS.values():
        expected, expected_metrics = oracle(name, cohort)
        state, metrics = one_round(trial(name, engine), warm_state(name), cohort)
        assert largest_error(comparable(state), comparable(expected)) < TOLERANCE, cohort
        assert metrics_error(metrics, expected_metrics) < TOLERANCE, cohort
