"""``client_batched``: the same function, with operations replaced wherever they stand."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import as_written, client_batched, rewrite, threefry
from flax import linen as nn
from flax import nnx
from jax import lax

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))


@pytest.fixture(autouse=True)
def say_again():
    rewrite._stays.cache_clear()


def conv(x, kernel):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


KERNEL = jax.random.normal(KEY, (3, 3, 3, 3)) / 5


class Net(nn.Module):
    """Every kind of layer that is replaced, and dropout and batch statistics beside them."""

    @nn.compact
    def __call__(self, x):
        x = nn.BatchNorm(use_running_average=False)(nn.relu(nn.Conv(4, (3, 3))(x)))
        x = nn.Dropout(0.5, deterministic=False)(nn.max_pool(x, (2, 2), (2, 2)))
        x = nn.ConvTranspose(6, (3, 3), strides=(2, 2))(x)
        x = nn.avg_pool(nn.gelu(nn.Conv(6, (3, 3), feature_group_count=6)(x)), (2, 2), (2, 2))
        x = nn.remat(nn.Conv)(4, (2, 2), kernel_dilation=2)(x)
        return nn.Dense(3)(nn.avg_pool(x, x.shape[1:3])[:, 0, 0])


def test_a_flax_model_keeps_its_values_gradients_and_statistics():
    variables = Net().init({"params": KEY, "dropout": KEY}, X)

    def loss(params, x, key):
        out, changes = Net().apply(
            {**variables, "params": params}, x, rngs={"dropout": key}, mutable=["batch_stats"]
        )
        return jnp.sum(jnp.sin(out)), changes

    arguments = (variables["params"], X, jax.random.key(3))
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))(*arguments)
    actual = jax.jit(jax.value_and_grad(client_batched(loss), argnums=(0, 1), has_aux=True))(*arguments)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected)
    text = jax.jit(jax.grad(client_batched(loss), has_aux=True)).lower(*arguments).as_text()
    assert "convolution" not in text and "reduce_window" not in text and "select_and_scatter" not in text


def test_an_nnx_model_is_rewritten_too():
    module = nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    graph, state = nnx.split(module)
    call = lambda state, x: nnx.max_pool(nnx.merge(graph, state)(x), (2, 2), (2, 2))  # noqa: E731
    np.testing.assert_allclose(client_batched(call)(state, X), call(state, X), atol=1e-5)
    assert "conv_general" not in str(jax.make_jaxpr(client_batched(call))(state, X))


INSIDE = {
    "jit": jax.jit(conv),
    "scan": lambda x, k: lax.scan(lambda c, t: (jnp.tanh(conv(c, k)) + t, c[0, 0]), x, jnp.arange(3.0)),
    "scan over kernels, from the end": lambda x, k: lax.scan(
        lambda c, one: (conv(c, one), c), x, jnp.stack([k, 2 * k]), reverse=True
    ),
    "while": lambda x, k: lax.while_loop(
        lambda c: c[0] < 3, lambda c: (c[0] + 1, conv(c[1], k)), (jnp.int32(0), x)
    ),
    "fori": lambda x, k: lax.fori_loop(0, 3, lambda i, c: conv(c, k) * i, x),
    "cond": lambda x, k: lax.cond(x[0, 0, 0, 0] > 0, lambda: conv(x, k), lambda: x),
    "switch": lambda x, k: lax.switch(2, [lambda: x, lambda: 2 * x, lambda: conv(x, k)]),
    "checkpoint": jax.checkpoint(conv, policy=jax.checkpoint_policies.nothing_saveable),
    "vmap": jax.vmap(conv, in_axes=(None, 0)),
    "constants of its own": lambda x, k: conv(x, k + np.arange(3, dtype=np.float32)),
    "grad": jax.grad(lambda x, k: jnp.sum(jnp.sin(conv(x, k)))),
}


@pytest.mark.parametrize("name", INSIDE)
def test_control_flow_is_entered(name):
    function = INSIDE[name]
    kernel = jnp.stack([KERNEL, 2 * KERNEL]) if name == "vmap" else KERNEL
    batched = client_batched(function)
    expected, actual = (jax.jit(f)(X, kernel) for f in (function, batched))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)
    assert "conv_general" not in str(jax.make_jaxpr(batched)(X, kernel)), name


@pytest.mark.parametrize("name", ["jit", "scan", "cond", "switch", "checkpoint", "constants of its own"])
def test_derivatives_through_control_flow(name):
    def total(function):
        return lambda x, k: sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(function(x, k)))

    expected, actual = (
        jax.jit(jax.grad(total(f), argnums=(0, 1)))(X, KERNEL)
        for f in (INSIDE[name], client_batched(INSIDE[name]))
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), actual, expected)


def test_custom_derivatives_stay():
    @jax.custom_vjp
    def twice(x):
        return x

    twice.defvjp(lambda x: (x, None), lambda _, g: (2 * g,))
    function = lambda x: jnp.sum(twice(nn.relu(conv(x, KERNEL))))  # noqa: E731
    np.testing.assert_allclose(
        jax.grad(client_batched(function))(X), jax.grad(function)(X), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("partitionable", [True, False])
def test_random_bits_are_the_same_along_one_axis(bits, partitionable):
    def function(key):
        return jax.random.bits(key, (4, 3, 2, 7), f"uint{bits}")

    with jax.threefry_partitionable(partitionable):
        np.testing.assert_array_equal(client_batched(function)(KEY), function(KEY))
        np.testing.assert_array_equal(
            jax.vmap(client_batched(function))(jax.random.split(KEY, 3)),
            jax.vmap(function)(jax.random.split(KEY, 3)),
        )
        text = str(jax.make_jaxpr(client_batched(function))(KEY))
        written = bits == 32 and partitionable and jax.default_backend() == "cpu"
        assert ("shape=(168,)" in text) != written and ("random_bits" in text) != written


@pytest.mark.parametrize("count", [0, 1, threefry.FEWEST - 1, threefry.FEWEST, 257, 4096])
def test_random_bits_of_one_axis(count):
    """Written out from a count on that is worth it, whole parts or not; masks and numbers are made of them as ever."""

    def function(key):
        return (
            jax.random.bits(key, (count,)),
            jax.random.bernoulli(key, 0.3, (count,)),
            jax.random.normal(key, (count,)),
        )

    batched = client_batched(function)
    assert ("random_bits" in str(jax.make_jaxpr(batched)(KEY))) == (count < threefry.FEWEST)
    keys = jax.random.split(KEY, 2)
    jax.tree.map(np.testing.assert_array_equal, batched(KEY), function(KEY))
    jax.tree.map(np.testing.assert_array_equal, jax.vmap(batched)(keys), jax.vmap(function)(keys))


def test_random_bits_of_many_keys_and_of_other_generators_stay():
    rbg = jax.random.key(0, impl="rbg")
    for function, key in (
        (lambda key: jax.random.bits(key, (2, 3)), rbg),
        (jax.vmap(lambda key: jax.random.bits(key, (2, 3))), jax.random.split(KEY, 4)),
    ):
        assert "shape=(2, 3)" in str(jax.make_jaxpr(client_batched(function))(key))
        np.testing.assert_array_equal(client_batched(function)(key), function(key))


def test_what_has_no_form_is_said_once_and_stays():
    large = jnp.ones((17, 17, 3, 1)) / 800
    image = jnp.ones((1, 20, 20, 3))
    with pytest.warns(RuntimeWarning, match="a convolution with a window of 17 x 17 has no form") as seen:
        first, second = (client_batched(conv)(image, large) for _ in range(2))
    assert len(seen) == 1
    np.testing.assert_array_equal(first, second)
    np.testing.assert_allclose(first, conv(image, large), rtol=1e-6)


def test_inside_custom_derivatives_nothing_is_replaced():
    @jax.custom_vjp
    def own(x):
        return conv(x, KERNEL)

    own.defvjp(lambda x: (own(x), None), lambda _, g: (g,))
    with pytest.warns(RuntimeWarning, match="inside custom_vjp_call"):
        got = jax.grad(lambda x: jnp.sum(client_batched(own)(x)))(X)
    np.testing.assert_array_equal(got, jnp.ones_like(X))


def test_a_function_without_such_operations_is_called_as_it_is():
    calls = []

    def function(x, *, scale=2.0):
        calls.append(type(x).__name__)
        return {"y": scale * x, "none": None}

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = client_batched(function)(jnp.ones(3), scale=jnp.float32(3))
    assert got["none"] is None and got["y"].tolist() == [3.0] * 3
    assert calls[-1] == "ArrayImpl"


def test_closing_over_traced_values():
    def outer(kernel):
        return client_batched(lambda x: conv(x, kernel))(X)

    np.testing.assert_allclose(jax.jit(outer)(KERNEL), conv(X, KERNEL), atol=1e-5)
    stacked = jnp.stack([KERNEL, -KERNEL])
    np.testing.assert_allclose(jax.vmap(outer)(stacked)[1], -conv(X, KERNEL), atol=1e-5)


def test_what_was_jitted_is_traced_once_as_written_and_once_rewritten():
    """A user's rule may jit the loss itself: costs are counted first, and the program that runs is still rewritten."""
    loss = jax.jit(client_batched(lambda x, kernel: jnp.sum(conv(x, kernel))))
    text = lambda: str(jax.make_jaxpr(loss)(X, KERNEL))  # noqa: E731
    with as_written():
        assert "conv_general_dilated" in text()
    assert "conv_general_dilated" not in text()
    with as_written():
        assert "conv_general_dilated" in text()
