"""Plain SGD whose wide dense layers are kept as a sum of outer products: the same as local_sgd."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import fedjax_sim as fs

KERNEL = "Dense_0/kernel"


class Small(nn.Module):
    """A convolution, a dense layer that is wide for it, dropout and another dense layer; in a jitted function."""

    jitted: bool = False

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.max_pool(nn.relu(nn.Conv(4, (3, 3))(x)), (2, 2), strides=(2, 2))
        x = x.reshape(x.shape[0], -1)
        x = (nn.jit(nn.Dense)(16) if self.jitted else nn.Dense(16, name="Dense_0"))(x)
        x = nn.Dropout(0.3, deterministic=not train)(nn.relu(x))
        return nn.Dense(3, name="Dense_1")(x)


def clients(sizes=(7, 5, 8, 1)):
    generator = np.random.default_rng(0)
    total = sum(sizes)
    columns = {
        "x": generator.normal(size=(total, 6, 6, 1)).astype(np.float32),
        "y": generator.integers(0, 3, total).astype(np.int32),
    }
    return fs.ClientData(columns, np.cumsum([0, *sizes]), list(range(len(sizes))))


def trained(task, rule, engine, rounds=3, **local):
    mean = fs.aggregation.mean(over="examples")
    algorithm = fs.algorithms.from_rule("sgd", task, rule, optax.sgd(1.0), mean)
    work = fs.LocalWork(**{"epochs": 2, "batch_size": 3, **local})
    sim = fs.Simulation(algorithm, clients(), cohort=fs.cohorts.uniform(3), local=work, engine=engine)
    state, history = sim.run(sim.init(seed=1), rounds=rounds)
    return algorithm.params(state.server).params, history


@pytest.mark.parametrize(
    ("engine", "layers"),
    [
        (fs.engines.sequential(), [KERNEL]),
        (fs.engines.lanes(1), [KERNEL]),
        (fs.engines.lanes(3, finish="masked"), [KERNEL, "Dense_1/kernel"]),
    ],
    ids=str,
)
def test_it_trains_as_local_sgd_does(engine, layers):
    """Over rounds, with clients of other lengths than the factors have room for, a short last batch, and dropout."""
    task = fs.tasks.classification(Small(), sample_input=jnp.zeros((1, 6, 6, 1)))
    rule = fs.rules.factored_sgd(task, 0.2, layers, steps=8, batch_size=3)
    actual, measured = trained(task, rule, engine)
    expected, plain = trained(task, fs.rules.local_sgd(task, optax.sgd(0.2)), engine)
    moved = [float(jnp.linalg.norm(x)) for x in jax.tree.leaves(expected)]
    assert min(moved) > 0
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=2e-6)
    for name in plain.metrics:
        np.testing.assert_allclose(measured.metrics[name], plain.metrics[name], rtol=1e-4)


@pytest.mark.parametrize("precision", [{"compute": "bfloat16"}, {"products": "highest"}], ids=str)
def test_it_keeps_the_precision_of_the_task(precision):
    task = fs.tasks.with_precision(
        fs.tasks.classification(Small(), sample_input=jnp.zeros((1, 6, 6, 1))), **precision
    )
    rule = fs.rules.factored_sgd(task, 0.02, [KERNEL], steps=8, batch_size=3)
    plain = fs.rules.local_sgd(task, optax.sgd(0.02))
    (actual, _), (expected, _) = (
        trained(task, r, fs.engines.lanes(2), rounds=1, max_steps=2) for r in (rule, plain)
    )
    start = task.init(fs._src.keys.fold(jax.random.key(1), fs._src.keys.INIT)).params
    near = 0.1 if "compute" in precision else 1e-3
    for one, other, before in zip(*map(jax.tree.leaves, (actual, expected, start)), strict=True):
        np.testing.assert_allclose(one, other, atol=near * float(jnp.max(jnp.abs(other - before))))


def test_a_layer_inside_a_jitted_function():
    task = fs.tasks.classification(Small(jitted=True), sample_input=jnp.zeros((1, 6, 6, 1)))
    variables = task.init(jax.random.key(0))
    (wide,) = (name for name in variables.params if name not in ("Conv_0", "Dense_1"))
    batches = {"x": jnp.ones((2, 3, 6, 6, 1)), "y": jnp.zeros((2, 3), int)}
    rule = fs.rules.factored_sgd(task, 0.2, [f"{wide}/kernel"], steps=2, batch_size=3)
    plain = fs.rules.local_sgd(task, optax.sgd(0.2))
    one, other = (fs.rules.run(r, variables, batches, jax.random.key(1)) for r in (rule, plain))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_no_client_has_the_wide_layer_in_its_working_state():
    task = fs.tasks.classification(fs.models.cifar10_cnn(), sample_input=jnp.zeros((1, 32, 32, 3)))
    rule = fs.rules.factored_sgd(task, 0.1, [KERNEL], steps=5, batch_size=10)
    variables = jax.eval_shape(task.init, jax.random.key(0))
    context = fs.rules._run.context(jax.random.key(0), 50, 5)
    work = jax.eval_shape(rule.begin, variables, (), context)
    assert sum(leaf.size for leaf in jax.tree.leaves(work)) < 0.5 * fs.models.count_parameters(
        variables.params
    )


class Tied(nn.Module):
    """Uses a dense layer's weights twice."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        layer = nn.Dense(4)
        return layer(layer(x))


class Penalised(nn.Module):
    """Uses a dense layer's weights in a sum, too."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        kernel = self.param("kernel", nn.initializers.ones, (4, 3))
        return x @ kernel + kernel.sum()


class Gate(nn.Module):
    """A dense layer over one row for the whole batch, which would fit if nobody looked."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        row = self.param("row", nn.initializers.ones, (5,))
        return nn.Dense(3)(x * nn.Dense(4, name="Gate")(row[None]))


class Sequences(nn.Module):
    """A dense layer over every place of a sequence."""

    @nn.compact
    def __call__(self, x, *, train: bool):
        return nn.Dense(3)(x).sum(1)


BATCHES = {"x": jnp.ones((2, 3, 4)), "y": jnp.zeros((2, 3), int)}
FLAT = jnp.zeros((1, 4))
LINEAR = fs.models.linear(3)


@pytest.mark.parametrize(
    ("module", "layers", "batches", "sample", "error", "says"),
    [
        (LINEAR, ["Dense_9/kernel"], BATCHES, FLAT, ValueError, r"'Dense_9/kernel', expected .* \['Dense_0/kernel'\]"),
        (LINEAR, ["Dense_0/bias"], BATCHES, FLAT, ValueError, "layers has 'Dense_0/bias'"),
        (Tied(), [KERNEL], BATCHES, FLAT, TypeError, "uses 2 times, expected once"),
        (Penalised(), ["kernel"], BATCHES, FLAT, TypeError, "reduce_sum, expected rows"),
        (
            Sequences(), [KERNEL], {"x": jnp.ones((2, 3, 5, 4)), "y": jnp.zeros((2, 3), int)}, jnp.zeros((1, 5, 4)),
            TypeError, "dot_general, expected rows",
        ),
        (Gate(), ["Gate/kernel"], BATCHES, FLAT, TypeError, r"1 row\(s\) where the batch has 3"),
        (LINEAR, [KERNEL], jax.tree.map(lambda x: x[:, :2], BATCHES), FLAT, ValueError, "batches of 3 rows"),
        (LINEAR, [KERNEL], jax.tree.map(lambda x: jnp.repeat(x, 2, axis=0), BATCHES), FLAT, ValueError, "at most 2"),
    ],
)  # fmt: skip
def test_what_it_refuses(module, layers, batches, sample, error, says):
    task = fs.tasks.classification(module, sample_input=sample)
    rule = fs.rules.factored_sgd(task, 0.1, layers, steps=2, batch_size=3)
    with pytest.raises(error, match=says):
        fs.rules.run(rule, task.init(jax.random.key(0)), batches, jax.random.key(0))


def test_arguments_are_checked():
    task = fs.tasks.classification(LINEAR, sample_input=FLAT)
    with pytest.raises(ValueError, match="learning_rate"):
        fs.rules.factored_sgd(task, -1.0, [KERNEL], steps=2, batch_size=3)
    with pytest.raises(ValueError, match="layers is empty"):
        fs.rules.factored_sgd(task, 0.1, [], steps=2, batch_size=3)
    one = fs.rules.factored_sgd(task, 0.1, KERNEL, steps=2, batch_size=3)
    fs.rules.run(one, task.init(jax.random.key(0)), BATCHES, jax.random.key(0))


def simulation(steps, **local):
    task = fs.tasks.classification(LINEAR, sample_input=jnp.zeros((1, 6, 6, 1)))
    rule = fs.rules.factored_sgd(task, 0.1, KERNEL, steps=steps, batch_size=3)
    algorithm = fs.algorithms.from_rule(
        "sgd", task, rule, optax.sgd(1.0), fs.aggregation.mean(over="examples")
    )
    work = fs.LocalWork(**{"epochs": 1, "batch_size": 3, **local})
    return fs.Simulation(algorithm, clients(), cohort=fs.cohorts.uniform(2), local=work)


def test_clients_who_take_more_steps_than_there_is_room_for_are_refused():
    """Before the first round, in a sweep, and where they train for themselves."""
    with pytest.raises(ValueError, match=r"takes 3 local steps, .* at most 2: give it steps=3"):
        simulation(steps=2)
    simulation(steps=2, max_steps=2)
    sim = simulation(steps=3)
    state = sim.init(seed=0)
    sim.personalised(state, clients(), local=fs.LocalWork(epochs=1, batch_size=3))
    with pytest.raises(ValueError, match=r"takes 6 local steps, .* at most 3"):
        sim.personalised(state, clients(), local=fs.LocalWork(epochs=2, batch_size=3))
    with pytest.raises(ValueError, match=r"takes 3 local steps, .* at most 1"):
        smaller = lambda rate: simulation(1, max_steps=1).algorithm  # noqa: E731
        sim.sweep([0, 1], 1, algorithm=smaller, hyperparameters={"rate": [0.1, 0.2]})


def test_it_personalises_as_local_sgd_does():
    sim = simulation(steps=6)
    plain = fs.rules.local_sgd(sim.algorithm.task, optax.sgd(0.1))
    mean = fs.aggregation.mean(over="examples")
    other = fs.Simulation(
        fs.algorithms.from_rule("sgd", sim.algorithm.task, plain, optax.sgd(1.0), mean), clients(),
        cohort=sim.cohort, local=sim.local,
    )  # fmt: skip
    work = fs.LocalWork(epochs=2, batch_size=3)
    one, two = (s.personalised(s.init(seed=0), clients(), local=work) for s in (sim, other))
    for name, values in one.after.per_client.items():
        np.testing.assert_allclose(values, two.after.per_client[name], rtol=1e-5)


def test_wrappers_know_how_many_steps_there_is_room_for():
    task = fs.tasks.classification(LINEAR, sample_input=FLAT)
    rule = fs.rules.factored_sgd(task, 0.1, KERNEL, steps=7, batch_size=3)
    assert fs.rules.train_chosen(rule).most_steps == 7
    narrow = task.init(jax.random.key(0))
    assert fs.rules.sliced(rule, narrow.params).most_steps == 7
