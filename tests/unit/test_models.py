import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_sim import models

KEY = jax.random.key(0)

# model, one input, parameters (Reddi et al. 2021, pfl-research, FedAvg, shared/conformance/seeds.json)
COUNTS = {
    "linear": (models.linear(10), (60,), 610),
    "mlp": (models.mlp(10), (28, 28, 1), 199_210),
    "emnist_cnn": (models.emnist_cnn(), (28, 28, 1), 1_206_590),
    "reference_cnn": (models.reference_cnn(), (28, 28, 1), 693_962),
    "deeper_cnn": (models.deeper_cnn(), (28, 28, 1), 431_242),
    "cifar10_cnn": (models.cifar10_cnn(), (32, 32, 3), 1_626_442),
    "cnn-8": (models.cnn(10), (8, 8, 1), 53_002),
    "cnn-28": (models.cnn(10), (28, 28, 1), 421_642),
    "cnn-32": (models.cnn(10), (32, 32, 3), 545_098),
}


def spec(model, x):
    return jax.eval_shape(lambda: model.init(KEY, x, train=False))


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_and_output_shape(name):
    model, shape, count = COUNTS[name]
    x = jnp.zeros((3, *shape))
    variables = spec(model, x)
    assert models.count_parameters(variables["params"]) == count
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(variables))
    out = jax.eval_shape(lambda v: model.apply(v, x, train=True, rngs={"dropout": KEY}), variables)
    assert out.shape == (3, model.classes)
    assert out.dtype == jnp.float32


def test_char_lstm_has_the_published_parameters_and_a_logit_for_every_position():
    model = models.char_lstm(90)
    tokens = jnp.zeros((2, 80), jnp.int32)
    variables = spec(model, tokens)
    assert models.count_parameters(variables) == 820_522
    assert jax.eval_shape(lambda v: model.apply(v, tokens, train=False), variables).shape == (2, 80, 90)


def test_char_lstm_reads_forward_only():
    model = models.char_lstm(11, hidden=6)
    tokens = jax.random.randint(KEY, (2, 9), 0, 11)
    variables = model.init(KEY, tokens, train=False)
    changed = tokens.at[:, 5].set((tokens[:, 5] + 1) % 11)
    before, after = (model.apply(variables, t, train=False) for t in (tokens, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.all(np.abs(before[:, 5:] - after[:, 5:]).max(axis=-1) > 0)


def test_lstm_equals_the_cell_of_flax():
    x = jax.random.normal(KEY, (3, 7, 4))
    ours = models.LSTM(5)
    params = ours.init(KEY, x)["params"]
    inputs, hidden = (jnp.split(params[name], 4, axis=-1) for name in ("kernel", "recurrent_kernel"))
    biases = jnp.split(params["bias"], 4)
    cell = {}
    for gate, w, u, b in zip("ifgo", inputs, hidden, biases, strict=True):
        cell[f"i{gate}"] = {"kernel": w}
        cell[f"h{gate}"] = {"kernel": u, "bias": b}
    theirs = nn.RNN(nn.OptimizedLSTMCell(5))
    expected = theirs.apply({"params": {"cell": cell}}, x)
    np.testing.assert_allclose(ours.apply({"params": params}, x), expected, atol=1e-6)


def test_images_without_a_channel_axis_have_one_channel():
    model = models.cnn(10)
    x = jax.random.normal(KEY, (2, 8, 8))
    variables = model.init(KEY, x, train=False)
    np.testing.assert_array_equal(
        model.apply(variables, x, train=False), model.apply(variables, x[..., None], train=False)
    )


def test_a_feature_vector_is_not_an_image():
    with pytest.raises(ValueError, match=r"shape \(1, 60\), expected \[batch, height, width"):
        models.cnn(10).init(KEY, jnp.zeros((1, 60)), train=False)


@pytest.mark.parametrize("make", [models.reference_cnn, models.deeper_cnn])
def test_weights_may_start_as_in_keras(make):
    """Uniform up to the root of 6 over inputs and outputs, which for the first layer is a third of flax's spread."""
    x = jnp.zeros((1, 28, 28, 1))
    flax, keras = (
        make(kernel_init=init).init(KEY, x, train=False)["params"]
        for init in ("lecun_normal", "glorot_uniform")
    )
    jax.tree.map(np.testing.assert_array_equal, make().init(KEY, x, train=False)["params"], flax)
    for layer, fans in (("Conv_0", 9 + 9 * 32), ("Dense_1", keras["Dense_1"]["kernel"].shape[0] + 10)):
        limit = np.sqrt(6 / fans)
        assert 0.95 * limit < np.abs(keras[layer]["kernel"]).max() <= limit
    assert keras["Conv_0"]["kernel"].std() < flax["Conv_0"]["kernel"].std() / 3


def test_other_weights_to_start_from_are_refused():
    with pytest.raises(
        ValueError, match="kernel_init is 'zeros', expected one of 'lecun_normal', 'glorot_uniform'"
    ):
        models.reference_cnn(kernel_init="zeros")
