"""Adapters: the same model as with merged kernels, whatever module it is; only they are sent; weights in files."""

from __future__ import annotations

import functools
import json
import struct

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim import tasks

KEY = jax.random.key(0)
BATCH = {"x": jax.random.normal(KEY, (5, 8, 8, 1)), "y": jnp.arange(5), "mask": jnp.ones(5, bool)}


class Shared(linen.Module):
    """One dense layer that is called twice, and a convolution."""

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(4, (3, 3))(x).reshape(len(x), -1)
        layer = linen.Dense(16)
        x = linen.relu(layer(linen.Dense(16)(x)))
        return linen.Dense(10)(layer(x))


def nnx_module(rngs):
    layers = [nnx.Linear(64, 12, rngs=rngs), nnx.Linear(12, 10, rngs=rngs)]
    return nnx.Sequential(lambda x: x.reshape(len(x), -1), layers[0], nnx.relu, layers[1])


def task_of(module):
    return tasks.from_flax(module, loss="softmax_cross_entropy", sample_input=(1, 8, 8, 1))


MODULES = {
    "mlp": fs.models.mlp(10),
    "cnn": fs.models.cnn(10),
    "shared layer and convolution": Shared(),
    "nnx": nnx_module,
}


def trained(task, seed=1):
    """Variables whose adapters are no zeros."""
    variables = task.init(KEY)
    leaves, structure = jax.tree.flatten(variables.params)
    noise = [
        0.3 * jax.random.normal(k, x.shape)
        for k, x in zip(jax.random.split(jax.random.key(seed), len(leaves)), leaves, strict=True)
    ]
    return variables._replace(
        params=jax.tree.unflatten(structure, [x + n for x, n in zip(leaves, noise, strict=True)])
    )


@pytest.mark.parametrize("freeze_a", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_adapters_beside_kernels_are_kernels_with_the_product_added(name, freeze_a):
    inner = task_of(MODULES[name])
    task = tasks.lora(inner, rank=3, alpha=6.0, freeze_a=freeze_a)
    first = task.init(KEY)
    base = inner.init(KEY)
    same = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)  # noqa: E731
    same(task.apply(first, BATCH, None, train=False)[0], inner.apply(base, BATCH, None, train=False)[0])
    variables = trained(task)
    merged = tasks.merge_lora(variables)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    outputs = inner.apply(merged, BATCH, None, train=False)[0]
    got = task.apply(variables, BATCH, None, train=False)[0]
    np.testing.assert_allclose(got, outputs, rtol=2e-4, atol=2e-4 * float(jnp.abs(outputs).max()))
    assert float(jnp.abs(outputs - inner.apply(base, BATCH, None, train=False)[0]).max()) > 0.1
    for path, b in variables.params.b.items():
        a = (variables.params.a or variables.frozen.a)[path]
        at = lambda v, p=path: functools.reduce(lambda d, k: d[k], p.split("/"), v)  # noqa: E731
        kernel = at(base.params)
        np.testing.assert_allclose(
            at(merged.params), kernel + 2.0 * (a @ b).reshape(kernel.shape), rtol=1e-5, atol=1e-5
        )
    assert not variables.params.a if freeze_a else set(variables.params.a) == set(variables.params.b)


def test_clients_share_the_product_with_the_frozen_kernel():
    """Under vmap over adapters, no product has a batch of frozen kernels: the largest kernel stays [inputs, outputs]."""
    task = tasks.lora(task_of(fs.models.mlp(10)), rank=2)
    variables = task.init(KEY)
    clients = 3
    params = jax.tree.map(lambda x: jnp.stack([x] * clients), variables.params)
    batch = {k: jnp.stack([v] * clients) for k, v in BATCH.items()}

    def outputs(params, batch):
        return task.apply(variables._replace(params=params), batch, None, train=True)[0]

    program = jax.make_jaxpr(jax.vmap(outputs))(params, batch).jaxpr
    rights = [eqn.invars[1].aval.shape for eqn in program.eqns if eqn.primitive.name == "dot_general"]
    kernels = {x.shape for x in jax.tree.leaves(variables.frozen.base) if x.ndim == 2}
    assert kernels <= set(rights)
    assert not {(clients, *shape) for shape in kernels} & set(rights)


def test_only_adapters_are_trained_and_sent():
    data = fs.data.load("digits", clients=6, alpha=1.0, seed=0)
    inner = tasks.pretrained(task_of(fs.models.mlp(10)), task_of(fs.models.mlp(10)).init(jax.random.key(5)))
    task = tasks.lora(inner, rank=2, full="^Dense_2/")

    def end(engine):
        algorithm = fs.algorithms.fedavg(task, optax.sgd(0.5))
        sim = fs.Simulation(algorithm, data.train, cohort=fs.cohorts.uniform(3), engine=engine)
        state, history = sim.run(sim.init(seed=0), rounds=2)
        return algorithm.params(state.server), history

    variables, history = end(fs.engines.lanes())
    start = task.init(KEY)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), variables.frozen.base, start.frozen.base)
    )
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), variables.params.b, start.params.b)
    assert jax.tree.all(moved)
    floats = sum(x.size for x in jax.tree.leaves(start.params))
    assert history.costs.bytes_up == 2 * 3 * 4 * (floats + 1)  # and the weight of the mean
    sequential, _ = end(fs.engines.sequential())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
        variables.params,
        sequential.params,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rank": 0}, "rank is 0"),
        ({"rank": 2, "alpha": -1.0}, "alpha is"),
        (
            {"rank": 2, "targets": "nothing"},
            "targets 'nothing' finds no parameter; the paths are Dense_0/bias",
        ),
        ({"rank": 2, "full": "nothing"}, "full 'nothing' finds no parameter"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        tasks.lora(task_of(fs.models.mlp(10)), **arguments).init(KEY)


def test_only_adapters_merge():
    with pytest.raises(TypeError, match="expected Adapters"):
        tasks.merge_lora(task_of(fs.models.mlp(10)).init(KEY))


@pytest.mark.parametrize("numbers", [10, 2010, 2210, 10**6])
def test_what_is_most_important_is_what_public_gradients_say(numbers):
    """Leaves in the order of their mean squared gradient, as many as fit: against plain gradients of all examples."""
    task = task_of(fs.models.mlp(10))
    variables = task.init(KEY)

    def loss(params):
        return jnp.mean(
            task.loss(task.apply(variables._replace(params=params), BATCH, None, train=False)[0], BATCH)
        )

    gradients = jax.grad(loss)(variables.params)
    leaves = {f"{layer}/{name}": g for layer, parts in gradients.items() for name, g in parts.items()}
    expected, left = set(), numbers
    for path in sorted(leaves, key=lambda path: -float(jnp.mean(leaves[path] ** 2))):
        if leaves[path].size <= left:
            expected.add(path)
            left -= leaves[path].size
    public = {name: BATCH[name] for name in ("x", "y")}
    chosen = tasks.most_important(task, variables, public, numbers)
    assert {path for path in leaves if chosen(path)} == expected
    part = tasks.trainable(task, chosen).init(KEY).params
    assert sum(x.size for x in jax.tree.leaves(part)) <= numbers
    with pytest.raises(ValueError, match="no examples"):
        tasks.most_important(task, variables, {name: x[:0] for name, x in public.items()}, numbers)
    with pytest.raises(ValueError, match="numbers is 3, but the smallest leaf has 10"):
        tasks.most_important(task, variables, public, 3)


# --- weights in files ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODULES)
def test_weights_come_back_as_they_were(name, tmp_path):
    task = task_of(MODULES[name])
    variables = task.init(jax.random.key(7))
    tasks.save_weights(tmp_path / "w.safetensors", variables)
    again = tasks.pretrained(task, tmp_path / "w.safetensors").init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, again, variables)
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_statistics_are_weights_too(tmp_path):
    class Normed(linen.Module):
        @linen.compact
        def __call__(self, x, train=False):
            return linen.Dense(10)(linen.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1)))

    task = tasks.from_flax(
        Normed(), loss="softmax_cross_entropy", sample_input=(1, 8, 8, 1), batch_stats="averaged"
    )
    variables = task.init(KEY)
    variables = variables._replace(stats=jax.tree.map(lambda x: x + 2.5, variables.stats))
    tasks.save_weights(tmp_path / "w", variables)
    jax.tree.map(np.testing.assert_array_equal, tasks.pretrained(task, tmp_path / "w").init(KEY), variables)


def test_a_new_head_and_other_names(tmp_path):
    """A file of another program: other names, and ten classes where the task has three."""
    wide, narrow = (task_of(fs.models.mlp(classes)) for classes in (10, 3))
    variables = wide.init(jax.random.key(7))
    tasks.save_weights(tmp_path / "w", variables)
    task = tasks.pretrained(
        narrow, tmp_path / "w", fresh="params/Dense_2/", names={"params/Dense_1/bias": "params/Dense_0/bias"}
    )
    got = task.init(KEY).params
    np.testing.assert_array_equal(got["Dense_0"]["kernel"], variables.params["Dense_0"]["kernel"])
    np.testing.assert_array_equal(got["Dense_1"]["bias"], variables.params["Dense_0"]["bias"])
    np.testing.assert_array_equal(got["Dense_2"]["kernel"], narrow.init(KEY).params["Dense_2"]["kernel"])
    with pytest.raises(ValueError, match=r"'params/Dense_2/bias' of shape \[10\], the task's has \[3\]"):
        tasks.pretrained(narrow, tmp_path / "w").init(KEY)
    with pytest.raises(ValueError, match="begins no name"):
        tasks.pretrained(narrow, tmp_path / "w", fresh="head").init(KEY)
    with pytest.raises(ValueError, match="has no array 'elsewhere'"):
        tasks.pretrained(wide, tmp_path / "w", names={"params/Dense_1/bias": "elsewhere"}).init(KEY)
    with pytest.raises(ValueError, match="names has 'wrong'"):
        tasks.pretrained(wide, tmp_path / "w", names={"wrong": "params/Dense_0/bias"}).init(KEY)


def test_files_that_hold_no_weights(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.*safetensors"):
        tasks.load_weights(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError):
        tasks.load_weights(tmp_path)
    header = json.dumps({"params/x": {"dtype": "I32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "int").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    task = fs.Task(lambda key, sample=None: fs.Variables({"x": jnp.zeros(1)}), None, None)  # pyright: ignore
    with pytest.raises(ValueError, match="'params/x' of type int32"):
        tasks.pretrained(task, tmp_path / "int").init(KEY)


@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 200), junk=st.binary(max_size=64))
def test_damaged_files_are_refused(tmp_path_factory, cut, junk):
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    tasks.save_weights(path, task_of(fs.models.linear(10)).init(KEY))
    whole = path.read_bytes()
    path.write_bytes(whole[:cut] + junk)
    with pytest.raises(ValueError, match="no complete safetensors file"):
        tasks.load_weights(path)


@pytest.mark.parametrize("how", ["lora", "trainable"])
def test_weights_of_the_base_model_are_sent_where_they_belong(how):
    plain = tasks.classification(fs.models.mlp(10), sample_input=(1, 64))
    part = tasks.lora(plain, rank=2) if how == "lora" else tasks.trainable(plain, "Dense_2")
    data = fs.data.load("digits", clients=5, alpha=1.0, seed=0)
    sim = fs.Simulation(fs.algorithms.fedavg(part, optax.sgd(0.1)), data.train, cohort=fs.cohorts.uniform(2))
    with pytest.raises(
        ValueError, match=rf"whole model.*fs\.tasks\.{how}\(fs\.tasks\.pretrained\(task, variables\)"
    ) as caught:
        sim.init(seed=0, variables=plain.init(KEY))
    assert "PyTreeDef" not in str(caught.value)


def test_adapters_are_merged_before_they_are_saved(tmp_path):
    variables = tasks.lora(task_of(fs.models.linear(10)), rank=2).init(KEY)
    with pytest.raises(
        TypeError, match=r"hold adapters beside a frozen model.*tasks\.merge_lora\(variables\)"
    ):
        tasks.save_weights(tmp_path / "w.safetensors", variables)
    assert not list(tmp_path.iterdir())
    tasks.save_weights(tmp_path / "w.safetensors", tasks.merge_lora(variables))
