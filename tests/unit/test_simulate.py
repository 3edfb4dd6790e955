"""Simulation: running on, looking in, stopping, counting, sweeping."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

SIZES = np.array([5, 1, 0, 9, 3, 12, 2])
FEATURES, CLASSES = 3, 3


def make_data(sizes=SIZES, seed=0) -> fs.ClientData:
    generator = np.random.default_rng(seed)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    x = generator.normal(size=(offsets[-1], FEATURES)).astype(np.float32)
    y = np.argmax(x + 0.3 * generator.normal(size=x.shape), axis=1).astype(np.int32)
    return fs.ClientData({"x": x, "y": y}, offsets, [f"client {i}" for i in range(len(sizes))])


DATA = make_data()
TASK = fs.tasks.classification(fs.models.linear(classes=CLASSES))


def sparse_private_momentum() -> fs.Algorithm:
    """State everywhere: the server's momentum, a clip that adapts, what clients did not send, and noise."""
    aggregate = agg.chain(
        agg.top_k(0.5),
        agg.adaptive_clip(0.5, count_noise_std=0.15),
        agg.mean(over="expected_cohort"),
        agg.gaussian_noise(0.01),
    )
    return fs.algorithms.fedavgm(TASK, optax.sgd(0.3), aggregate=aggregate)


def make_sim(algorithm=None, **changes) -> fs.Simulation:
    arguments = {
        "cohort": fs.cohorts.uniform(3),
        "local": fs.LocalWork(epochs=2, batch_size=4),
        "engine": fs.engines.lanes(2),
        "rounds_per_chunk": 2,
    }
    return fs.Simulation(algorithm or sparse_private_momentum(), DATA, **{**arguments, **changes})


@pytest.fixture(scope="module")
def sim() -> fs.Simulation:
    """One program for most tests of this file."""
    return make_sim()


@pytest.fixture(scope="module")
def five(sim):
    return sim.run(sim.init(seed=0), rounds=5)


def arrays(state: fs.SimState):
    return jax.tree.map(np.asarray, (state.server, state.clients, state.aggregate, state.round))


def assert_same(a: fs.SimState, b: fs.SimState):
    jax.tree.map(np.testing.assert_array_equal, arrays(a), arrays(b))
    assert jnp.array_equal(jax.random.key_data(a.key), jax.random.key_data(b.key))


# --- running ---


def test_two_rounds_and_three_are_five_bit_for_bit(sim, five):
    """State of server, clients and chain, the key, and the history."""
    state, first = sim.run(sim.init(seed=0), rounds=2)
    state, second = sim.run(state, rounds=3)
    assert_same(state, five[0])
    for name, values in five[1].metrics.items():
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), values)
    assert (first.first_round, second.first_round, second.rounds) == (0, 2, 3)


def test_the_seed_decides_everything(sim, five):
    assert_same(sim.run(sim.init(seed=0), rounds=5)[0], five[0])
    assert_same(sim.run(sim.init(seed=jax.random.key(0)), rounds=5)[0], five[0])
    other, _ = sim.run(sim.init(seed=1), rounds=5)
    differs = jax.tree.map(lambda a, b: bool((a != b).any()), arrays(other)[0], arrays(five[0])[0])
    assert all(jax.tree.leaves(differs))


def test_the_chunks_do_not_matter(five):
    assert_same(make_sim(rounds_per_chunk=5).run(make_sim().init(seed=0), rounds=5)[0], five[0])


@pytest.mark.parametrize(
    ("changes", "rounds"),
    [
        ({}, 50),
        ({"rounds_per_chunk": 7}, 7),
        ({"stream": True}, 10),
        ({"model": fs.models.mlp(classes=CLASSES, hidden=(1024, 1024))}, 10),
        ({"local": fs.LocalWork(epochs=1_000_000, batch_size=4)}, 10),
    ],
    ids=["short", "given", "streamed", "wide", "long"],
)
def test_short_rounds_have_long_chunks(changes, rounds):
    """Fifty, or ten where an interrupt would have to wait for what a model or the local work costs."""
    changes = {"model": fs.models.linear(classes=CLASSES), "rounds_per_chunk": None} | changes
    task = fs.tasks.classification(changes.pop("model"))
    sim = make_sim(fs.algorithms.fedavg(task, optax.sgd(0.1)), **changes)
    assert sim.rounds_per_chunk == rounds


def test_a_chunk_has_as_many_operations_as_it_may():
    """Between the longest and the shortest chunk, alone and of all replicas of a sweep together."""
    sim = make_sim(fs.algorithms.fedavg(TASK, optax.sgd(0.1)), rounds_per_chunk=1)
    _, history = sim.run(sim.init(seed=0), rounds=20)
    epochs = int(2 * 2e9 / 30 / (history.costs.flops / 20))
    long = make_sim(sim.algorithm, rounds_per_chunk=None, local=fs.LocalWork(epochs=epochs, batch_size=4))
    assert 24 <= long.rounds_per_chunk <= 38
    sweep = long._variant(long._make_problem(lambda hyper: long.algorithm, replicas=2))
    assert sweep.rounds_per_chunk == pytest.approx(long.rounds_per_chunk / 2, abs=1)


def test_a_state_stays_valid_after_it_was_run(sim, five):
    """The program consumes a copy: a state can be run from twice."""
    state = sim.init(seed=0)
    before = arrays(state)
    sim.run(state, rounds=2)
    jax.tree.map(np.testing.assert_array_equal, before, arrays(state))
    assert_same(sim.run(state, rounds=5)[0], five[0])


def test_all_runs_of_a_simulation_share_one_program(sim, five):
    """Whole chunks, the last shorter one, and a chunk cut short for an evaluation."""
    sim.run(sim.init(seed=3), rounds=3, evaluate_on=DATA, every=1)
    assert sim.compilations == 1


def test_a_state_starts_from_given_variables(sim):
    variables = fs.Variables(
        jax.tree.map(lambda x: jnp.full(x.shape, 0.5, x.dtype), sim.init(seed=0).server.variables.params)
    )
    state = sim.init(seed=0, variables=variables)
    jax.tree.map(np.testing.assert_array_equal, state.server.variables, variables)
    as_numpy = jax.tree.map(np.asarray, variables)
    assert_same(sim.init(seed=0, variables=as_numpy), state)
    assert_same(sim.run(state, rounds=2)[0], sim.run(sim.init(seed=0, variables=as_numpy), rounds=2)[0])


def test_variables_of_another_model_are_refused(sim):
    params = sim.init(seed=0).server.variables.params
    wrong = jax.tree.map(lambda x: jnp.zeros((*x.shape, 2)), params)
    with pytest.raises(
        ValueError, match=r"variables.params\['Dense_0'\]\['bias'\] is float32\[3, 2\], the task's is"
    ):
        sim.init(seed=0, variables=fs.Variables(wrong))
    with pytest.raises(ValueError, match=r"variables (lack|have, beside)"):
        sim.init(seed=0, variables=fs.Variables({"kernel": jnp.zeros(3)}))
    with pytest.raises(TypeError, match="variables is dict, expected Variables"):
        sim.init(seed=0, variables=params)


# --- callbacks ---


def test_callbacks_see_every_chunk(sim, five):
    seen = []
    _, history = sim.run(
        sim.init(seed=0),
        rounds=5,
        callbacks=[
            lambda p: seen.append((p.done, p.rounds, p.chunk.first_round, p.chunk.rounds, p.history().rounds))
        ],
    )
    assert seen == [(2, 5, 0, 2, 2), (4, 5, 2, 2, 4), (5, 5, 4, 1, 5)]
    np.testing.assert_array_equal(history["loss"], five[1]["loss"])


def test_a_callback_that_returns_true_ends_the_run(sim):
    """All callbacks of the chunk are called; anything else than True does not stop."""
    calls = []
    stop = lambda progress: progress.done >= 4  # noqa: E731
    state, history = sim.run(
        sim.init(seed=0), rounds=100, callbacks=[stop, lambda p: calls.append(p.done), lambda p: "no"]
    )
    assert (int(state.round), history.rounds, calls) == (4, 4, [2, 4])
    assert_same(state, sim.run(sim.init(seed=0), rounds=4)[0])


def test_a_snapshot_stays_valid(sim, five):
    """It is the state after the chunk, and running on does not consume it."""
    snapshots = []
    sim.run(sim.init(seed=0), rounds=5, callbacks=[lambda p: snapshots.append(p.snapshot())])
    assert [int(s.round) for s in snapshots] == [2, 4, 5]
    assert_same(snapshots[2], five[0])
    assert_same(sim.run(snapshots[0], rounds=3)[0], five[0])


# --- evaluation ---


def test_evaluations_are_due_every_so_many_rounds_and_at_the_end(sim, five):
    state, history = sim.run(sim.init(seed=0), rounds=5, evaluate_on=DATA, every=3)
    assert list(history.evaluations) == [3, 5]
    assert history.evaluations[5]["eval"].examples == sim.evaluate(state, DATA).examples
    halfway, _ = sim.run(sim.init(seed=0), rounds=3)
    assert history.evaluations[3]["eval"].examples == sim.evaluate(halfway, DATA).examples
    assert_same(state, five[0])


def test_by_default_the_end_is_evaluated(sim):
    state, _ = sim.run(sim.init(seed=0), rounds=2)
    _, history = sim.run(state, rounds=2, evaluate_on=DATA)
    assert list(history.evaluations) == [4]


def test_several_sets_are_evaluated_under_their_names(sim):
    """Each as if alone."""
    other = make_data(np.array([4, 6]), seed=1)
    state, history = sim.run(sim.init(seed=0), rounds=2, evaluate_on={"test": DATA, "unseen": other})
    assert list(history.evaluations[2]) == ["test", "unseen"]
    assert history.evaluations[2]["unseen"].examples == sim.evaluate(state, other).examples
    assert history.last("accuracy", on="test").value == sim.evaluate(state, DATA).examples["accuracy"]


@pytest.mark.parametrize(
    ("evaluate_on", "error", "message"),
    [
        ({}, ValueError, "evaluate_on names no set"),
        ({"a/b": DATA}, ValueError, "a set named 'a/b', expected text without '/'"),
        ({"stage0": DATA}, ValueError, "a set named 'stage0'"),
        ({3: DATA}, ValueError, "a set named 3"),
        ({"test": {"x": 1}}, TypeError, r"evaluate_on\['test'\] is dict, expected ClientData"),
        ([DATA], TypeError, "evaluate_on is list, expected ClientData"),
        ({"test": DATA.select([2])}, ValueError, "'test' has 1 clients and no example"),
    ],
)
def test_sets_that_cannot_be_evaluated_are_refused_before_the_run(sim, evaluate_on, error, message):
    with pytest.raises(error, match=message):
        sim.run(sim.init(seed=0), rounds=2, evaluate_on=evaluate_on)


def test_every_without_data_is_refused(sim):
    with pytest.raises(ValueError, match="every is given without evaluate_on"):
        sim.run(sim.init(seed=0), rounds=2, every=1)


def test_evaluate_is_of_the_global_model(sim, five):
    model = sim.algorithm.params(five[0].server)
    assert sim.evaluate(five[0], DATA).examples == fs.evaluate(TASK, model, DATA).examples


# --- history ---


def test_the_history_holds_one_value_per_round(five):
    history = five[1]
    assert {"loss", "accuracy", "update_norm", "aggregate_norm", "adaptive_clip/clip_norm"} <= set(
        history.metrics
    )
    assert all(values.shape == (5,) for values in history.metrics.values())
    with pytest.raises(KeyError, match=r"no metric 'perplexity'; there are .*accuracy"):
        history["perplexity"]


def test_metrics_of_a_round_are_means_over_its_examples():
    """With a step size of zero the loss is the model's on the cohort's examples."""
    algorithm = fs.algorithms.fedavg(TASK, optax.sgd(0.0))
    sim = make_sim(algorithm, cohort=fs.cohorts.fixed([0, 2, 3]), engine=fs.engines.sequential())
    state = sim.init(seed=0)
    _, history = sim.run(state, rounds=1)
    expected = sim.evaluate(state, DATA.select([0, 3])).examples
    assert history["loss"][0] == pytest.approx(expected["loss"], rel=1e-5)
    assert history["accuracy"][0] == pytest.approx(expected["accuracy"], rel=1e-5)
    assert history["update_norm"][0] == 0


# --- costs ---


def pairs(generator, size):
    """The first two pairs of a client's rows, and an odd row with a partner that does not exist."""
    rows = np.append(np.arange(size), np.full(size % 2, -1))
    return rows.reshape(-1, 2)[:2]


LOCALS = {
    "epochs": fs.LocalWork(epochs=2, batch_size=4),
    "max_steps": fs.LocalWork(epochs=3, batch_size=4, max_steps=4),
    "drop_remainder": fs.LocalWork(epochs=2, batch_size=4, drop_remainder=True),
    "steps_alone": fs.LocalWork(epochs=None, batch_size=4, max_steps=5),
    "several_batches": fs.LocalWork(epochs=2, batch_size=2, batches_per_step=2, max_steps=3),
    "explicit": fs.LocalWork(batch_size=2, max_steps=3, rows=pairs),
}


def examples_of(local: fs.LocalWork, size: int) -> int:
    """Examples that a client looks at, counted step by step."""
    if local.rows is not None:
        return int(np.sum(pairs(None, size) >= 0))
    count, left = 0, int(local.steps(size))
    while left:
        for start in range(0, size, local.rows_per_step):
            rows = min(local.rows_per_step, size - start)
            if left and (rows == local.rows_per_step or not local.drop_remainder):
                count, left = count + rows, left - 1
    return count


@pytest.mark.parametrize("name", LOCALS)
def test_costs_count_the_examples_that_were_looked_at(name):
    """Every pass counts; padding and empty clients do not. The program agrees: it sums the loss over as many."""
    local = LOCALS[name]
    ones = lambda outputs, batch: (jnp.ones(outputs.shape[0]), jnp.ones(outputs.shape[0]))  # noqa: E731
    sim = make_sim(
        fs.algorithms.fedavg(TASK._replace(metrics={"rows": ones}), optax.sgd(0.1)),
        local=local,
        cohort=fs.cohorts.all_clients(),
        engine=fs.engines.sequential(),
    )
    state = sim.init(seed=0)
    expected = sum(examples_of(local, int(size)) for size in SIZES)
    _, history = sim.run(state, rounds=2)
    assert history.costs.examples == 2 * expected
    plan, columns = sim.chunk(state, 1)
    _, report = sim._rounds(sim._rounds.place_state(state), columns, plan)
    assert float(report.metrics["rows"].total[0]) == expected


def test_costs_of_a_run(five, sim):
    costs = five[1].costs
    assert costs.lanes == 2
    assert costs.rows_per_step == 4
    assert 0 < costs.example_occupancy <= costs.step_occupancy <= 1
    assert costs.lane_steps >= costs.steps > 0
    assert costs.flops > 0 and costs.run_seconds > 0
    assert "examples/s at 2 lanes" in str(costs)
    assert "examples/s at 1 lane," in str(dataclasses.replace(costs, lanes=1))
    floats = sum(x.size for x in jax.tree.leaves(sim.init(seed=0).server.variables))
    assert costs.bytes_down == 5 * 3 * 4 * floats
    assert costs.bytes_up == 5 * 3 * (4 * floats + 4)  # and the bit of the adaptive clip, a float


@pytest.mark.parametrize("bits", [11, 20])
def test_traffic_of_integers_is_counted_in_bits(bits):
    """Numbers modulo a power of two are sent in as many bits; the program holds them in 32."""
    noise = agg.discrete_gaussian_noise(0.01, min_clients=1, max_clients=len(SIZES), bits=bits)
    chain = agg.chain(
        agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.hadamard_rotation(), noise
    )
    sim = make_sim(
        fs.algorithms.fedavg(TASK, optax.sgd(0.1), aggregate=chain), cohort=fs.cohorts.all_clients()
    )
    state, history = sim.run(sim.init(seed=0), rounds=1)
    told = agg.describe(chain, state.server.variables.params).rows[-1].bits
    assert told == 16 * bits + 32  # 12 parameters, rotated as 16; and a count of the clients
    assert history.costs.bytes_up == len(SIZES) * -(-told // 8)


def test_costs_follow_the_group_of_each_client():
    """HeteroFL: a narrow client receives, trains and sends its corner, and no coverage, which the server knows."""
    sized = lambda width: fs.tasks.classification(  # noqa: E731
        fs.models.mlp(CLASSES, hidden=(width,)), sample_input=(1, FEATURES)
    )
    tasks = {"wide": sized(16), "narrow": sized(2)}
    algorithm = fs.algorithms.heterofl(tasks, optax.sgd(0.1))
    groups = ["wide" if client % 3 == 0 else "narrow" for client in range(len(SIZES))]
    sim = make_sim(algorithm, groups=groups, cohort=fs.cohorts.all_clients())
    narrow = make_sim(algorithm, groups=["narrow"] * len(SIZES), cohort=fs.cohorts.all_clients())
    wide = make_sim(algorithm, groups=["wide"] * len(SIZES), cohort=fs.cohorts.all_clients())
    mixed, small, large = (s.run(s.init(seed=0), rounds=2)[1] for s in (sim, narrow, wide))

    bytes_of = {
        name: sum(4 * x.size for x in jax.tree.leaves(task.init(jax.random.key(0)).params))
        for name, task in tasks.items()
    }
    once = sum(bytes_of[group] for group in groups)
    assert (mixed.costs.bytes_up, mixed.costs.bytes_down) == (2 * once, 2 * once)
    assert mixed["bytes_up"].tolist() == mixed["bytes_down"].tolist() == [once, once]
    steps = sim.local.steps(SIZES)
    share = steps[np.array(groups) == "wide"].sum() / steps.sum()
    assert small.costs.flops < large.costs.flops
    expected = share * large.costs.flops + (1 - share) * small.costs.flops
    assert mixed.costs.flops == pytest.approx(expected)


# --- stops ---


def exploding(threshold: float) -> fs.Task:
    """A task whose gradient is infinite where the first feature is above a threshold."""

    def loss(outputs, batch):
        return jnp.sum(outputs, axis=-1) * jnp.where(batch["x"][:, 0] > threshold, jnp.inf, 1.0)

    return TASK._replace(loss=loss, metrics={})


def test_a_model_that_is_not_finite_stops_the_run_and_names_the_clients():
    columns = {name: column.copy() for name, column in DATA.columns.items()}
    columns["x"][:, 0] = np.where(np.arange(len(columns["x"])) == 7, 100.0, 0.0)  # a row of client 3
    data = fs.ClientData(columns, DATA.offsets, DATA.ids)
    sim = fs.Simulation(
        fs.algorithms.fedavg(exploding(50.0), optax.sgd(0.1)),
        data,
        cohort=fs.cohorts.uniform(3),
        local=fs.LocalWork(batch_size=4),
        rounds_per_chunk=4,
    )
    state = sim.init(seed=1)
    plan = sim.plan(state, 4)
    bad = int(np.argmax([3 in plan.queues[0].entries.client[r, 0] for r in range(4)]))
    with pytest.raises(
        fs.NonFiniteModelError, match=f"not finite after round {bad}; .* came from client 3[.]"
    ) as caught:
        sim.run(state, rounds=4)
    assert (caught.value.round, caught.value.clients, caught.value.history.rounds) == (
        bad,
        ("client 3",),
        bad,
    )


def test_a_server_step_that_overflows_names_no_client():
    sim = make_sim(fs.algorithms.fedavg(TASK, optax.sgd(0.1), server=optax.sgd(float("inf"))))
    with pytest.raises(fs.NonFiniteModelError, match="the server's own step overflowed") as caught:
        sim.run(sim.init(seed=0), rounds=2)
    assert caught.value.clients == ()


@pytest.mark.parametrize(
    "engine", [fs.engines.sequential(), fs.engines.lanes(2)], ids=["sequential", "lanes"]
)
@pytest.mark.parametrize("hidden", [(2048,), (64,) * 3], ids=["long leaves", "many leaves"])
def test_a_model_of_nan_alone_is_not_finite(engine, hidden):
    """Of any size: the CPU's library for maxima passes over NaN in some thousand numbers."""
    task = fs.tasks.classification(fs.models.mlp(classes=3, hidden=hidden))
    sim = make_sim(fs.algorithms.fedavg(task, optax.sgd(0.1), server=optax.sgd(float("nan"))), engine=engine)
    with pytest.raises(fs.NonFiniteModelError, match="not finite after round 0"):
        sim.run(sim.init(seed=0), rounds=2)


# --- sweeps ---


def test_members_of_a_sweep_are_runs_of_their_seeds(sim):
    """Law 11: state and history, to float tolerance."""
    histories = sim.sweep(seeds=[4, 0, 9], rounds=3, evaluate_on=DATA)
    assert len(histories) == 3
    for seed, history, final in zip([4, 0, 9], histories, histories.states, strict=True):
        state, alone = sim.run(sim.init(seed=seed), rounds=3, evaluate_on=DATA)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), arrays(final), arrays(state)
        )
        np.testing.assert_allclose(history["loss"], alone["loss"], rtol=1e-4)
        assert history.evaluations[3]["eval"].examples["loss"] == pytest.approx(
            alone.evaluations[3]["eval"].examples["loss"], rel=1e-4
        )
    assert histories.stacked("loss").shape == (3, 3)


def test_a_sweep_over_hyperparameters_is_one_program_of_traced_values():
    build = lambda rate, mu: fs.algorithms.fedprox(TASK, optax.sgd(rate), mu=mu)  # noqa: E731
    rates, mus = [0.01, 0.3], [0.0, 1.0]
    histories = make_sim(build(0.1, 0.1)).sweep(
        seeds=[0, 0], rounds=2, algorithm=build, hyperparameters={"rate": rates, "mu": mus}
    )
    for index, (rate, mu) in enumerate(zip(rates, mus, strict=True)):
        alone = make_sim(build(rate, mu))
        state, _ = alone.run(alone.init(seed=0), rounds=2)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            arrays(histories.states[index]),
            arrays(state),
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": []}, "seeds is empty"),
        ({"seeds": [0], "hyperparameters": {"rate": [0.1]}}, "algorithm and hyperparameters go together"),
        (
            {"seeds": [0], "algorithm": lambda rate: None, "hyperparameters": {"rate": [0.1, 0.2]}},
            r"hyperparameters\['rate'\] has 2 values, expected one per seed, 1",
        ),
    ],
)
def test_a_sweep_that_does_not_fit_is_refused(sim, arguments, message):
    with pytest.raises(ValueError, match=message):
        sim.sweep(rounds=1, **arguments)
