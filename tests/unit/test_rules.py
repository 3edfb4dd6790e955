"""Client rules alone: ``fs.rules.run`` equals a hand-written loop, under ``jit`` and ``vmap``, with masks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim._src import keys

FEATURES, STEPS, BATCH = 3, 4, 5
RATE = 0.1
KEY = jax.random.key(11)

# Least squares: the loss of an example is (w x - y)^2 / 2.
TASK = fs.Task(
    init=lambda key, sample=None: fs.Variables(jax.random.normal(key, (FEATURES,))),
    apply=lambda variables, batch, key, *, train: (batch["x"] @ variables.params, variables.stats),
    loss=lambda outputs, batch: 0.5 * jnp.square(outputs - batch["y"]),
)
VARIABLES = fs.Variables(jnp.array([0.5, -1.0, 2.0]))


def make_batches(seed=0, mask=None) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(STEPS, BATCH, FEATURES)).astype(np.float32)
    y = generator.normal(size=(STEPS, BATCH)).astype(np.float32)
    return {"x": x, "y": y} if mask is None else {"x": x, "y": y, "mask": np.asarray(mask)}


BATCHES = make_batches()
RAGGED = np.arange(BATCH) < np.array([5, 2, 0, 1])[:, None]


def gradients(batches):
    """Per step: a function from parameters to the mean gradient over the rows that exist."""
    masks = batches.get("mask", np.ones((STEPS, BATCH), bool))
    for x, y, mask in zip(batches["x"], batches["y"], masks, strict=True):
        x, y = x[mask].astype(np.float64), y[mask].astype(np.float64)
        yield lambda w, x=x, y=y: x.T @ (x @ w - y) / max(len(y), 1)


def by_hand(batches, *, momentum=0.0, mu=0.0) -> np.ndarray:
    start = w = np.asarray(VARIABLES.params, np.float64)
    velocity = 0
    for grad in gradients(batches):
        velocity = momentum * velocity + grad(w) + mu * (w - start)
        w = w - RATE * velocity
    return w - start


RULES = {
    "sgd": (fs.rules.local_sgd(TASK, optax.sgd(RATE)), {}),
    "momentum": (fs.rules.local_sgd(TASK, optax.sgd(RATE, momentum=0.9)), {"momentum": 0.9}),
    "fedprox": (fs.rules.fedprox(TASK, optax.sgd(RATE), mu=0.7), {"mu": 0.7}),
}


@pytest.mark.parametrize("mask", [None, RAGGED], ids=["full", "ragged"])
@pytest.mark.parametrize("name", RULES)
def test_run_equals_a_loop_by_hand(name, mask):
    """A batch without a row has gradient zero; a partial one the mean over its rows."""
    rule, options = RULES[name]
    batches = make_batches(mask=mask)
    update = fs.rules.run(rule, VARIABLES, batches, KEY)
    np.testing.assert_allclose(update.params, by_hand(batches, **options), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_run_under_jit_and_vmap_is_run(name):
    rule, _ = RULES[name]
    clients = [make_batches(seed) for seed in range(3)]
    stacked = {key: np.stack([c[key] for c in clients]) for key in clients[0]}
    one = lambda batches, key: fs.rules.run(rule, VARIABLES, batches, key)  # noqa: E731
    together = jax.jit(jax.vmap(one))(stacked, jax.random.split(KEY, 3))
    for index, batches in enumerate(clients):
        np.testing.assert_allclose(together.params[index], one(batches, KEY).params, rtol=1e-5, atol=1e-6)


def test_run_differentiates():
    """The update's derivative with respect to the start, against a difference quotient."""
    rule, _ = RULES["sgd"]
    moved = lambda t: fs.rules.run(rule, fs.Variables(VARIABLES.params + t), BATCHES, KEY).params[0]  # noqa: E731
    numeric = (moved(0.5) - moved(-0.5)) / 1.0  # the loop is linear in its start
    np.testing.assert_allclose(jax.grad(moved)(0.0), numeric, rtol=1e-4)


def test_masked_rows_are_inert():
    """Whatever stands in them: the loss is masked before it is summed. (Engines zero such rows, NaN included.)"""
    rule, _ = RULES["sgd"]
    clean = make_batches(mask=RAGGED)
    dirty = {
        **clean,
        "x": np.where(RAGGED[..., None], clean["x"], 1e9),
        "y": np.where(RAGGED, clean["y"], -7),
    }
    first, second = (fs.rules.run(rule, VARIABLES, batches, KEY).params for batches in (clean, dirty))
    np.testing.assert_array_equal(first, second)


def test_several_batches_a_step_are_one_large_batch():
    """Accumulation: ``[steps, batches, batch]`` gives what ``[steps, batches * batch]`` gives, partial rows included."""
    rule, _ = RULES["momentum"]
    flat = {name: column[None].repeat(2, 0) for name, column in make_batches(mask=RAGGED).items()}
    large = {name: column.reshape(2, STEPS * BATCH, *column.shape[3:]) for name, column in flat.items()}
    accumulated, _, measured = fs.rules.run_with_state(rule, VARIABLES, (), flat, KEY)
    expected, _, metrics = fs.rules.run_with_state(rule, VARIABLES, (), large, KEY)
    np.testing.assert_allclose(accumulated.params, expected.params, rtol=1e-5)
    np.testing.assert_allclose(measured["loss"].total, metrics["loss"].total, rtol=1e-5)
    assert float(measured["loss"].weight) == 2 * RAGGED.sum()


def test_metrics_are_sums_over_the_rows_that_exist():
    rule = fs.rules.local_sgd(TASK, optax.sgd(0.0))
    batches = make_batches(mask=RAGGED)
    _, _, measured = fs.rules.run_with_state(rule, VARIABLES, (), batches, KEY)
    losses = 0.5 * (batches["x"] @ np.asarray(VARIABLES.params) - batches["y"]) ** 2
    np.testing.assert_allclose(measured["loss"].total, losses[RAGGED].sum(), rtol=1e-5)
    assert float(measured["loss"].weight) == RAGGED.sum()


def test_full_gradient_is_minus_the_mean_over_all_rows():
    """However they are cut into batches."""
    rule = fs.rules.full_gradient(TASK)
    for mask in (None, RAGGED):
        batches = make_batches(mask=mask)
        keep = np.ones((STEPS, BATCH), bool) if mask is None else mask
        x, y = batches["x"][keep], batches["y"][keep]
        expected = -x.T @ (x @ np.asarray(VARIABLES.params) - y) / keep.sum()
        np.testing.assert_allclose(fs.rules.run(rule, VARIABLES, batches, KEY).params, expected, rtol=1e-5)


def test_scaffold_keeps_its_control_between_rounds():
    """Option II over two rounds, written out; the steps are those that the client took."""
    rule = fs.rules.scaffold(TASK, RATE)
    c, own = np.array([0.1, -0.2, 0.3]), np.zeros(3)
    state = rule.init(fs.rules.ScaffoldBroadcast(VARIABLES, jnp.zeros(3)))
    for round_ in range(2):
        batches = make_batches(round_)
        broadcast = fs.rules.ScaffoldBroadcast(VARIABLES, jnp.asarray(c, jnp.float32))
        update, state, _ = fs.rules.run_with_state(rule, broadcast, state, batches, KEY)
        x = y = np.asarray(VARIABLES.params, np.float64)
        for grad in gradients(batches):
            y = y - RATE * (grad(y) - own + c)
        new = own - c + (x - y) / (STEPS * RATE)
        np.testing.assert_allclose(update.delta.params, y - x, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(update.control, new - own, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state, new, rtol=1e-4, atol=1e-5)
        c, own = c + 0.3 * (new - own), new


def test_scaffold_without_a_step_keeps_its_control():
    rule = fs.rules.scaffold(TASK, RATE)
    empty = {"x": np.zeros((0, BATCH, FEATURES), np.float32), "y": np.zeros((0, BATCH), np.float32)}
    broadcast = fs.rules.ScaffoldBroadcast(VARIABLES, jnp.ones(3))
    update, state, _ = fs.rules.run_with_state(rule, broadcast, jnp.full(3, 2.0), empty, KEY)
    assert state.tolist() == [2.0] * 3
    assert update.control.tolist() == update.delta.params.tolist() == [0.0] * 3


def test_mime_steps_with_a_fixed_optimizer_state():
    """g(y) - g(x) + c through momentum whose trace stays the server's."""
    optimizer = optax.sgd(RATE, momentum=0.9)
    trace, c = np.array([1.0, 0.0, -1.0]), np.array([0.2, 0.1, 0.0])
    state = jax.tree.map(lambda x: jnp.asarray(trace, jnp.float32), optimizer.init(VARIABLES.params))
    broadcast = fs.rules.MimeBroadcast(VARIABLES, state, jnp.asarray(c, jnp.float32))
    update = fs.rules.run(fs.rules.mime(TASK, optimizer), broadcast, BATCHES, KEY)
    x = y = np.asarray(VARIABLES.params, np.float64)
    for grad in gradients(BATCHES):
        y = y - RATE * (grad(y) - grad(x) + c + 0.9 * trace)
    np.testing.assert_allclose(update.params, y - x, rtol=1e-5, atol=1e-6)


def test_sliced_trains_the_corner_and_sends_the_full_shape():
    rule = fs.rules.sliced(fs.rules.local_sgd(TASK, optax.sgd(RATE)), jax.ShapeDtypeStruct((2,), jnp.float32))
    narrow = {"x": BATCHES["x"][..., :2], "y": BATCHES["y"]}
    sent = fs.rules.run(rule, VARIABLES, narrow, KEY)
    inner = fs.rules.run(RULES["sgd"][0], fs.Variables(VARIABLES.params[:2]), narrow, KEY)
    np.testing.assert_allclose(sent.value.params, np.append(inner.params, 0.0), rtol=1e-6)
    assert sent.aux["coverage"].params.tolist() == [1.0, 1.0, 0.0]


def test_choose_model_remembers_the_best_and_sends_nothing():
    models = fs.Variables(jnp.stack([VARIABLES.params + 5, VARIABLES.params, VARIABLES.params - 5]))
    batches = {"x": BATCHES["x"], "y": BATCHES["x"] @ np.asarray(VARIABLES.params)}
    update, chosen, _ = fs.rules.run_with_state(
        fs.rules.choose_model(TASK), models, jnp.int32(0), batches, KEY
    )
    assert update == ()
    assert int(chosen) == 1


def test_a_model_whose_loss_is_nan_is_the_worst():
    """It does not win because argmin finds the NaN; where all are NaN, the first is as good as any."""
    nan, far, good = jnp.full(3, jnp.nan), VARIABLES.params + 5, VARIABLES.params
    batches = {"x": BATCHES["x"], "y": BATCHES["x"] @ np.asarray(VARIABLES.params)}
    for models, best in (([nan, far, good], 2), ([far, nan, nan], 0), ([nan, nan], 0)):
        rule, stacked = fs.rules.choose_model(TASK), fs.Variables(jnp.stack(models))
        assert int(fs.rules.run_with_state(rule, stacked, jnp.int32(0), batches, KEY)[1]) == best


def test_train_chosen_sends_the_update_in_its_models_place():
    rule, _ = RULES["sgd"]
    models = fs.Variables(jnp.stack([VARIABLES.params + 5, VARIABLES.params]))
    sent, chosen, _ = fs.rules.run_with_state(fs.rules.train_chosen(rule), models, jnp.int32(1), BATCHES, KEY)
    assert (int(chosen), sent.aux["members"].tolist()) == (1, [0.0, 1.0])
    assert not sent.value.params[0].any()
    np.testing.assert_allclose(sent.value.params[1], by_hand(BATCHES), rtol=1e-5, atol=1e-6)


def test_run_is_a_turn_of_an_engine():
    """With the client's key of the round: the same update, also where the model draws random numbers."""

    def noisy(variables, batch, key, *, train):
        return batch["x"] @ variables.params + jax.random.normal(key, batch["y"].shape), variables.stats

    task = TASK._replace(apply=noisy)
    columns = {"x": BATCHES["x"].reshape(-1, FEATURES), "y": BATCHES["y"].ravel()}
    data = fs.ClientData(columns, [0, 0, STEPS * BATCH], ["empty", "full"])
    sim = fs.Simulation(
        fs.algorithms.fedavg(task, optax.sgd(RATE)),
        data,
        cohort=fs.cohorts.fixed([1]),
        rounds_per_chunk=1,
        local=fs.LocalWork(batch_size=BATCH, shuffle=False),
        engine=fs.engines.sequential(),
    )
    state, _ = sim.run(sim.init(seed=0, variables=VARIABLES), rounds=1)
    key = keys.client_key(keys.root_key(0), 0, 0, 1, 0)
    update = fs.rules.run(fs.rules.local_sgd(task, optax.sgd(RATE)), VARIABLES, BATCHES, key)
    np.testing.assert_allclose(state.server.variables.params, VARIABLES.params + update.params, rtol=1e-5)


def test_batches_that_disagree_are_refused():
    with pytest.raises(
        ValueError, match=r"leading axes .* expected the same \[steps, batch\] for every column"
    ):
        fs.rules.run(RULES["sgd"][0], VARIABLES, {"x": BATCHES["x"], "y": BATCHES["y"][:2]}, KEY)


def test_a_loss_that_is_a_mean_is_refused():
    task = TASK._replace(loss=lambda outputs, batch: jnp.mean(outputs))
    with pytest.raises(ValueError, match=r"loss has shape \(\), expected \(5,\): one value per example"):
        fs.rules.run(fs.rules.local_sgd(task, optax.sgd(RATE)), VARIABLES, BATCHES, KEY)


def test_an_rbg_key_is_refused():
    with pytest.raises(TypeError, match="threefry2x32"):
        fs.rules.run(RULES["sgd"][0], VARIABLES, BATCHES, jax.random.key(0, impl="rbg"))


# --- over a plain loss function ------------------------------------------------------------------------------


def squared_errors(params, batch):
    return 0.5 * jnp.square(batch["x"] @ params - batch["y"])


PLAIN = {
    "sgd": lambda task: fs.rules.local_sgd(task, optax.sgd(RATE)),
    "momentum": lambda task: fs.rules.local_sgd(task, optax.sgd(RATE, momentum=0.9)),
    "fedprox": lambda task: fs.rules.fedprox(task, optax.sgd(RATE), mu=0.7),
    "full_gradient": fs.rules.full_gradient,
}


@pytest.mark.parametrize("name", PLAIN)
def test_a_rule_over_a_loss_function_is_the_rule_over_its_task(name):
    batches = make_batches(mask=RAGGED)
    plain = fs.rules.run(PLAIN[name](squared_errors), VARIABLES.params, batches, KEY)
    np.testing.assert_array_equal(plain, fs.rules.run(PLAIN[name](TASK), VARIABLES, batches, KEY).params)


def test_a_loss_function_gives_one_loss_per_example():
    rule = fs.rules.local_sgd(lambda params, batch: jnp.mean(squared_errors(params, batch)), optax.sgd(RATE))
    with pytest.raises(ValueError, match="one value per example of the batch, not their mean"):
        fs.rules.run(rule, VARIABLES.params, BATCHES, KEY)


def test_what_is_neither_a_task_nor_a_function_is_refused():
    with pytest.raises(TypeError, match="task is dict, expected a Task, or a function"):
        fs.rules.local_sgd({}, optax.sgd(RATE))  # type: ignore[arg-type]


NEED_A_TASK = {
    "scaffold rule": lambda task: fs.rules.scaffold(task, 0.1),
    "mime rule": lambda task: fs.rules.mime(task, optax.sgd(0.1)),
    "choose_model": fs.rules.choose_model,
    "fedavg": lambda task: fs.algorithms.fedavg(task, optax.sgd(0.1)),
    "fedprox": lambda task: fs.algorithms.fedprox(task, optax.sgd(0.1), mu=0.1),
    "fedsgd": fs.algorithms.fedsgd,
    "scaffold": lambda task: fs.algorithms.scaffold(task, 0.1),
    "mime": lambda task: fs.algorithms.mime(task, optax.sgd(0.1), 0.1),
    "ifca": lambda task: fs.algorithms.ifca(task, optax.sgd(0.1), models=2),
    "heterofl": lambda task: fs.algorithms.heterofl({"whole": task}, optax.sgd(0.1)),
}


@pytest.mark.parametrize("name", NEED_A_TASK)
def test_a_module_is_no_task(name):
    """A flax module is callable, as a loss function is: it must not be taken for one."""
    with pytest.raises(TypeError, match=r"task is a MLP, expected a Task: wrap a flax module"):
        NEED_A_TASK[name](fs.models.mlp(2))
