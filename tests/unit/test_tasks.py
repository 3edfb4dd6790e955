import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx

from fedjax_sim import metrics, models, tasks
from fedjax_sim.tasks import losses

KEY = jax.random.key(0)


def batch_of(x, y=None):
    batch = {"x": jnp.asarray(x), "mask": jnp.ones(len(x), bool)}
    return batch if y is None else {**batch, "y": jnp.asarray(y)}


BATCH = batch_of(jax.random.normal(KEY, (5, 4)), [0, 2, 1, 1, 0])


class LinenDropout(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        x = nn.relu(nn.Dense(16)(x))
        return nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(x))


class LinenDeterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        return nn.Dropout(0.5)(nn.Dense(3)(x), deterministic=deterministic)


class NnxDropout(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(4, 16, rngs=rngs), nnx.Linear(16, 3, rngs=rngs)])
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.layers[1](self.dropout(nnx.relu(self.layers[0](x))))


class LinenNorm(nn.Module):
    @nn.compact
    def __call__(self, x, *, train, mask=None):
        mask = None if mask is None else mask[:, None]
        return nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(3)(x), mask=mask)


class NnxNorm(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)

    def __call__(self, x, mask=None):
        return self.norm(self.dense(x), mask=None if mask is None else mask[:, None])


class LinenConstants(nn.Module):
    @nn.compact
    def __call__(self, x):
        shift = self.variable("constants", "shift", lambda: jnp.full(3, 7.0))
        return nn.Dense(3)(x) + shift.value


class NnxConstants(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(4, 3, rngs=rngs)
        self.shift = nnx.Variable(jnp.full(3, 7.0))

    def __call__(self, x):
        return self.dense(x) + self.shift[...]


DROPOUT = {"linen": LinenDropout(), "linen-deterministic": LinenDeterministic(), "nnx": NnxDropout}
NORM = {"linen": LinenNorm(), "nnx": NnxNorm}
CONSTANTS = {"linen": LinenConstants(), "nnx": NnxConstants}


def over(family):
    return pytest.mark.parametrize("module", family.values(), ids=family.keys())


def task_of(module, **options):
    return tasks.from_flax(module, loss="softmax_cross_entropy", sample_input=(1, 4), **options)


def gradient(task, variables, batch, key):
    def loss(params):
        outputs, _ = task.apply(variables._replace(params=params), batch, key, train=True)
        return jnp.mean(task.loss(outputs, batch))

    return jax.grad(loss)(variables.params)


def assert_trees_close(actual, expected):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), actual, expected)


# --- modules -----------------------------------------------------------------------------------------------


def test_linen_and_nnx_agree_on_the_same_weights():
    linen_task, nnx_task = task_of(LinenNorm(), batch_stats="local"), task_of(NnxNorm, batch_stats="local")
    ours = linen_task.init(KEY)
    theirs = nnx_task.init(KEY)._replace(
        params={"dense": ours.params["Dense_0"], "norm": ours.params["BatchNorm_0"]},
        stats={"norm": ours.stats["BatchNorm_0"]},
    )
    for train in (True, False):
        expected, stats = linen_task.apply(ours, BATCH, KEY, train=train)
        actual, nnx_stats = nnx_task.apply(theirs, BATCH, KEY, train=train)
        assert_trees_close((actual, nnx_stats["norm"]), (expected, stats["BatchNorm_0"]))
    grads, nnx_grads = gradient(linen_task, ours, BATCH, KEY), gradient(nnx_task, theirs, BATCH, KEY)
    assert_trees_close([nnx_grads["dense"], nnx_grads["norm"]], [grads["Dense_0"], grads["BatchNorm_0"]])


def test_linen_weights_are_those_of_the_module_itself():
    module = LinenDropout()
    expected = module.init(KEY, jnp.zeros((1, 4)), train=False)["params"]
    jax.tree.map(np.testing.assert_array_equal, task_of(module).init(KEY).params, expected)


@over(DROPOUT)
def test_params_are_plain_nested_dicts_with_string_keys(module):
    variables = task_of(module).init(KEY)
    for path, _ in jax.tree_util.tree_leaves_with_path(variables.params):
        assert all(isinstance(entry.key, str) for entry in path)
    assert variables.frozen == () and variables.stats == ()


@over(DROPOUT)
def test_dropout_repeats_for_the_same_key_and_differs_by_key(module):
    task = task_of(module)
    variables = task.init(KEY)
    first, again, other = (task.apply(variables, BATCH, jax.random.key(i), train=True)[0] for i in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


@over(DROPOUT)
def test_evaluation_is_deterministic_and_needs_no_key(module):
    task = task_of(module)
    variables = task.init(KEY)
    without, with_key = (task.apply(variables, BATCH, key, train=False)[0] for key in (None, KEY))
    np.testing.assert_array_equal(without, with_key)


@over(DROPOUT)
def test_apply_under_vmap_over_params_grad_and_jit_equals_a_loop(module):
    task = task_of(module)
    clients = [task.init(key) for key in jax.random.split(KEY, 3)]
    keys = jax.random.split(jax.random.key(1), 3)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *clients)
    batched = jax.jit(jax.vmap(lambda v, key: gradient(task, v, BATCH, key)))(stacked, keys)
    for i, variables in enumerate(clients):
        expected = gradient(task, variables, BATCH, keys[i])
        assert_trees_close(jax.tree.map(lambda leaf, i=i: leaf[i], batched), expected)


def test_nnx_layers_draw_different_masks():
    class Two(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Dropout(0.5, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.first(x) - self.second(x)

    task = tasks.from_flax(Two, loss="squared_error")
    outputs, _ = task.apply(task.init(KEY), {"x": jnp.ones((8, 8))}, KEY, train=True)
    assert np.any(outputs != 0)


def test_an_nnx_module_starts_from_its_own_weights_and_is_left_alone():
    module = NnxDropout(nnx.Rngs(3))
    before = jax.tree.leaves(nnx.to_pure_dict(nnx.state(module)))
    task = task_of(module)
    variables = task.init(KEY)
    np.testing.assert_array_equal(variables.params["layers"]["0"]["kernel"], module.layers[0].kernel[...])
    task.apply(variables, BATCH, KEY, train=True)
    after = jax.tree.leaves(nnx.to_pure_dict(nnx.state(module)))
    for a, b in zip(before, after, strict=True):
        assert jnp.array_equal(a, b)


def test_an_nnx_class_gives_every_seed_its_own_weights():
    task = task_of(NnxDropout)
    a, b, again = (task.init(jax.random.key(i)).params["layers"]["0"]["kernel"] for i in (0, 1, 0))
    assert np.any(a != b)
    np.testing.assert_array_equal(a, again)


def test_nnx_dropout_without_a_key_is_refused():
    task = task_of(NnxDropout)
    with pytest.raises(ValueError, match="no key was given"):
        task.apply(task.init(KEY), BATCH, None, train=True)


@over(CONSTANTS)
def test_other_variables_are_frozen(module):
    task = task_of(module)
    variables = task.init(KEY)
    assert [leaf.shape for leaf in jax.tree.leaves(variables.frozen)] == [(3,)]
    moved = variables._replace(frozen=jax.tree.map(lambda x: x + 1, variables.frozen))
    a, b = (task.apply(v, BATCH, KEY, train=True)[0] for v in (variables, moved))
    np.testing.assert_allclose(a + 1, b, rtol=1e-6)


@pytest.mark.parametrize("module", [3, lambda rngs: "text"], ids=["number", "function"])
def test_what_is_no_module_is_refused(module):
    with pytest.raises(TypeError, match=r"module (is int|is a function, .* but it returned str)"):
        task_of(module)


# --- batch statistics --------------------------------------------------------------------------------------


@over(NORM)
def test_batch_statistics_need_a_policy(module):
    with pytest.raises(ValueError, match="batch_stats='averaged'"):
        task_of(module)


def test_batch_statistics_need_a_policy_at_the_first_init_too():
    task = tasks.classification(LinenNorm())
    with pytest.raises(ValueError, match="batch_stats='local'"):
        task.init(KEY, BATCH)


@pytest.mark.parametrize("policy", ["averaged", "local"])
@over(NORM)
def test_batch_statistics_move_in_training_alone(module, policy):
    task = task_of(module, batch_stats=policy)
    assert task.stats_policy == policy
    variables = task.init(KEY)
    _, trained = task.apply(variables, BATCH, KEY, train=True)
    _, evaluated = task.apply(variables, BATCH, KEY, train=False)
    assert jax.tree.structure(trained) == jax.tree.structure(variables.stats)
    assert all(
        np.any(a != b)
        for a, b in zip(jax.tree.leaves(trained), jax.tree.leaves(variables.stats), strict=True)
    )
    jax.tree.map(np.testing.assert_array_equal, evaluated, variables.stats)


def test_a_policy_for_a_model_without_statistics_is_none():
    assert task_of(LinenDropout(), batch_stats="averaged").stats_policy == "none"


@over(NORM)
def test_the_row_mask_keeps_padding_out_of_batch_statistics(module):
    task = task_of(module, batch_stats="local", row_mask="mask")
    variables = task.init(KEY)
    padded = {
        "x": jnp.concatenate([BATCH["x"], jnp.zeros((3, 4))]),
        "mask": jnp.arange(8) < 5,
    }
    expected, expected_stats = task.apply(variables, BATCH, KEY, train=True)
    actual, stats = task.apply(variables, padded, KEY, train=True)
    assert_trees_close((actual[:5], stats), (expected, expected_stats))


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="batch_stats is 'mean', expected one of 'refuse'"):
        task_of(LinenNorm(), batch_stats="mean")


# --- samples and scale -------------------------------------------------------------------------------------


def test_init_takes_shapes_from_the_sample_row():
    task = tasks.classification(models.cnn(classes=10))
    sample = {
        "x": jnp.zeros((1, 8, 8, 1), jnp.uint8),
        "y": jnp.zeros(1, jnp.int32),
        "mask": jnp.ones(1, bool),
    }
    by_sample = task.init(KEY, sample).params
    by_input = tasks.classification(models.cnn(classes=10), sample_input=(1, 8, 8, 1)).init(KEY).params
    jax.tree.map(np.testing.assert_array_equal, by_sample, by_input)


@pytest.mark.parametrize(
    "sample", [np.ones((7, 4), np.float32), jax.ShapeDtypeStruct((1, 4), jnp.float32), (1, 4), [3, 4]]
)
def test_forms_of_sample_input(sample):
    task = tasks.classification(models.linear(3), sample_input=sample)
    assert task.init(KEY, {"x": jnp.zeros((1, 99))}).params["Dense_0"]["kernel"].shape == (4, 3)


@pytest.mark.parametrize("sample", ["x", 3.0, (), (np.zeros(3),)])
def test_a_sample_of_another_kind_is_refused(sample):
    with pytest.raises(TypeError, match="sample_input is"):
        tasks.classification(models.linear(3), sample_input=sample)


def test_init_without_a_sample_says_what_to_do():
    with pytest.raises(ValueError, match="sample_input="):
        tasks.classification(models.cnn(classes=10)).init(KEY)


def test_uint8_images_become_fractions():
    pixels = jax.random.randint(KEY, (3, 4), 0, 256).astype(jnp.uint8)
    task = task_of(LinenDropout())
    variables = task.init(KEY)
    scaled, _ = task.apply(variables, batch_of(pixels), None, train=False)
    expected, _ = task.apply(variables, batch_of(pixels.astype(jnp.float32) / 255), None, train=False)
    np.testing.assert_allclose(scaled, expected, atol=1e-6)


def test_a_scale_of_ones_own():
    variables = task_of(LinenDropout()).init(KEY)
    integers = jnp.arange(8, dtype=jnp.int16).reshape(2, 4)
    scaled, _ = task_of(LinenDropout(), scale=0.5).apply(variables, batch_of(integers), None, train=False)
    expected, _ = task_of(LinenDropout()).apply(variables, batch_of(integers / 2), None, train=False)
    np.testing.assert_allclose(scaled, expected, rtol=1e-6)


def test_tokens_stay_integers():
    task = tasks.classification(models.char_lstm(11, hidden=6))
    tokens = jax.random.randint(KEY, (2, 9), 0, 11)
    batch = batch_of(tokens, jnp.roll(tokens, -1, axis=1))
    variables = jax.jit(task.init)(KEY, batch)
    outputs = jax.eval_shape(lambda *given: task.apply(*given, train=True)[0], variables, batch, KEY)
    assert outputs.shape == (2, 9, 11) and jax.eval_shape(task.loss, outputs, batch).shape == (2,)
    found = jax.jit(lambda *given: gradient(task, *given))(variables, batch, KEY)
    assert all(np.any(np.asarray(leaf) != 0) for leaf in jax.tree.leaves(found))


# --- losses and metrics ------------------------------------------------------------------------------------


def test_sequence_loss_is_the_mean_over_valid_positions():
    logits = jax.random.normal(KEY, (3, 4, 5))
    labels = jnp.array([[1, 4, -1, -1], [0, 1, 2, 3], [-1, -1, -1, -1]])
    log_p = np.asarray(jax.nn.log_softmax(logits))
    expected = [
        -(log_p[0, 0, 1] + log_p[0, 1, 4]) / 2,
        -(log_p[1, 0, 0] + log_p[1, 1, 1] + log_p[1, 2, 2] + log_p[1, 3, 3]) / 4,
        0.0,
    ]
    loss = losses.softmax_cross_entropy()
    np.testing.assert_allclose(loss(logits, {"y": labels}), expected, rtol=1e-5)
    grads = jax.grad(lambda x: jnp.sum(loss(x, {"y": labels})))(logits)
    np.testing.assert_array_equal(np.any(np.asarray(grads) != 0, axis=-1), labels >= 0)


def test_a_padded_position_may_have_infinite_logits():
    """As of a model that forbids its padding token."""
    logits = jnp.array([[[-jnp.inf, 1.0, 2.0]] * 2])
    batch = {"y": jnp.array([[1, -1]])}
    loss = losses.softmax_cross_entropy()
    np.testing.assert_allclose(loss(logits, batch), [np.log(1 + np.e)], rtol=1e-6)
    grads = jax.grad(lambda x: jnp.sum(loss(x, batch)))(logits)
    np.testing.assert_allclose(grads[0], [[0, -0.731059, 0.731059], [0, 0, 0]], atol=1e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int32"])
def test_class_labels_of_any_integer_dtype(dtype):
    loss = losses.softmax_cross_entropy()
    value = loss(jnp.zeros((2, 200)), {"y": jnp.array([3, 199], dtype)})
    np.testing.assert_allclose(value, np.log(200) * np.ones(2), rtol=1e-6)


@pytest.mark.parametrize("labels", [jnp.zeros(3, jnp.int32), jnp.zeros(2), jnp.zeros((2, 1), jnp.int32)])
def test_labels_that_do_not_fit_the_logits(labels):
    with pytest.raises(ValueError, match=r"outputs float32\[2, 4\] and column 'y'"):
        losses.softmax_cross_entropy()(jnp.zeros((2, 4)), {"y": labels})


def test_squared_error_never_pairs_every_output_with_every_label():
    outputs, labels = jnp.array([[1.0], [2.0], [4.0]]), jnp.array([1.0, 1.0, 1.0])
    task = tasks.regression(models.linear(1), sample_input=(1, 4))
    batch = batch_of(jnp.zeros((3, 4)), labels)
    np.testing.assert_array_equal(task.loss(outputs, batch), [0.0, 1.0, 9.0])
    value = metrics.mean(metrics.batch_means(task, outputs, batch)["squared_error"])
    np.testing.assert_allclose(value, 10 / 3, rtol=1e-6)
    with pytest.raises(ValueError, match=r"outputs have shape \[3, 2\] and column 'y' \[3\]"):
        task.loss(jnp.zeros((3, 2)), batch)


def test_sigmoid_loss_on_large_logits():
    loss = losses.sigmoid_binary_cross_entropy()
    value = loss(jnp.array([1e4, -1e4, 0.0]), {"y": jnp.array([1, 1, 0])})
    np.testing.assert_allclose(value, [0.0, 1e4, np.log(2)], rtol=1e-6)
    several = loss(jnp.zeros((2, 3)), {"y": jnp.ones((2, 3))})
    np.testing.assert_allclose(several, np.log(2) * np.ones(2), rtol=1e-6)


def test_a_loss_of_ones_own():
    task = tasks.from_flax(
        LinenDropout(), loss=lambda outputs, batch: jnp.sum(outputs, axis=-1), sample_input=(1, 4)
    )
    outputs, _ = task.apply(task.init(KEY), BATCH, None, train=False)
    np.testing.assert_allclose(task.loss(outputs, BATCH), outputs.sum(axis=-1), rtol=1e-6)
    assert task.metrics == {}


def test_an_unknown_loss_is_refused():
    with pytest.raises(ValueError, match="loss is 'mse', expected one of 'softmax_cross_entropy'"):
        tasks.from_flax(LinenDropout(), loss="mse")


def test_metrics_can_be_replaced():
    task = tasks.classification(models.linear(3), metrics={"top_2": metrics.top_k_accuracy(2)})
    assert set(task.metrics) == {"top_2"}
    assert set(tasks.classification(models.linear(3)).metrics) == {"accuracy"}


# --- frozen parameters -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "predicate", ["^Dense_1/", lambda path: path.startswith("Dense_1/")], ids=["regex", "function"]
)
def test_trainable_splits_at_init_and_merges_at_apply(predicate):
    whole = task_of(LinenDropout())
    part = tasks.trainable(whole, predicate)
    all_variables, variables = whole.init(KEY), part.init(KEY)
    assert set(variables.params) == {"Dense_1"}
    assert set(variables.frozen[0]) == {"Dense_0"}
    expected, _ = whole.apply(all_variables, BATCH, KEY, train=True)
    np.testing.assert_array_equal(part.apply(variables, BATCH, KEY, train=True)[0], expected)
    assert_trees_close(
        gradient(part, variables, BATCH, KEY),
        {"Dense_1": gradient(whole, all_variables, BATCH, KEY)["Dense_1"]},
    )


def test_one_leaf_of_a_layer_may_be_trained():
    variables = tasks.trainable(task_of(LinenDropout()), "bias$").init(KEY)
    assert {name: set(layer) for name, layer in variables.params.items()} == {
        "Dense_0": {"bias"},
        "Dense_1": {"bias"},
    }
    assert {name: set(layer) for name, layer in variables.frozen[0].items()} == {
        "Dense_0": {"kernel"},
        "Dense_1": {"kernel"},
    }


def test_a_merged_model_is_the_whole_one_and_can_be_saved(tmp_path):
    """Also of a task that trains a part of a part; variables of other tasks are refused."""
    plain = tasks.classification(models.mlp(10, hidden=(4,)), sample_input=(1, 64))
    variables = plain.init(jax.random.key(1))
    outer = tasks.trainable(tasks.trainable(plain, "Dense_1"), "bias")
    parts = outer.init(jax.random.key(1))
    whole = tasks.merge_trainable(tasks.merge_trainable(parts))
    assert jax.tree.structure(whole) == jax.tree.structure(variables)
    assert all(map(np.array_equal, jax.tree.leaves(whole), jax.tree.leaves(variables)))
    tasks.save_weights(tmp_path / "whole.safetensors", whole)
    again = tasks.pretrained(plain, tmp_path / "whole.safetensors").init(jax.random.key(2))
    assert all(map(np.array_equal, jax.tree.leaves(again), jax.tree.leaves(variables)))
    with pytest.raises(TypeError, match="did not make: they are whole"):
        tasks.merge_trainable(variables)


def test_trainable_may_be_nested():
    task = tasks.trainable(tasks.trainable(task_of(NnxConstants), "dense"), "kernel")
    variables = task.init(KEY)
    assert jax.tree.structure(variables.params) == jax.tree.structure({"dense": {"kernel": 0}})
    plain = task_of(NnxConstants)
    expected, _ = plain.apply(plain.init(KEY), BATCH, None, train=False)
    np.testing.assert_array_equal(task.apply(variables, BATCH, None, train=False)[0], expected)


def test_frozen_parameters_are_shared_under_vmap():
    task = tasks.trainable(task_of(LinenDropout()), "^Dense_1/")
    variables = task.init(KEY)
    clients = jax.tree.map(lambda x: jnp.stack([x, 2 * x]), variables.params)
    outputs = jax.vmap(
        lambda params: task.apply(variables._replace(params=params), BATCH, None, train=False)[0]
    )(clients)
    assert outputs.shape == (2, 5, 3)
    np.testing.assert_allclose(outputs[1], 2 * outputs[0], rtol=1e-5)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="selects no parameter to train; the paths are Dense_0/"):
        tasks.trainable(task_of(LinenDropout()), "conv").init(KEY)


def test_trainable_needs_nested_dicts():
    task = task_of(LinenDropout())
    listed = task._replace(init=lambda key, sample=None: task.init(key)._replace(params=[jnp.zeros(3)]))
    with pytest.raises(TypeError, match="parameters are list, expected nested dicts"):
        tasks.trainable(listed, "x").init(KEY)


def test_a_label_beyond_the_classes_is_not_a_number():
    """As a lookup has it: a model whose classes nobody knows beforehand stops with a message."""
    loss = losses.softmax_cross_entropy()
    values = loss(jnp.array([[1.0, 2.0, 3.0]] * 2), {"y": jnp.array([2, 7])})
    assert jnp.isfinite(values[0]) and jnp.isnan(values[1])
