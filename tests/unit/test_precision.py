"""The precision that a model computes with: chosen by ``with_precision``, carried by every product, and reported."""

from __future__ import annotations

import re
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import fedjax_sim as fs
from fedjax_sim import experiment, models, tasks
from fedjax_sim._src import forward
from fedjax_sim._src.types import StepContext
from fedjax_sim.checkpoint import CheckpointError
from fedjax_sim.engines._problem import example_client_context, groups
from fedjax_sim.rules._gradients import gradient
from fedjax_sim.tasks.precision import precision_of

KEY = jax.random.key(0)
IMAGES = {
    "x": jnp.arange(4 * 8 * 8, dtype=jnp.uint8).reshape(4, 8, 8, 1),
    "y": jnp.arange(4) % 10,
    "mask": jnp.array([True, True, True, False]),
}
TEXT = {
    "x": jnp.arange(24).reshape(4, 6) % 9,
    "y": jnp.arange(24).reshape(4, 6) % 9,
    "mask": jnp.ones(4, bool),
}


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5)(x.reshape(x.shape[0], -1))
        return nn.Dense(10)(x)


class NnxNormed(nnx.Module):
    def __init__(self, rngs):
        # Without a dtype, nnx widens what it normalises to the statistics' float32.
        self.norm = nnx.BatchNorm(64, momentum=0.5, dtype=jnp.bfloat16, rngs=rngs)
        self.dense = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.dense(self.norm(x.reshape(x.shape[0], -1)))


def images(model, **options) -> fs.Task:
    return tasks.classification(model, sample_input=jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.uint8), **options)


def text() -> fs.Task:
    model = models.char_lstm(vocabulary=9, embedding=4, hidden=8, layers=1)
    return tasks.classification(model, sample_input=jax.ShapeDtypeStruct((1, 6), jnp.int32))


class Product(NamedTuple):
    """A matrix product or a convolution of a lowered program."""

    kind: str
    precision: tuple[str, ...]
    dtypes: tuple[str, ...]


def products(function, *arguments) -> list[Product]:
    """All of a function, after every rewriting."""
    text = jax.jit(function).lower(*arguments).as_text()
    found = re.findall(
        r"stablehlo\.(dot_general|convolution)(.*) : \(tensor<([^>]*)>, tensor<([^>]*)>\) ->", text
    )
    return [
        Product(
            kind,
            tuple(re.findall(r"\b(DEFAULT|HIGH|HIGHEST)\b", settings)),
            tuple(t.split("x")[-1] for t in types),
        )
        for kind, settings, *types in found
    ]


def drawn(task: fs.Task) -> fs.Variables:
    """Specs of a task's first model."""
    return jax.eval_shape(task.init, KEY)


def of_gradient(task: fs.Task, batch, clients: int | None = None) -> list:
    """The products of a step's value and gradient, as rules take it; of several clients with weights of their own."""

    def grads(params, variables):
        return gradient(task, variables._replace(params=params), batch, KEY)[0]

    variables = drawn(task)
    if clients is None:
        return products(grads, variables.params, variables)
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((clients, *x.shape), x.dtype), variables.params)
    return products(jax.vmap(grads, in_axes=(0, None)), own, variables)


def dtypes(found: list[Product]) -> set[str]:
    return {dtype for product in found for dtype in product.dtypes}


def precisions(found: list[Product]) -> set[str]:
    return {each for product in found for each in product.precision}


def leaf_dtypes(tree) -> set[str]:
    return {str(leaf.dtype) for leaf in jax.tree.leaves(tree)}


# --- bfloat16 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [None, 3])
@pytest.mark.parametrize("model", [models.linear(10), models.cnn(classes=10)], ids=["linear", "cnn"])
def test_every_product_of_value_and_gradient_is_bfloat16(model, clients):
    """Scaled uint8 images included, which would make float32 of all that they meet."""
    found = of_gradient(tasks.with_precision(images(model), compute="bfloat16"), IMAGES, clients)
    assert len(found) >= 2 and dtypes(found) == {"bf16"}
    assert {product.kind for product in found} == {"dot_general"}, "convolutions are rewritten"
    assert dtypes(of_gradient(images(model), IMAGES, clients)) == {"f32"}


def test_a_text_model_computes_in_bfloat16():
    """The recurrence has a derivative of its own, with products that no other program has."""
    task = tasks.with_precision(text(), compute="bfloat16")
    assert dtypes(of_gradient(task, TEXT, 3)) == {"bf16"}
    variables = task.init(KEY)
    narrow, wide = (
        jax.jit(lambda v, task=task: gradient(task, v, TEXT, KEY)[::2])(variables) for task in (task, text())
    )
    assert leaf_dtypes(narrow) == {"float32"}
    for a, b in zip(jax.tree.leaves(narrow[0]), jax.tree.leaves(wide[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=0.03 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("train", [True, False])
def test_what_goes_in_and_comes_out(train):
    """The model sees bfloat16, except for whole numbers, masks and statistics; the caller sees float32."""
    seen = {}

    def apply(variables, batch, key, *, train):
        seen["variables"], seen["batch"] = variables, batch
        return {"a": batch["x"] @ variables.params["w"], "n": batch["n"]}, {"mean": variables.params["w"][0]}

    task = tasks.with_precision(
        fs.Task(lambda key, sample=None: variables, apply, lambda outputs, batch: outputs["a"][:, 0]),
        "bfloat16",
    )
    variables = fs.Variables(
        {"w": jnp.ones((2, 3))}, {"w": jnp.ones(3), "n": jnp.arange(2)}, {"mean": jnp.ones(3)}
    )
    batch = {"x": jnp.ones((4, 2)), "n": jnp.arange(4), "mask": jnp.ones(4, bool)}
    outputs, stats = task.apply(variables, batch, None, train=train)
    assert leaf_dtypes(seen["variables"].params) == {"bfloat16"}
    assert {name: str(x.dtype) for name, x in seen["variables"].frozen.items()} == {
        "w": "bfloat16",
        "n": "int32",
    }
    assert leaf_dtypes(seen["variables"].stats) == {"float32"}
    assert {name: str(x.dtype) for name, x in seen["batch"].items()} == {
        "x": "bfloat16",
        "n": "int32",
        "mask": "bool",
    }
    assert {name: str(x.dtype) for name, x in outputs.items()} == {"a": "float32", "n": "int32"}
    assert leaf_dtypes(stats) == {"float32"}


@pytest.mark.parametrize("module", [Normed(), NnxNormed], ids=["linen", "nnx"])
def test_batch_statistics_stay_float32(module):
    """And are those of float32, to the rounding of the inputs."""
    plain = images(module, batch_stats="averaged")
    narrow = tasks.with_precision(plain, compute="bfloat16")
    variables, batch = plain.init(KEY), IMAGES | {"mask": jnp.ones(4, bool)}
    expected = plain.apply(variables, batch, KEY, train=True)[1]
    outputs, stats = narrow.apply(variables, batch, KEY, train=True)
    assert leaf_dtypes((outputs, stats)) == {"float32"}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=0.01), stats, expected)
    assert dtypes(products(lambda v: narrow.apply(v, batch, KEY, train=True)[0], variables)) == {"bf16"}


@pytest.mark.parametrize("outside", ["trainable", "with_precision"])
def test_a_part_is_trained(outside):
    """Whichever is applied first; frozen parameters are kept in float32 and used in bfloat16."""
    plain = images(models.mlp(10, hidden=(6,)))
    task = (
        tasks.trainable(tasks.with_precision(plain, "bfloat16"), "^Dense_1/")
        if outside == "trainable"
        else tasks.with_precision(tasks.trainable(plain, "^Dense_1/"), "bfloat16")
    )
    variables = drawn(task)
    assert set(variables.params) == {"Dense_1"} and leaf_dtypes(variables) == {"float32"}
    assert dtypes(of_gradient(task, IMAGES)) == {"bf16"}
    assert leaf_dtypes(jax.eval_shape(lambda v: gradient(task, v, IMAGES, KEY), variables)) == {"float32"}


def test_parameters_that_are_narrow_can_compute_in_float32():
    task = images(models.linear(10))
    narrow = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), drawn(task))
    wide = tasks.with_precision(task, compute="float32")
    assert dtypes(products(lambda v: wide.apply(v, IMAGES, KEY, train=True)[0], narrow)) == {"f32"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of the checkpoints of the run in bfloat16."""
    return fs.Checkpoints(tmp_path_factory.mktemp("checkpoints") / "bfloat16")


@pytest.fixture(scope="module")
def trained(folder):
    """FedAdam on the digits, in float32 and in bfloat16: the simulation, its state and its history."""
    data = fs.data.load("digits", clients=20, alpha=0.5, seed=0)

    def run(checkpoints=None, **precision):
        task = tasks.with_precision(tasks.classification(models.mlp(10, hidden=(32,))), **precision)
        algorithm = fs.algorithms.fedadam(task, optax.sgd(0.1))
        sim = fs.Simulation(algorithm, data.train, cohort=fs.cohorts.uniform(8), rounds_per_chunk=20)
        options = {"evaluate_on": data.test, "checkpoints": checkpoints}
        return sim, *sim.run(sim.init(seed=0), 20, **options)

    return {"float32": run(), "bfloat16": run(folder, compute="bfloat16")}


def test_digits_are_learned_nearly_as_well(trained):
    accuracy = {name: history.last("accuracy").value for name, (_, _, history) in trained.items()}
    assert accuracy["float32"] > 0.8
    assert abs(accuracy["bfloat16"] - accuracy["float32"]) < 0.03


def test_state_stays_float32(trained):
    """The model, its server's moments, and what clients send, whose bytes are counted."""
    _, state, history = trained["bfloat16"]
    assert leaf_dtypes(state.server) <= {"float32", "int32"}
    assert history.costs.bytes_up == trained["float32"][2].costs.bytes_up


# --- products ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [None, 3])
@pytest.mark.parametrize("precision", ["default", "high", "highest"])
@pytest.mark.parametrize("task", [images(models.cnn(classes=10)), text()], ids=["cnn", "lstm"])
def test_every_product_carries_the_precision(task, precision, clients):
    batch = TEXT if "Embed_0" in drawn(task).params else IMAGES
    found = of_gradient(tasks.with_precision(task, products=precision), batch, clients)
    assert len(found) >= 6 and precisions(found) == {precision.upper()}


def test_what_is_not_set_is_what_jax_is_set_to():
    task = images(models.linear(10))
    assert tasks.with_precision(task) is task
    only = tasks.with_precision(task, compute="bfloat16")
    assert only.products is None
    with jax.default_matmul_precision("high"):
        assert "at high precision" in precision_of(only, drawn(only), IMAGES)
        highest = tasks.with_precision(only, products="highest")
        assert "at highest precision" in precision_of(highest, drawn(only), IMAGES)


@pytest.mark.parametrize("outside", [{"products": "default"}, {"compute": "bfloat16"}])
def test_the_innermost_precision_counts(outside):
    task = tasks.with_precision(tasks.with_precision(text(), products="highest"), **outside)
    assert precisions(of_gradient(task, TEXT)) == {"HIGHEST"}


def test_evaluation_computes_as_training_does():
    task = tasks.with_precision(images(models.cnn(classes=10)), "bfloat16", "highest")
    for apply in (task.apply, lambda *given, train: forward.apply(task, *given, train=train)):
        found = products(lambda v, a=apply: a(v, IMAGES, None, train=False)[0], drawn(task))
        assert dtypes(found) == {"bf16"}
        assert precisions(found) == {"HIGHEST"}


def a_step(rule: fs.ClientRule, broadcast):
    """A rule's step as a function, and specs of what it takes."""
    work = jax.eval_shape(lambda b: rule.begin(b, rule.init(b), example_client_context()), broadcast)
    zero = jnp.zeros((), jnp.int32)
    step = StepContext(KEY, zero, zero, jnp.zeros(()))
    return lambda broadcast, work, batch: rule.step(broadcast, work, batch, step), (broadcast, work, IMAGES)


@pytest.mark.parametrize("name", ["fedavg", "fedsgd", "fedprox", "scaffold", "mime", "ifca", "heterofl"])
def test_every_client_rule_computes_so(name):
    """In every stage and group; what it works on stays float32."""
    task, small = (
        tasks.with_precision(images(models.mlp(10, hidden=(width,))), "bfloat16", "highest")
        for width in (6, 3)
    )
    more: tuple = {
        "fedsgd": (), "fedprox": (optax.sgd(0.1), 0.5), "scaffold": (0.1,), "ifca": (optax.sgd(0.1), 3),
    }.get(name, (optax.sgd(0.1),))  # fmt: skip
    trained = {"wide": task, "narrow": small} if name == "heterofl" else task
    algorithm = getattr(fs.algorithms, name)(trained, *more)
    server = jax.eval_shape(algorithm.init, drawn(algorithm.task))
    for stage in algorithm.stages:
        for rule in groups(stage):
            step, given = a_step(rule, jax.eval_shape(stage.broadcast, server))
            found = products(step, *given)
            assert len(found) >= 2 and dtypes(found) == {"bf16"}
            assert precisions(found) == {"HIGHEST"}
            assert leaf_dtypes(jax.eval_shape(step, *given)) <= {"float32", "int32"}


def test_a_file_says_it():
    changes = ["model=cnn", "precision.compute=bfloat16", "precision.products=highest"]
    task = experiment.load(changes=changes).task()
    variables = jax.eval_shape(task.init, KEY, IMAGES)
    assert precision_of(task, variables, IMAGES) == (
        "float32 parameters, bfloat16 products at highest precision"
    )


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute": "float16"}, "compute is 'float16', expected one of 'float32', 'bfloat16'."),
        ({"products": "tf32"}, "products is 'tf32', expected one of 'default', 'high', 'highest'."),
    ],
)
def test_other_names_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tasks.with_precision(images(models.linear(10)), **options)


def test_a_module_is_no_task():
    with pytest.raises(TypeError, match="expected a Task: wrap a flax module"):
        tasks.with_precision(models.linear(10), "bfloat16")  # type: ignore[arg-type]


# --- what is reported ----------------------------------------------------------------------------------------


class Mixed(nn.Module):
    """A layer with a dtype of its own, which a wrapper does not know of."""

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(8, dtype=jnp.float16)(x.reshape(x.shape[0], -1))
        return nn.Dense(10, dtype=jnp.float32, precision="highest")(x)


def test_the_report_is_of_the_program_not_of_what_was_asked_for():
    task = tasks.with_precision(images(Mixed()), compute="bfloat16")
    assert precision_of(task, drawn(task), IMAGES) == (
        "float32 parameters, float16 products at default precision, float32 products at highest precision"
    )


def test_a_model_without_products():
    def apply(variables, batch, key, *, train):
        return batch["x"] * variables.params, ()

    task = fs.Task(lambda key, sample=None: fs.Variables(jnp.ones(())), apply, lambda outputs, batch: outputs)
    batch = {"x": jnp.ones(2), "mask": jnp.ones(2, bool)}
    assert precision_of(task, drawn(task), batch) == "float32 parameters, no products"


def test_every_run_says_what_it_computed_with(trained):
    said = {
        "float32": "float32 parameters, float32 products at default precision",
        "bfloat16": "float32 parameters, bfloat16 products at default precision",
    }
    for name, (sim, state, history) in trained.items():
        assert history.costs.precision == sim.describe(state)["precision"] == said[name]
        assert f"; {said[name]}; " in str(history.costs)


def test_a_checkpoint_goes_on_with_its_own_precision_alone(trained, folder):
    (other, _, _), (sim, _, _) = trained["float32"], trained["bfloat16"]
    refused = r'precision: "float32 parameters, bfloat16 .*" in the checkpoint, "float32 parameters, float32 .*" now'
    with pytest.raises(CheckpointError, match=refused):
        other.run(other.init(seed=0), rounds=21, checkpoints=folder)
    _, history = sim.run(sim.init(seed=0), rounds=None, checkpoints=folder)
    assert history.rounds == 20 and "bfloat16 products" in history.costs.precision
