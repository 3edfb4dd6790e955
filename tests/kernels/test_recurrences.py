"""Loops over time: the gradient of their weights is taken behind the loop, and is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import as_written, client_batched
from flax import linen as nn
from flax import nnx
from jax import lax
from jax.extend.core import jaxprs_in_params

KEY = jax.random.key(0)
BATCH, TIMES, INPUTS, SIZE = 3, 6, 4, 5
X = jax.random.normal(jax.random.key(1), (TIMES, BATCH, INPUTS))
W = jax.random.normal(KEY, (SIZE, SIZE)) / 2
U = jax.random.normal(jax.random.key(2), (INPUTS, SIZE)) / 2
H = jax.random.normal(jax.random.key(3), (BATCH, SIZE))


def accumulated(function, *arguments):
    """Shapes that loops of a gradient's program carry from time to time."""
    found = []

    def walk(program):
        for equation in program.eqns:
            if equation.primitive.name == "scan":
                found.extend(v.aval.shape for v in equation.outvars)
            for inner in jaxprs_in_params(equation.params):
                walk(inner)

    gradient = jax.grad(lambda *a: total(function(*a)), argnums=tuple(range(len(arguments))))
    walk(jax.make_jaxpr(gradient)(*arguments).jaxpr)
    return found


def total(results):
    leaves = [leaf for leaf in jax.tree.leaves(results) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    return sum(jnp.sum(jnp.sin(leaf.astype(jnp.float32))) for leaf in leaves)


def near(actual, expected, tolerance=1e-5):
    """To a share of the largest number."""
    actual, expected = (np.asarray(leaf, np.float32) for leaf in (actual, expected))
    np.testing.assert_allclose(
        actual, expected, rtol=0, atol=tolerance * max(1, np.abs(expected).max(initial=0))
    )


def same(function, *arguments):
    """Values, gradients, tangents, and gradients of gradients."""
    batched = client_batched(function)
    jax.tree.map(near, jax.jit(batched)(*arguments), jax.jit(function)(*arguments))
    shift = jax.tree.map(lambda leaf: jnp.full_like(leaf, 0.1), arguments)
    found = []
    for f in (batched, function):
        gradient = jax.grad(lambda *a, f=f: total(f(*a)), argnums=tuple(range(len(arguments))))
        square = lambda *a, g=gradient: sum(jnp.vdot(leaf, leaf) for leaf in jax.tree.leaves(g(*a)))  # noqa: E731
        along = jax.jvp(lambda *a, f=f: total(f(*a)), arguments, shift)
        found.append(jax.jit(lambda g=gradient, s=square: (g(*arguments), jax.grad(s)(*arguments)))() + along)
    jax.tree.map(near, *found)


# --- flax's layers -------------------------------------------------------------------------------------------

CELLS = (nn.LSTMCell, nn.OptimizedLSTMCell, nn.GRUCell, nn.MGUCell, nn.SimpleCell)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_linen_layer(cell, reverse):
    layer = nn.RNN(cell(SIZE), time_major=True, reverse=reverse, keep_order=reverse)
    variables = layer.init(KEY, X)
    same(layer.apply, variables, X)
    shapes = {leaf.shape for leaf in jax.tree.leaves(variables) if leaf.ndim == 2}
    assert shapes & set(accumulated(layer.apply, variables, X))
    assert not shapes & set(accumulated(client_batched(layer.apply), variables, X))


@pytest.mark.parametrize("cell", [nnx.LSTMCell, nnx.OptimizedLSTMCell, nnx.GRUCell, nnx.SimpleCell])
def test_an_nnx_layer(cell):
    layer = nnx.RNN(cell(INPUTS, SIZE, rngs=nnx.Rngs(0)), time_major=True)
    graph, weights, rest = nnx.split(layer, nnx.Param, ...)

    def apply(weights, x):
        # A copy: counters of random numbers belong to the trace that they are made in.
        return nnx.merge(graph, weights, jax.tree.map(lambda leaf: leaf, rest))(x)

    same(apply, weights, X)
    assert not {leaf.shape for leaf in jax.tree.leaves(weights) if leaf.ndim == 2} & set(
        accumulated(client_batched(apply), weights, X)
    )


def test_two_layers_of_clients_with_weights_of_their_own():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(7, INPUTS)(tokens)
            for _ in range(2):
                x = nn.RNN(nn.OptimizedLSTMCell(SIZE))(x)
            return nn.Dense(7)(x)

    tokens = jnp.arange(2 * BATCH * TIMES).reshape(2, BATCH, TIMES) % 7
    variables = Model().init(KEY, tokens[0])
    own = jax.tree.map(lambda leaf: jnp.stack([leaf, -leaf]), variables)
    step = lambda apply: jax.jit(jax.vmap(jax.grad(lambda v, t: total(apply(v, t)))))(own, tokens)  # noqa: E731
    jax.tree.map(near, step(client_batched(Model().apply)), step(Model().apply))


def test_dropout_of_every_time_is_the_same():
    class Cell(nn.RNNCellBase):
        @nn.compact
        def __call__(self, carry, x):
            h = jnp.tanh(nn.Dense(SIZE)(nn.Dropout(0.5, deterministic=False)(carry)) + nn.Dense(SIZE)(x))
            return h, h

        @nn.nowrap
        def initialize_carry(self, rng, input_shape):
            return jnp.zeros((*input_shape[:-1], SIZE))

        @property
        def num_feature_axes(self):
            return 1

    layer = nn.RNN(Cell(), time_major=True, split_rngs={"params": False, "dropout": True})
    variables = layer.init({"params": KEY, "dropout": KEY}, X)
    same(lambda v, x: layer.apply(v, x, rngs={"dropout": KEY}), variables, X)


# --- loops of one's own --------------------------------------------------------------------------------------


def scanned(body, length=None, **settings):
    """Of ``body(h, x, w, u)``, as a function of all three."""

    def function(w, u, h, x):
        return lax.scan(lambda h, x: body(h, x, w, u), h, x, length, **settings)

    return function


def step(h, x, w, u):
    h = jnp.tanh(h @ w + x @ u)
    return h, h


def joined(h, x, w, u):
    h = jnp.tanh(jnp.concatenate([h, x], -1) @ jnp.concatenate([w, u]))
    return h, h


def counted(h, x, w, u):
    h, _ = step(h, x, w, u)
    return h, jnp.argmax(h, -1)


def nested(h, x, w, u):
    return lax.scan(lambda h, _: (jnp.tanh(h @ w + x @ u), None), h, length=2)[0], x


TAKEN = {
    "plain": step,
    "joined": joined,
    "joined weights": lambda h, x, w, u: step(h, x, jnp.concatenate([w[:2], w[2:]]), u),
    "turned weights": lambda h, x, w, u: step(h, x, w.T, u),
    "weights twice": lambda h, x, w, u: step(jnp.tanh(h @ w), x, w, u),
    "rows that meet several weights": lambda h, x, w, u: step(h, jax.nn.sigmoid(h @ w[:, :2]) @ w[:2, :4], w, u),
    "weights elsewhere, too": lambda h, x, w, u: step(h + w[0] * w.sum(), x, w, u),
    "inputs that are made": lambda h, x, w, u: step(h, jnp.cos(x), w, u),
    "rows of both": lambda h, x, w, u: step(h + x[:, :1], x, w, u),
    "without inputs": lambda h, x, w, u: (jnp.tanh(h @ w + u[0]), None),
    "integers beside it": counted,
    "no gradient of the inputs": lambda h, x, w, u: step(h, lax.stop_gradient(x), w, u),
    "no gradient of the state": lambda h, x, w, u: step(lax.stop_gradient(h), x, w, u),
    "no gradient of the weights": lambda h, x, w, u: step(h, x, lax.stop_gradient(w), u),
    "more axes": lambda h, x, w, u: (lambda y: (y[0], y))(step(jnp.stack([h, -h]), jnp.stack([x, x]), w, u)[0]),
    "a loop in a loop": nested,
}  # fmt: skip
LEFT = {
    "no recurrence": lambda h, x, w, u: (h, jnp.tanh(x @ u @ w)),
    "a product inside a checkpoint": lambda h, x, w, u: (jax.checkpoint(lambda h, w: jnp.tanh(h @ w))(h, w), x),
    "a vector": lambda h, x, w, u: (h.at[0].set(jnp.tanh(h[0] @ w)), x),
    "from the left": lambda h, x, w, u: (jnp.tanh((w.T @ h.T).T), x),
    "another type": lambda h, x, w, u: (
        jnp.tanh(lax.dot(h.astype(jnp.bfloat16), w.astype(jnp.bfloat16), preferred_element_type=jnp.float32)), x),
    "printed": lambda h, x, w, u: (jax.debug.print("{}", h[0, 0]), step(h, x, w, u))[1],
}  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
@pytest.mark.parametrize("settings", [{}, {"reverse": True}, {"unroll": 4}], ids=str)
def test_what_is_taken_apart(name, settings):
    function = scanned(TAKEN[name], **settings)
    same(function, W, U, H, X)
    if name not in ("weights elsewhere, too", "a loop in a loop"):
        assert W.shape not in accumulated(client_batched(function), W, U, H, X)


@pytest.mark.parametrize("name", TAKEN)
def test_weights_in_panels(name, panels_everywhere):
    """Of sixteen features, which is what a panel takes."""
    w, u = (jax.random.normal(jax.random.key(n), (size, 16)) / 8 for n, size in enumerate((16, INPUTS)))
    function, h = scanned(TAKEN[name]), jax.random.normal(KEY, (BATCH, 16))
    same(function, w, u, h, X)
    forth = str(jax.make_jaxpr(client_batched(function))(w, u, h, X)).count("layout=product")
    gradient = jax.grad(lambda *a: total(client_batched(function)(*a)), argnums=(0, 1, 2))
    text = str(jax.make_jaxpr(gradient)(w, u, h, X))
    # Backwards the turned weights' panels are multiplied as those of the weights are forth.
    back = 0 if name in ("joined", "no gradient of the state") else forth
    assert forth > 0 and text.count("layout=product") == forth + back
    assert "layout=turned" not in text and "layout=gradient" not in text


@pytest.mark.parametrize("name", ["plain", "rows that meet several weights"])
def test_a_batch_that_shares_weights_in_panels(name, panels_everywhere):
    """Differentiated after ``vmap``."""
    w, u = (jax.random.normal(jax.random.key(n), (size, 16)) / 8 for n, size in enumerate((16, INPUTS)))
    h, xs = jax.random.normal(KEY, (BATCH, 16)), jnp.stack([X, -X])

    def batch(function):
        return lambda w, xs: jax.vmap(lambda x: function(w, u, h, x))(xs)

    gradients = [
        jax.grad(lambda *a, f=f: total(batch(f)(*a)), argnums=(0, 1))(w, xs)
        for f in (client_batched(scanned(TAKEN[name])), scanned(TAKEN[name]))
    ]
    jax.tree.map(near, *gradients)


@pytest.mark.parametrize("name", LEFT)
def test_what_stays(name):
    function = scanned(LEFT[name])
    text = str(jax.make_jaxpr(client_batched(function))(W, U, H, X))
    assert "custom_jvp_call" not in text
    if name not in ("another type", "printed"):
        same(function, W, U, H, X)


def test_rows_that_meet_several_weights_meet_them_at_once():
    """As the gates of a cell do."""
    layer = nn.RNN(nn.LSTMCell(SIZE), time_major=True)
    program = jax.make_jaxpr(client_batched(layer.apply))(layer.init(KEY, X), X)
    assert str(program).count("= contract[") == 1 + 4  # of what is carried, and of the inputs


def test_it_is_the_weights_alone_that_leave_the_loop():
    plain, batched = (accumulated(f, W, U, H, X) for f in (scanned(step), client_batched(scanned(step))))
    assert W.shape in plain and U.shape in plain
    assert W.shape not in batched and U.shape not in batched


@pytest.mark.parametrize("length", [0, 1, 2])
def test_few_times(length):
    same(scanned(step), W, U, H, X[:length])


def test_a_carried_or_changing_matrix_stays():
    """Neither is the same at all times."""
    decay = lambda c, _: ((c[0] * 0.9, jnp.tanh(c[1] @ c[0])), None)  # noqa: E731
    carried = lambda w, h: lax.scan(decay, (w, h), length=3)[0]  # noqa: E731
    changing = lambda w, h: lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, jnp.stack([w, -w]))[0]  # noqa: E731
    for function in (carried, changing):
        assert "custom_jvp_call" not in str(jax.make_jaxpr(client_batched(function))(W, H))
        same(function, W, H)


def test_in_half_precision():
    arguments = [leaf.astype(jnp.bfloat16) for leaf in (W, U, H, X)]
    gradient = lambda f: jax.grad(lambda *a: total(f(*a)), argnums=(0, 1))(*arguments)  # noqa: E731
    exact = jax.grad(lambda *a: total(scanned(step)(*a)), argnums=(0, 1))(W, U, H, X)
    actual = gradient(client_batched(scanned(step)))
    assert {leaf.dtype for leaf in actual} == {jnp.dtype(jnp.bfloat16)}
    for a, b in zip(actual, exact, strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("checked", [True, False])
def test_devices_that_share_the_weights(checked):
    mesh = jax.sharding.Mesh(jax.devices()[:1], ("devices",))
    rows, shared = jax.sharding.PartitionSpec("devices"), jax.sharding.PartitionSpec()

    def gradient(function):
        body = lambda w, u, h, x: jax.grad(lambda w: total(function(w, u, h[0], x[0])))(w)[None]  # noqa: E731
        specs = (shared, shared, rows, rows)
        return jax.shard_map(body, mesh=mesh, in_specs=specs, out_specs=rows, check_vma=checked)(
            W, U, H[None], X[None]
        )

    np.testing.assert_allclose(
        gradient(client_batched(scanned(step))), gradient(scanned(step)), rtol=1e-5, atol=1e-5
    )


def test_what_stays_as_written():
    with as_written():
        assert "custom_jvp_call" not in str(jax.make_jaxpr(client_batched(scanned(step)))(W, U, H, X))
