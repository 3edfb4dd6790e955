"""Which convolutions are one operation with their bias and ReLU, and that values and derivatives stay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import as_written, backends, client_batched
from flax import linen as nn
from flax import nnx
from jax import lax
from on_gpus import TRITON, lowered, primitives

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (2, 8, 7, 3))
KERNEL = jax.random.normal(KEY, (3, 3, 3, 4)) / 3
BIAS = jax.random.normal(jax.random.key(2), (4,))
FUSED = ("rectified_sliding", None)


@pytest.fixture
def nvidia(monkeypatch):
    monkeypatch.setattr(backends, "current", lambda: "nvidia")


def conv(x, kernel, layout=("NHWC", "HWIO", "NHWC")):
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def derivative_of_its_own(x):
    return jnp.maximum(x, 0)


straight_through = jax.custom_jvp(derivative_of_its_own)
straight_through.defjvps(lambda t, y, x: t)


@jax.custom_jvp
@jax.jit
def relu(x):
    return jnp.maximum(x, 0)


relu.defjvps(lambda t, y, x: t)


def twice(z):
    return nn.relu(z) + z


def channels_first(x, k, b):
    y = conv(x.transpose(0, 3, 1, 2), k, ("NCHW", "HWIO", "NCHW"))
    return nn.relu(y + b[:, None, None])


def in_scan(x, k, b):
    return lax.scan(lambda c, _: (nn.relu(conv(c, k[..., :3]) + b[:3]), None), x, length=2)[0]


def at_one_place(x, k, b):
    """Either may be taken for the bias of the other."""
    x, numbers = x[:1, :3, :3], ("NHWC", "HWIO", "NHWC")
    first, second = (
        lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=numbers)
        for kernel in (k, 2 * k)
    )
    return nn.relu(first + second) * b


ONE = {
    "plain": lambda x, k, b: nn.relu(conv(x, k) + b),
    "bias first": lambda x, k, b: nn.relu(b + conv(x, k)),
    "whose results are used twice": lambda x, k, b: twice(nn.relu(conv(x, k) + b)),
    "jitted": jax.jit(lambda x, k, b: nn.relu(conv(x, k) + b)),
    "a jitted relu": lambda x, k, b: jax.jit(jax.jit(nn.relu))(conv(x, k) + b),
    "checkpoint": jax.checkpoint(lambda x, k, b: nn.relu(conv(x, k) + b)),
    "scan": in_scan,
    "channels first": channels_first,
    "two results of one place": at_one_place,
}
NONE = {
    "sum used twice": lambda x, k, b: twice(conv(x, k) + b),
    "sum is a result": lambda x, k, b: (lambda z: (nn.relu(z), z))(conv(x, k) + b),
    "convolution used twice": lambda x, k, b: (lambda z: nn.relu(z + b) + z)(conv(x, k)),
    "twice the convolution": lambda x, k, b: (lambda z: nn.relu(z + z) * b)(conv(x, k)),
    "twice the sum": lambda x, k, b: (lambda z: jnp.maximum(z, z))(conv(x, k) + b),
    "gelu": lambda x, k, b: nn.gelu(conv(x, k) + b),
    "leaky": lambda x, k, b: nn.leaky_relu(conv(x, k) + b),
    "relu6": lambda x, k, b: nn.relu6(conv(x, k) + b),
    "softplus": lambda x, k, b: nn.softplus(conv(x, k) + b),
    "half a derivative at zero": lambda x, k, b: jnp.maximum(conv(x, k) + b, 0),
    "a derivative of its own": lambda x, k, b: straight_through(conv(x, k) + b),
    "another's name": lambda x, k, b: relu(conv(x, k) + b),
    "more than a relu": lambda x, k, b: jax.jit(lambda z: nn.relu(z) * 2)(conv(x, k) + b),
    "no bias": lambda x, k, b: nn.relu(conv(x, k)) * b,
    "no activation": lambda x, k, b: conv(x, k) + b,
    "one bias": lambda x, k, b: nn.relu(conv(x, k) + b[0]),
    "a bias of places": lambda x, k, b: nn.relu(conv(x, k) + x[:1, :, :, :1]),
    "a residual": lambda x, k, b: nn.relu(conv(x, k[..., :3]) + x) * b[:3],
    "difference": lambda x, k, b: nn.relu(conv(x, k) - b),
    "another form": lambda x, k, b: nn.relu(
        lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
    ),
}


def value_and_gradients(function):
    def total(*given):
        y = function(*given)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(y)), y

    # A jit of its own: JAX keeps traces by function, and what a function chooses may have changed.
    return jax.jit(lambda *given: jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*given))


@pytest.mark.parametrize("name", [*ONE, *NONE])
def test_which_are_one_operation(nvidia, name):
    function = {**ONE, **NONE}[name]
    batched = client_batched(function)
    assert primitives(batched, X, KERNEL, BIAS).count(FUSED) == (name in ONE)
    actual, expected = (value_and_gradients(f)(X, KERNEL, BIAS) for f in (batched, function))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision(nvidia, dtype):
    given = [leaf.astype(dtype) for leaf in (X, KERNEL, BIAS)]
    assert FUSED in primitives(client_batched(ONE["plain"]), *given)
    # A wider bias makes a wider sum.
    assert FUSED not in primitives(client_batched(ONE["plain"]), *given[:2], BIAS)


@pytest.mark.parametrize("backend", ["cpu", "other"])
def test_elsewhere_nothing_is_put_off(monkeypatch, backend):
    monkeypatch.setattr(backends, "current", lambda: backend)
    batched = client_batched(ONE["plain"])
    assert primitives(batched, X, KERNEL, BIAS) == []
    assert "custom_jvp_call" in str(jax.make_jaxpr(batched)(X, KERNEL, BIAS))


def test_what_stays_as_written(nvidia):
    with as_written():
        assert primitives(client_batched(ONE["plain"]), X, KERNEL, BIAS) == []


class Linen(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(32, (3, 3))(x))
        x = nn.max_pool(nn.relu(nn.Conv(40, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(len(x), -1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(3, 32, (3, 3), rngs=rngs), nnx.Conv(32, 40, (3, 3), rngs=rngs)])
        self.dense = nnx.Linear(4 * 3 * 40, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.convs[0](x))
        x = nnx.max_pool(nnx.relu(self.convs[1](x)), (2, 2), (2, 2))
        return self.dense(x.reshape(len(x), -1))


def model(kind):
    if kind == "linen":
        return Linen().apply, Linen().init(KEY, X)
    graph, weights = nnx.split(Nnx(nnx.Rngs(0)))
    return lambda weights, x: nnx.merge(graph, weights)(x), weights


@pytest.mark.parametrize("kind", ["linen", "nnx"])
def test_a_model_of_clients_of_their_own(nvidia, kind):
    apply, weights = model(kind)
    own = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf, leaf / 2]), weights)
    xs = jnp.stack([X, X + 1, -X])

    def step(apply):
        return jax.vmap(jax.grad(lambda weights, x: jnp.sum(jnp.sin(apply(weights, x)))))

    batched = step(client_batched(apply))
    # The second layer's cotangents are masked before, as those of the images are found from them, too.
    assert primitives(batched, own, xs) == [
        FUSED, FUSED, ("rectified_tangent", "to_kernel"), ("sliding", "to_kernel"), ("sliding", "to_x"),
    ]  # fmt: skip
    assert lowered(batched, own, xs).count(TRITON) == 5
    actual, expected = jax.jit(batched)(own, xs), jax.jit(step(apply))(own, xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)
