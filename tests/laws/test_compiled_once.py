"""Law 5: one compilation per configuration, however ragged the cohorts, and temporary memory that does not see them."""

import contextlib

import jax
import numpy as np
import optax
import pytest
from laws.members import COHORTS, COMPILING, ENGINES, NAMES, linear, make_data, one_round, trial, warm_state

import fedjax_sim as fs


@contextlib.contextmanager
def backend_compilations():
    """A list that grows with every program that XLA compiles."""
    events = []

    def listen(event: str, seconds: float, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            events.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield events
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_compilations_are_seen():
    """The instrument of the other tests works."""
    with backend_compilations() as events:
        jax.jit(lambda x: x * 3 + 1)(np.float32(2))
    assert len(events) == 1


@pytest.mark.parametrize("engine", COMPILING)
@pytest.mark.parametrize("name", NAMES)
def test_ragged_cohorts_share_one_program(name, engine):
    """Everybody, one, nobody, some; chunks of two rounds and a last one of one; another seed: nothing is compiled."""
    sim, script = trial(name, engine)
    one_round(trial(name, engine), warm_state(name), COHORTS["one"])
    state = sim.init(seed=11)
    script.cohorts = list(COHORTS.values())
    with backend_compilations() as events:
        state, history = sim.run(state, rounds=2 * len(COHORTS) + 1)
    assert not events
    assert sim.compilations == 1
    assert history.rounds == 2 * len(COHORTS) + 1


@pytest.mark.parametrize("engine", COMPILING)
def test_the_model_is_traced_for_the_first_chunk_only(engine):
    """Under Poisson cohorts, the model's own Python code does not run after the first chunk of rounds.

    It runs once for the update's shapes and the program, for the costs of a step, and for its precision.
    """
    task, traces, seen = linear(), [], []

    def apply(variables, batch, key, *, train):
        traces.append(train)
        return task.apply(variables, batch, key, train=train)

    sim = fs.Simulation(
        fs.algorithms.fedavg(task._replace(apply=apply), optax.sgd(0.1)),
        make_data(),
        cohort=fs.cohorts.poisson(0.5),
        local=fs.LocalWork(batch_size=4),
        engine=ENGINES[engine](),
        rounds_per_chunk=3,
    )
    sim.run(sim.init(seed=0), rounds=10, callbacks=[lambda progress: seen.append(len(traces))])
    assert len(seen) == 4
    assert set(seen) == {3}
    sim.run(sim.init(seed=1), rounds=2)
    assert sim.compilations == 1


def temporary_bytes(build, cohort: int) -> int:
    data = make_data(np.full(2000, 3))
    sim = fs.Simulation(
        build(fs.tasks.classification(fs.models.mlp(4, hidden=(64, 64)))),
        data,
        cohort=fs.cohorts.uniform(cohort),
        local=fs.LocalWork(batch_size=4, shuffle=False),
        engine=fs.engines.lanes(4),
        rounds_per_chunk=1,
    )
    return sim.lower(sim.init(seed=0)).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
    "build",
    [lambda task: fs.algorithms.fedavg(task, optax.sgd(0.1)), lambda task: fs.algorithms.scaffold(task, 0.1)],
    ids=["fedavg", "scaffold"],
)
def test_memory_does_not_grow_with_the_cohort(build):
    """From 10 to 1,000 clients a round it grows by a row of numbers for each turn, a hundredth of a client's model.

    The row is what the plan says of the turn and its keys, in 32-bit words; nothing of the size of a model is added.
    """
    few, many = temporary_bytes(build, 10), temporary_bytes(build, 1000)
    model = 4 * (8 * 64 + 64 * 64 + 64 * 4)
    assert abs(many - few) / 990 <= 116 < model / 100
