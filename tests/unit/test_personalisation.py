"""Personalised models: against plain Python loops, whatever the blocks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs

SIZES = np.array([5, 1, 0, 9, 3, 12, 2])
TEST_SIZES = np.array([3, 0, 4, 2, 5, 1, 3])
FEATURES, CLASSES = 3, 3


def make_data(sizes, seed=0, ids=None) -> fs.ClientData:
    """Every second client has its labels turned around, so that local work pays."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(sizes.sum(), FEATURES)).astype(np.float32)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    y = (np.argmax(x, axis=1) + owner % 2) % CLASSES
    ids = [f"client {i}" for i in range(len(sizes))] if ids is None else ids
    return fs.ClientData({"x": x, "y": y.astype(np.int32)}, np.concatenate([[0], np.cumsum(sizes)]), ids)


TRAIN, TEST = make_data(SIZES), make_data(TEST_SIZES, seed=1)


def confidence(outputs, batch):
    """A metric of our own: the probability of the label, on examples whose first feature is positive."""
    weight = (batch["x"][:, 0] > 0).astype(jnp.float32)
    chosen = jnp.take_along_axis(jax.nn.softmax(outputs), batch["y"][:, None], axis=1)[:, 0]
    return chosen * weight, weight


TASK = fs.tasks.classification(fs.models.linear(classes=CLASSES))
TASK = TASK._replace(metrics={**TASK.metrics, "confidence": confidence})
SGD = optax.sgd(0.3)
LOCAL = fs.LocalWork(epochs=2, batch_size=4, shuffle=False)


def make_sim(algorithm=None, **changes) -> fs.Simulation:
    arguments = {"cohort": fs.cohorts.uniform(4), "local": LOCAL, "engine": fs.engines.lanes(2)} | changes
    return fs.Simulation(
        fs.algorithms.fedavg(TASK, SGD) if algorithm is None else algorithm, TRAIN, **arguments
    )


def trained(sim: fs.Simulation, rounds: int = 2) -> fs.SimState:
    return sim.run(sim.init(seed=0), rounds=rounds)[0]


@pytest.fixture(scope="module")
def sim() -> fs.Simulation:
    return make_sim()


@pytest.fixture(scope="module")
def state(sim) -> fs.SimState:
    return trained(sim)


def client_batches(client: int, local: fs.LocalWork = LOCAL) -> dict[str, np.ndarray]:
    """A client's batches in the order of storage, the last of an epoch padded with zeros."""
    columns, size = TRAIN.client(client), int(SIZES[client])
    steps = -(-size // local.batch_size)
    room = steps * local.batch_size

    def cut(rows):
        rows = np.concatenate([rows, np.zeros((room - size, *rows.shape[1:]), rows.dtype)])
        return np.tile(
            rows.reshape(steps, local.batch_size, *rows.shape[1:]), (local.epochs, *[1] * rows.ndim)
        )

    return {name: cut(rows) for name, rows in columns.items()} | {"mask": cut(np.ones(size, bool))}


def moved(variables: fs.Variables, delta: fs.Delta) -> fs.Variables:
    return variables._replace(params=jax.tree.map(jnp.add, variables.params, delta.params))


def assert_evaluates(evaluation: fs.Evaluation, models) -> None:
    """Each client's numbers are those of its model on its test data, and the means follow from them."""
    for client, model in enumerate(models):
        if TEST_SIZES[client] == 0:
            assert all(np.isnan(values[client]) for values in evaluation.per_client.values())
            continue
        alone = fs.evaluate(TASK, model, TEST.select([client]))
        for name, value in alone.examples.items():
            np.testing.assert_allclose(evaluation.per_client[name][client], value, rtol=1e-4, atol=1e-6)
    for name, values in evaluation.per_client.items():
        assert evaluation.clients[name]["mean"] == pytest.approx(np.nanmean(values))
    assert evaluation.num_examples == TEST_SIZES.sum()


def assert_same(a: fs.Personalised, b: fs.Personalised, rtol=1e-4) -> None:
    assert a.clients.tolist() == b.clients.tolist()
    for one, other in ((a.before, b.before), (a.after, b.after)):
        for name in one.per_client.keys() | other.per_client.keys():
            np.testing.assert_allclose(one.per_client[name], other.per_client[name], rtol=rtol, atol=1e-6)
        for name in one.examples:
            assert one.examples[name] == pytest.approx(other.examples[name], rel=rtol, nan_ok=True)


# --- against plain loops ---


def test_it_is_a_plain_loop_over_the_clients(sim, state):
    """A client without training examples keeps the global model, one without test examples is left out."""
    variables, rule = state.server.variables, fs.rules.local_sgd(TASK, SGD)
    models = [
        moved(variables, fs.rules.run(rule, variables, client_batches(client), jax.random.key(0)))
        if SIZES[client]
        else variables
        for client in range(len(SIZES))
    ]
    result = sim.personalised(state, TEST)
    assert_evaluates(result.before, [variables] * len(SIZES))
    assert_evaluates(result.after, models)
    assert result.gain["loss"][2] == 0 and np.isnan(result.gain["loss"][1])
    assert set(result.after.examples) == {"accuracy", "confidence", "loss"}


def test_before_is_the_global_model(sim, state):
    before, whole = sim.personalised(state, TEST).before, sim.evaluate(state, TEST)
    assert before.num_examples == whole.num_examples
    for name, value in whole.examples.items():
        assert before.examples[name] == pytest.approx(value, rel=1e-5)
        for over, number in whole.clients[name].items():
            assert before.clients[name][over] == pytest.approx(number, rel=1e-3)


def test_scaffold_reads_controls_and_leaves_them():
    sim = make_sim(fs.algorithms.scaffold(TASK, 0.3), cohort=fs.cohorts.fixed([0, 3, 5]))
    state = trained(sim)
    kept = jax.tree.map(lambda x: np.array(x), state.clients)
    assert any(np.any(x) for x in jax.tree.leaves(kept.states)), "the test wants controls that are not zero"
    variables, rule = state.server.variables, fs.rules.scaffold(TASK, 0.3)
    broadcast = fs.rules.ScaffoldBroadcast(variables, state.server.control)
    models = []
    for client in range(len(SIZES)):
        control = jax.tree.map(lambda x, c=client: x[c], state.clients.states[0])
        if SIZES[client] == 0:
            models.append(variables)
            continue
        update, _, _ = fs.rules.run_with_state(
            rule, broadcast, control, client_batches(client), jax.random.key(0)
        )
        models.append(moved(variables, update.delta))
    assert_evaluates(sim.personalised(state, TEST).after, models)
    jax.tree.map(np.testing.assert_array_equal, kept, state.clients)


def test_ifca_starts_from_the_model_that_fits():
    sim = make_sim(fs.algorithms.ifca(TASK, SGD, models=3))
    state = trained(sim)
    all_models = state.server.variables
    candidates = [
        all_models._replace(params=jax.tree.map(lambda x, i=i: x[i], all_models.params)) for i in range(3)
    ]
    chosen, models = [], []
    for client in range(len(SIZES)):
        if SIZES[client] == 0:
            losses = [0.0, 0.0, 0.0]
        else:
            losses = [fs.evaluate(TASK, m, TRAIN.select([client])).examples["loss"] for m in candidates]
        start = candidates[int(np.argmin(losses))]
        chosen.append(start)
        rule = fs.rules.local_sgd(TASK, SGD)
        models.append(
            moved(start, fs.rules.run(rule, start, client_batches(client), jax.random.key(0)))
            if SIZES[client]
            else start
        )
    result = sim.personalised(state, TEST)
    assert_evaluates(result.before, chosen)
    assert_evaluates(result.after, models)


def test_a_rule_that_sends_a_delta_needs_no_more():
    """Without ``model`` the end point is the global model plus what the client sends."""
    with_model = make_sim()
    (stage,) = with_model.algorithm.stages
    bare = with_model.algorithm._replace(stages=(stage._replace(client=stage.client._replace(model=None)),))
    sim, state = make_sim(bare), with_model.init(seed=0)
    assert_same(sim.personalised(state, TEST), with_model.personalised(state, TEST))


def test_an_algorithm_with_models_of_its_clients_own_is_asked():
    """``Algorithm.personal`` of the client's state before and after."""
    whole = fs.algorithms.fedavg(TASK, SGD)
    (stage,) = whole.stages
    rule = stage.client

    def finish(broadcast, work, state, ctx):
        update, _, measured = rule.finish(broadcast, work, (), ctx)
        return update, jax.tree.map(lambda x: x + 1, work.params), measured

    keeping = fs.ClientRule(
        lambda broadcast: jax.tree.map(jnp.zeros_like, broadcast.params),
        lambda broadcast, state, ctx: rule.begin(broadcast, (), ctx),
        rule.step,
        finish,
    )
    sim = make_sim(
        whole._replace(
            stages=(stage._replace(client=keeping),),
            personal=lambda server, state: server.variables._replace(params=state),
        )
    )
    state = sim.init(seed=0)
    plain = make_sim()
    result, own = sim.personalised(state, TEST), plain.personalised(plain.init(seed=0), TEST)
    zero = state.server.variables._replace(params=jax.tree.map(jnp.zeros_like, state.server.variables.params))
    assert_evaluates(result.before, [zero] * len(SIZES))
    # One more on every weight moves all logits of an example alike, which no metric here sees.
    np.testing.assert_allclose(result.after.per_client["loss"], own.after.per_client["loss"], rtol=1e-4)


def test_groups_have_rules_of_their_own():
    whole = fs.algorithms.fedavg(TASK, SGD)
    (stage,) = whole.stages
    rules = {"still": fs.rules.local_sgd(TASK, optax.sgd(0.0)), "moving": stage.client}
    groups = ["still" if client % 2 else "moving" for client in range(len(SIZES))]
    sim = make_sim(whole._replace(stages=(stage._replace(client=rules),)), groups=groups)
    state = sim.init(seed=0)
    alone = make_sim()
    result, plain = (
        sim.personalised(state, TEST, block_size=2),
        alone.personalised(alone.init(seed=0), TEST),
    )
    odd = np.arange(len(SIZES)) % 2 == 1
    loss = result.after.per_client["loss"]
    np.testing.assert_allclose(loss[odd], plain.before.per_client["loss"][odd], rtol=1e-5)
    np.testing.assert_allclose(loss[~odd], plain.after.per_client["loss"][~odd], rtol=1e-4)


def test_fedsgd_has_nothing_to_gain():
    sim = make_sim(fs.algorithms.fedsgd(TASK))
    gain = sim.personalised(sim.init(seed=0), TEST).gain["loss"]
    assert not np.any(gain[TEST_SIZES > 0])


# --- what must not matter, and what must ---


def odd_rows(generator: np.random.Generator, size: int) -> np.ndarray:
    return generator.integers(0, size, (int(generator.integers(1, 4)), 3))


@pytest.mark.parametrize(
    "local",
    [fs.LocalWork(epochs=2, batch_size=4), fs.LocalWork(batch_size=3, max_steps=3, rows=odd_rows)],
    ids=["shuffled", "explicit rows"],
)
def test_blocks_do_not_matter(sim, state, local):
    """Nor does the company: a client alone is what it is among all."""
    whole = sim.personalised(state, TEST, local=local, block_size=7)
    assert_same(sim.personalised(state, TEST, local=local, block_size=1), whole)
    assert_same(sim.personalised(state, TEST, local=local, block_size=3, batch_size=2), whole)
    some = sim.personalised(state, TEST, local=local, clients=[5, 0])
    assert some.clients.tolist() == [5, 0]
    for name, values in some.after.per_client.items():
        np.testing.assert_allclose(values, whole.after.per_client[name][[5, 0]], rtol=1e-4)


def test_the_state_decides_the_order_of_examples(sim, state):
    local = fs.LocalWork(epochs=3, batch_size=2)
    loss = lambda s: sim.personalised(s, TEST, local=local).after.per_client["loss"]  # noqa: E731
    np.testing.assert_array_equal(loss(state), loss(state))
    later = fs.SimState(state.server, state.clients, state.aggregate, state.round + 1, state.key)
    assert not np.array_equal(loss(later), loss(state), equal_nan=True)


def test_more_local_work_moves_further(sim, state):
    long = sim.personalised(state, TEST, local=fs.LocalWork(epochs=30, batch_size=4))
    short = sim.personalised(state, TEST, local=fs.LocalWork(epochs=1, batch_size=4, max_steps=1))
    still = lambda result: np.nanmean(np.abs(result.gain["loss"]))  # noqa: E731
    assert still(long) > still(short) > 0


def test_engines_agree(sim, state):
    for engine in (fs.engines.sequential(), fs.engines.sharded(fs.engines.client_mesh(1), lanes=2)):
        assert_same(make_sim(engine=engine).personalised(state, TEST), sim.personalised(state, TEST))


def test_a_program_is_compiled_once(sim, state):
    sim.personalised(state, TEST)
    (program,) = (p for (local, *_), p in sim._personalisers.items() if local == LOCAL)
    before = program._blocks[0]._cache_size()
    sim.personalised(trained(sim, 1), TEST)
    assert program._blocks[0]._cache_size() == before


def test_unseen_clients_are_personalised_in_a_simulation_of_theirs(sim, state):
    parts = fs.data.holdout_clients(fs.data.Federated(TRAIN, TEST, "toy"), fraction=0.5, seed=0)
    theirs = fs.Simulation(sim.algorithm, parts[1].train, cohort=fs.cohorts.all_clients(), local=LOCAL)
    result = theirs.personalised(theirs.init(variables=state.server.variables), parts[1].test)
    places = TRAIN.positions(parts[1].train.ids)
    expected = sim.personalised(state, TEST).after.per_client["loss"][places]
    np.testing.assert_allclose(result.after.per_client["loss"], expected, rtol=1e-4)


# --- edges ---


def test_a_single_client(sim, state):
    result = sim.personalised(state, TEST, clients=["client 3"])
    over = result.after.clients["loss"]
    assert result.after.num_examples == 2 and over["std"] == 0 and over["jain"] == pytest.approx(1)
    assert over["mean"] == over["worst_decile"] == over["best_decile"] == result.after.examples["loss"]


def test_a_state_of_rounds_without_anybody():
    nobody = fs.cohorts.uniform(1)._replace(
        sample=lambda generator, round_, population: np.zeros(0, np.int64)
    )
    sim = make_sim(cohort=nobody)
    assert_same(sim.personalised(trained(sim), TEST), sim.personalised(trained(sim), TEST, block_size=2))


def test_gain_is_above_zero_where_it_helped(sim, state):
    result = sim.personalised(state, TEST)
    there = TEST_SIZES > 0
    before, after = result.before.per_client, result.after.per_client
    np.testing.assert_array_equal(result.gain["loss"][there], (before["loss"] - after["loss"])[there])
    np.testing.assert_array_equal(
        result.gain["accuracy"][there], (after["accuracy"] - before["accuracy"])[there]
    )


def test_it_prints_a_table(sim, state):
    text = str(sim.personalised(state, TEST))
    assert "mean gain" in text and "confidence" in text and "7 clients, 18 examples" in text


def heterofl() -> fs.Simulation:
    def mlp(width: int) -> fs.Task:
        return fs.tasks.classification(fs.models.mlp(CLASSES, hidden=(width,)), sample_input=(1, FEATURES))

    algorithm = fs.algorithms.heterofl({"wide": mlp(4), "narrow": mlp(2)}, SGD)
    return make_sim(algorithm, groups=["wide"] * 4 + ["narrow"] * 3)


def test_an_algorithm_that_does_not_say_what_clients_have_is_refused():
    sim = heterofl()
    with pytest.raises(
        TypeError,
        match=r"heterofl: its clients send Delta with 'coverage' beside it.*expected a Delta of the global model",
    ):
        sim.personalised(sim.init(seed=0), TEST)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"test": TEST.select([0, 1])}, ValueError, "test has 2 clients, the training data 7"),
        (
            {"test": TEST.select([0, 2, 1, 3, 4, 5, 6])},
            ValueError,
            r"client 1 of test is 'client 2'.*'client 1'",
        ),
        ({"test": make_data(TEST_SIZES, ids=range(7))}, ValueError, "client 0 of test is 0, of the training"),
        ({"test": TEST.columns}, TypeError, "expected ClientData"),
        ({"clients": []}, ValueError, "clients names no client"),
        ({"clients": [1]}, ValueError, "none of the 1 clients has a test example"),
        ({"clients": [0, 0]}, ValueError, "names client 0 more than once"),
        ({"clients": [7]}, IndexError, "client 7 is out of range"),
        ({"local": 3}, TypeError, "local is int, expected LocalWork"),
        ({"block_size": 0}, ValueError, "block_size is 0"),
        ({"batch_size": 0}, ValueError, "batch_size is 0"),
    ],
)
def test_bad_arguments_are_refused(sim, state, arguments, error, message):
    with pytest.raises(error, match=message):
        sim.personalised(state, **{"test": TEST} | arguments)
