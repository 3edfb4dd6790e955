"""Where a bias and the ReLU are computed: with the convolution before them, or behind the pooling after them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import as_written, backends, client_batched
from fedjax_sim_kernels import conv as conv_forms
from fedjax_sim_kernels.conv import quarters
from flax import linen as nn
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax
from jax.extend.core import jaxprs_in_params
from on_accelerators import TRITON, lowered, primitives

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


@jax.custom_jvp
def refusing(x):
    return jnp.maximum(x, 0)


@refusing.defjvp
def _(primals, tangents):
    raise NotImplementedError("no derivative")


def refused(x):
    """Without the gradient, which nobody may ask for."""
    return refusing(lax.stop_gradient(x)).sum()


def twice(z):
    return nn.relu(z) + z


def channels_first(x, k, b):
    y = conv(x.transpose(0, 3, 1, 2), k, ("NCHW", "HWIO", "NCHW"))
    return nn.relu(y + b[:, None, None])


def in_scan(x, k, b):
    return lax.scan(lambda c, _: (nn.relu(conv(c, k[..., :3]) + b[:3]), None), x, length=2)[0]


def at_one_place(x, k, b):
    """Neither is the bias of the other."""
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
}
NONE = {
    "two results of one place": at_one_place,
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
    "a jitted relu and its argument": lambda x, k, b: jax.jit(lambda z: (nn.relu(z), z))(conv(x, k) + b),
    "a jitted relu of two": lambda x, k, b: jax.jit(lambda z, w: nn.relu(z) * w)(conv(x, k) + b, x[..., :1]),
    "no bias": lambda x, k, b: nn.relu(conv(x, k)) * b,
    "no activation": lambda x, k, b: conv(x, k) + b,
    "one bias": lambda x, k, b: nn.relu(conv(x, k) + b[0]),
    "one bias for all features": lambda x, k, b: nn.relu(conv(x, k) + b[:1]),
    "one feature and more biases": lambda x, k, b: nn.relu(conv(x, k[..., :1]) + b),
    "a number": lambda x, k, b: nn.relu(3.0) + conv(x, k) + b,
    "integers": lambda x, k, b: nn.relu(jnp.int32(3) * x[..., :1].astype(jnp.int32)) + conv(x, k) + b,
    "who refuses": lambda x, k, b: refusing(conv(x, k) + b) if x.ndim < 4 else conv(x, k) + b + refused(x),
    "a bias of places": lambda x, k, b: nn.relu(conv(x, k) + x[:1, :, :, :1]),
    "a residual": lambda x, k, b: nn.relu(conv(x, k[..., :3]) + x) * b[:3],
    "difference": lambda x, k, b: nn.relu(conv(x, k) - b),
    "another form": lambda x, k, b: nn.relu(
        lax.conv_general_dilated(x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + b
    ),
}


def value_and_gradients(function):
    def total(*arguments):
        y = function(*arguments)
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in jax.tree.leaves(y)), y

    # A jit of its own: JAX keeps traces by function, and what a function chooses may have changed.
    return jax.jit(lambda *arguments: jax.value_and_grad(total, argnums=(0, 1, 2), has_aux=True)(*arguments))


@pytest.mark.parametrize("name", [*ONE, *NONE])
def test_which_are_one_operation(nvidia, name):
    function = {**ONE, **NONE}[name]
    batched = client_batched(function)
    assert primitives(batched, X, KERNEL, BIAS).count(FUSED) == (name in ONE)
    actual, expected = (value_and_gradients(f)(X, KERNEL, BIAS) for f in (batched, function))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_in_half_precision(nvidia, dtype):
    x, kernel, bias = (leaf.astype(dtype) for leaf in (X, KERNEL, BIAS))
    assert FUSED in primitives(client_batched(ONE["plain"]), x, kernel, bias)
    # A wider bias makes a wider sum.
    assert FUSED not in primitives(client_batched(ONE["plain"]), x, kernel, BIAS)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("own", [True, False])
def test_devices_that_share_a_kernel(nvidia, own, checked):
    """JAX keeps account of what varies over devices, unless it is told not to, and sums up gradients; our kernels do not."""
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("devices",))
    rows, shared = jax.sharding.PartitionSpec("devices"), jax.sharding.PartitionSpec()
    kernels = (rows, rows) if own else (shared, shared)

    def gradients(x, k, b):
        total = lambda x, k, b: jnp.sum(client_batched(ONE["plain"])(x, k[0], b[0]))  # noqa: E731
        return jax.grad(total, argnums=(0, 1, 2))(x, k, b)

    specs = (rows, *kernels)
    sharded = jax.shard_map(gradients, mesh=mesh, in_specs=specs, out_specs=specs, check_vma=checked)
    taken = "sliding" in str(jax.make_jaxpr(sharded)(X, KERNEL[None], BIAS[None]))
    assert taken == (not checked)


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
        x = nn.avg_pool(nn.relu(nn.Conv(40, (3, 3))(x)), (2, 2), (2, 2))
        return nn.Dense(5)(x.reshape(len(x), -1))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.convs = nnx.List([nnx.Conv(3, 32, (3, 3), rngs=rngs), nnx.Conv(32, 40, (3, 3), rngs=rngs)])
        self.dense = nnx.Linear(4 * 3 * 40, 5, rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.convs[0](x))
        x = nnx.avg_pool(nnx.relu(self.convs[1](x)), (2, 2), (2, 2))
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
    backward = [("sliding", "to_kernel"), ("sliding", "to_kernel"), ("sliding", "to_x")]
    assert primitives(batched, own, xs) == [FUSED, FUSED, *backward]
    # The second layer's cotangents are masked before, as those of the images are found from them, too.
    narrow = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), (own, xs))
    assert primitives(step(client_batched(apply)), *narrow) == [
        FUSED,
        FUSED,
        ("rectified_tangent", "to_kernel"),
        *backward[1:],
    ]
    assert lowered(batched, own, xs).count(TRITON) == 5
    actual, expected = jax.jit(batched)(own, xs), jax.jit(step(apply))(own, xs)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


# --- behind a pooling ----------------------------------------------------------------------------------------


def largest(x, window=(2, 2), strides=(2, 2), padding="VALID"):
    return nn.max_pool(x, window, strides, padding)


BEHIND = {
    "plain": lambda x, k, b: largest(nn.relu(conv(x, k) + b)),
    "bias first": lambda x, k, b: largest(nn.relu(b + conv(x, k))),
    "overlapping": lambda x, k, b: largest(nn.relu(conv(x, k) + b), (3, 2), (1, 2)),
    "padded": lambda x, k, b: largest(nn.relu(conv(x, k) + b), (3, 3), (2, 2), ((2, 2), (1, 0))),
    "same": lambda x, k, b: largest(nn.relu(conv(x, k) + b), (3, 3), (2, 2), "SAME"),
    "no bias": lambda x, k, b: largest(nn.relu(conv(x, k))) * b,
    "no convolution": lambda x, k, b: largest(nn.relu(x)) * k[0, 0, 0, 0] + b[0],
    "a residual": lambda x, k, b: largest(nn.relu(conv(x, k[..., :3]) + x)) * b[:3],
    "sum used twice": lambda x, k, b: (lambda z: largest(nn.relu(z)).mean() + z)(conv(x, k) + b),
    "a jitted relu": lambda x, k, b: largest(jax.jit(nn.relu)(conv(x, k) + b)),
    "beside what has no result": lambda x, k, b: (jax.debug.callback(np.sum, k), largest(nn.relu(conv(x, k) + b)))[1],
    "a bias of places that no window mixes": lambda x, k, b: largest(nn.relu(conv(x, k) + x[:1, :, :1, :1]), (1, 2), (1, 2)) * b,
}  # fmt: skip
BEFORE = {
    "relu used twice": lambda x, k, b: (lambda z: largest(z).mean() + z)(nn.relu(conv(x, k) + b)),
    "relu is a result": lambda x, k, b: (lambda z: (largest(z), z))(nn.relu(conv(x, k) + b)),
    "mean": lambda x, k, b: nn.avg_pool(nn.relu(conv(x, k) + b), (2, 2), (2, 2)),
    "smallest": lambda x, k, b: lax.reduce_window(
        nn.relu(conv(x, k) + b), jnp.inf, lax.min, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
    ),
    "gelu": lambda x, k, b: largest(nn.gelu(conv(x, k) + b)),
    "windows of padding": lambda x, k, b: jnp.maximum(
        largest(nn.relu(conv(x, k) + b), (2, 2), (2, 2), ((2, 0), (0, 0))), -1
    ),
    "a derivative of its own": lambda x, k, b: largest(straight_through(conv(x, k) + b)),
}


def test_a_dilated_window_may_hold_nothing_but_padding():
    function = lambda x: lax.reduce_window(  # noqa: E731
        nn.relu(x),
        -jnp.inf,
        lax.max,
        (1, 2, 2, 1),
        (1, 1, 1, 1),
        ((0, 0), (1, 1), (1, 1), (0, 0)),
        window_dilation=(1, 3, 3, 1),
    )
    batched = client_batched(function)
    assert sizes_of_relus(batched, X) == sizes_of_relus(function, X) == [X.size]
    np.testing.assert_array_equal(batched(X), function(X))


def test_a_bias_along_an_axis_that_is_only_stepped_over():
    """The windows hold one value along it, but other ones than there are biases."""
    function = lambda x, b: largest(nn.relu(x + b), (2, 1), (2, 2))  # noqa: E731
    b = jnp.linspace(-1, 1, X.shape[2])[None, None, :, None]
    for one, other in zip(
        *(jax.vjp(f, X, b)[1](jnp.ones((2, 4, 4, 3))) for f in (client_batched(function), function)),
        strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-6)


def test_where_rounding_makes_sums_equal_the_larger_value_has_the_gradient():
    x, b = jnp.array([1, 1 + 2**-7], jnp.bfloat16).reshape(1, 2, 1, 1), jnp.full((1,), 8, jnp.bfloat16)
    function = lambda x: largest(nn.relu(x + b), (2, 1), (2, 1)).astype(jnp.float32).sum()  # noqa: E731
    batched = client_batched(function)
    assert batched(x) == function(x) == 9
    assert jax.grad(batched)(x).ravel().tolist() == [0, 1] and jax.grad(function)(x).ravel().tolist() == [
        1,
        0,
    ]


def sizes_of_relus(function, *arguments):
    """How many numbers the ReLUs of a program have, the first one first."""
    found = []

    def walk(program):
        for equation in program.eqns:
            if equation.primitive.name == "custom_jvp_call" and "max" in str(equation):
                found.append(equation.outvars[0].aval.size)
            elif equation.primitive.name != "custom_jvp_call":
                for inner in jaxprs_in_params(equation.params):
                    walk(inner)

    walk(jax.make_jaxpr(function)(*arguments).jaxpr)
    return found


@pytest.mark.parametrize("backend", ["cpu", "nvidia"])
@pytest.mark.parametrize("name", [*BEHIND, *BEFORE])
def test_what_comes_behind_a_pooling(monkeypatch, backend, name):
    monkeypatch.setattr(backends, "current", lambda: backend)
    function = {**BEHIND, **BEFORE}[name]
    batched = client_batched(function)
    before, after = (sizes_of_relus(f, X, KERNEL, BIAS) for f in (function, batched))
    # On the GPU what does not come behind is one operation with its convolution.
    if name in BEHIND:
        assert len(after) == len(before) == 1 and after < before
    else:
        assert after == before or (backend == "nvidia" and FUSED in primitives(batched, X, KERNEL, BIAS))
    (_, value), grads = value_and_gradients(batched)(X, KERNEL, BIAS)
    (_, expected), expected_grads = value_and_gradients(function)(X, KERNEL, BIAS)
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)  # noqa: E731
    jax.tree.map(near, (value, grads), (expected, expected_grads))


# --- a convolution in the windows of its pooling -------------------------------------------------------------

WIDE = jax.random.normal(jax.random.key(3), (2, 10, 12, 16))
MANY = jax.random.normal(KEY, (3, 3, 16, 16)) / 12
BIASES = jax.random.normal(jax.random.key(4), (16,))


def first(x, window=(2, 2), strides=(2, 2), padding="VALID"):
    """As ``largest`` for channels that come before the places."""
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, *window), (1, 1, *strides), padding)


def to_channels_first(x, k, b):
    y = lax.conv_general_dilated(x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NCHW"))
    return first(nn.relu(y + b[:, None, None]))


QUARTERS = {
    "plain": lambda x, k, b: largest(nn.relu(conv(x, k) + b)),
    "odd places": lambda x, k, b: largest(nn.relu(conv(x[:, 1:, 1:], k) + b)),
    "an odd row": lambda x, k, b: largest(nn.relu(conv(x[:, 1:], k) + b)),
    "one window": lambda x, k, b: largest(nn.relu(conv(x[:, :2, :3], k) + b)),
    "no window": lambda x, k, b: largest(nn.relu(conv(x[:, :1], k) + b)) + b.sum(),
    "nothing else": lambda x, k, b: largest(conv(x, k)) * b,
    "bias alone": lambda x, k, b: largest(conv(x, k) + b),
    "relu alone": lambda x, k, b: largest(nn.relu(conv(x, k))) * b,
    "relu behind": lambda x, k, b: nn.relu(largest(conv(x, k) + b)),
    "twice": lambda x, k, b: largest(nn.relu(conv(largest(conv(x, k) + b), k))),
    "channels first": to_channels_first,
    "jitted": jax.jit(lambda x, k, b: largest(nn.relu(conv(x, k) + b))),
    "checkpoint": jax.checkpoint(lambda x, k, b: largest(nn.relu(conv(x, k) + b))),
}
TOGETHER = {
    "overlapping": lambda x, k, b: largest(nn.relu(conv(x, k) + b), (3, 3), (2, 2)),
    "padded": lambda x, k, b: largest(nn.relu(conv(x, k) + b), padding=((1, 1), (0, 0))),
    "other windows": lambda x, k, b: largest(nn.relu(conv(x, k) + b), (3, 3), (3, 3)),
    "steps of one": lambda x, k, b: largest(nn.relu(conv(x, k) + b), (2, 2), (1, 1)),
    "mean": lambda x, k, b: nn.avg_pool(nn.relu(conv(x, k) + b), (2, 2), (2, 2)),
    "used twice": lambda x, k, b: (lambda z: largest(z).mean() + z)(conv(x, k) + b),
    "convolution used twice": lambda x, k, b: (lambda z: largest(z + b).mean() + z)(conv(x, k)),
    "a result": lambda x, k, b: (lambda z: (largest(z + b), z))(conv(x, k)),
    "another activation": lambda x, k, b: largest(nn.gelu(conv(x, k) + b)),
    "an activation before the bias": lambda x, k, b: largest(nn.relu(conv(x, k)) + b),
    "another form": lambda x, k, b: largest(nn.relu(conv(x, k[..., :4]) + b[:4])),
}  # fmt: skip


@pytest.mark.parametrize("name", [*QUARTERS, *TOGETHER])
def test_which_take_the_largest_of_quarters(monkeypatch, name):
    monkeypatch.setattr(backends, "current", lambda: "cpu")
    made = []
    monkeypatch.setattr(conv_forms, "quarters", lambda *arguments: made.append(name) or quarters(*arguments))
    function = {**QUARTERS, **TOGETHER}[name]
    actual, expected = (
        value_and_gradients(f)(WIDE, MANY, BIASES) for f in (client_batched(function), function)
    )
    assert len(made) == {"twice": 2}.get(name, name in QUARTERS)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


def test_quarters_of_clients_with_weights_of_their_own(monkeypatch):
    monkeypatch.setattr(backends, "current", lambda: "cpu")
    own = [jnp.stack([leaf, -leaf, leaf / 2]) for leaf in (WIDE, MANY, BIASES)]
    actual, expected = (
        jax.jit(jax.vmap(value_and_gradients(f)))(*own)
        for f in (client_batched(QUARTERS["plain"]), QUARTERS["plain"])
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), actual, expected)


def test_of_equal_quarters_the_first_has_the_gradient(monkeypatch):
    """Blank images give equal values everywhere; which has the gradient shows in the images' own."""
    monkeypatch.setattr(backends, "current", lambda: "cpu")
    function = lambda x: largest(nn.relu(conv(x, MANY) + jnp.abs(BIASES))).sum()  # noqa: E731
    blank = jnp.zeros_like(WIDE)
    actual, expected = (jax.grad(f)(blank) for f in (client_batched(function), function))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


# --- numbers that are equal, and none ------------------------------------------------------------------------


@given(
    values=st.lists(st.sampled_from([-2.0, -1.0, -0.0, 0.0, 0.5, 1.0, np.inf, -np.inf, np.nan]), min_size=24, max_size=24),
    bias=st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=2, max_size=2),
    window=st.sampled_from([((2, 2), (2, 2), "VALID"), ((3, 2), (1, 2), "SAME"), ((2, 3), (2, 1), ((1, 0), (2, 1)))]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_ties_zeros_and_what_is_no_number(values, bias, window):
    """Values bit by bit; of equal values the first has the whole gradient, and at zero there is none.

    Where a value is no number, the gradient is not the function's, which means nothing there.
    """
    x, bias = jnp.asarray(values, jnp.float32).reshape(1, 3, 4, 2), jnp.asarray(bias, jnp.float32)
    function = lambda x, b: largest(nn.relu(x + b), *window)  # noqa: E731
    (one, pulled), (two, expected) = (jax.vjp(f, x, bias) for f in (client_batched(function), function))
    np.testing.assert_array_equal(one, two)
    if np.isnan(values).any():
        return
    weights = jnp.arange(1.0, one.size + 1).reshape(one.shape)
    for a, b in zip(pulled(weights), expected(weights), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
