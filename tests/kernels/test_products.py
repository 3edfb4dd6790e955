"""Products in other orders: values and derivatives are those of ``@``, under ``vmap`` and in forward mode."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import client_batched
from fedjax_sim_kernels.products import contract_p, panels, product, reference
from fedjax_sim_kernels.products.shapes import EDGE_CASES

SHAPES = {case.name: case for case in EDGE_CASES}
SMALL = SHAPES["small"]._replace(rows=4, depth=5, features=6)
CASES = pytest.mark.parametrize("shape", EDGE_CASES, ids=lambda case: case.name)


def arguments(shape, *clients, dtype="float32"):
    """Rows, weights, and weights of the outputs."""
    x, w = shape.arguments(0, *clients)
    weights = np.random.default_rng(1).standard_normal((*clients, shape.rows, shape.features), np.float32)
    return [value.astype(dtype) for value in (x, w, jnp.asarray(weights))]


def value_and_gradients(function, x, w, weights):
    total = lambda x, w: jnp.sum(weights * jnp.sin(function(x, w)))  # noqa: E731
    return function(x, w), *jax.grad(total, argnums=(0, 1))(x, w)


def assert_close(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = np.asarray(a), np.asarray(b)
        scale = np.max(np.abs(b), initial=1e-6)
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-5)


@CASES
def test_value_and_gradients(shape):
    given = arguments(shape)
    assert_close(
        jax.jit(lambda *a: value_and_gradients(product, *a))(*given),
        jax.jit(lambda *a: value_and_gradients(reference, *a))(*given),
    )


@CASES
def test_under_vmap_over_weights(shape):
    given = arguments(shape, 3)
    assert_close(
        jax.jit(jax.vmap(lambda *a: value_and_gradients(product, *a)))(*given),
        jax.jit(jax.vmap(lambda *a: value_and_gradients(reference, *a)))(*given),
    )


@CASES
def test_a_batch_of_products(shape):
    """Axes that are there in the program itself."""
    given = arguments(shape, 2)
    assert_close(
        jax.jit(lambda *a: value_and_gradients(product, *a))(*given),
        jax.jit(lambda *a: value_and_gradients(jax.vmap(reference), *a))(*given),
    )


@pytest.mark.parametrize("axes", [(0, None, 0), (None, 0, 0), (1, 2, 0)], ids=str)
def test_under_vmap_over_some_operands(axes):
    """Weights that all clients share, inputs that they share, and axes elsewhere."""
    given = [
        x[0] if axis is None else jnp.moveaxis(x, 0, axis)
        for x, axis in zip(arguments(SMALL, 3), axes, strict=True)
    ]
    batched = lambda f: jax.vmap(lambda *a: value_and_gradients(f, *a), in_axes=axes)(*given)  # noqa: E731
    assert_close(batched(product), batched(reference))


def test_shared_weights_are_one_product():
    x, w, _ = arguments(SMALL, 3)
    program = jax.make_jaxpr(jax.vmap(product, in_axes=(0, None)))(x, w[0])
    (equation,) = [e for e in program.eqns if e.primitive is contract_p]
    assert equation.invars[0].aval.shape == (12, 5) and equation.invars[1].aval.shape == (5, 6)


@pytest.mark.parametrize("name", ["small", "narrow", "wide"])
def test_forward_mode_and_second_derivatives(name):
    x, w, weights = arguments(SHAPES[name])

    def curvature(function):
        total = lambda w: jnp.sum(weights * jnp.sin(function(x, w)))  # noqa: E731
        direction = jnp.cos(jnp.arange(w.size, dtype=jnp.float32)).reshape(w.shape)
        return jax.jvp(total, (w,), (direction,))[1], jax.jvp(jax.grad(total), (w,), (direction,))[1]

    assert_close(curvature(product), curvature(reference))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_types(dtype):
    x, w, _ = arguments(SMALL, dtype=dtype)
    np.testing.assert_array_equal(product(x, w), x @ w)
    wide = product(x, w, preferred_element_type=jnp.float32)
    assert wide.dtype == jnp.float32


def test_precision_is_carried_into_the_gradients():
    x, w, _ = arguments(SMALL)
    gradient = jax.grad(lambda w: product(x, w, precision=jax.lax.Precision.HIGHEST).sum())
    equations = [e for e in jax.make_jaxpr(gradient)(w).eqns if e.primitive is contract_p]
    assert equations and all(e.params["precision"] == jax.lax.Precision.HIGHEST for e in equations)


def test_dense_layers_of_a_model_are_replaced():
    """Of any number of leading axes; a product of other axes stays what it is."""
    x, w = jnp.ones((2, 3, 5)), jnp.ones((5, 4))

    def model(x, w):
        return jnp.einsum("bti,bui->btu", x, x) @ (x @ w)

    names = [e.primitive.name for e in jax.make_jaxpr(client_batched(model))(x, w).eqns]
    assert names.count("contract") == 1 and names.count("dot_general") == 2
    np.testing.assert_allclose(client_batched(model)(x, w), model(x, w), rtol=1e-6)


def test_every_layout_has_the_shape_of_its_product():
    for layout, leading in itertools.product(("nn", "nt", "tn"), ((), (2,))):
        a, b = (4, 5) if layout != "tn" else (5, 4), (5, 6) if layout != "nt" else (6, 5)
        out = contract_p.bind(
            jnp.ones((*leading, *a)), jnp.ones((*leading, *b)), layout=layout, precision=None
        )
        assert out.shape == (*leading, 4, 6) and float(out.max()) == 5


@pytest.mark.parametrize("shape", [(2, 0, 3), (2, 5, 0)])
def test_shared_weights_and_nothing_to_multiply(shape):
    x, w = jnp.zeros(shape), jnp.zeros((shape[-1], 4))
    assert jax.vmap(product, in_axes=(0, None))(x, w).shape == (*shape[:2], 4)
    assert jax.vmap(jax.grad(lambda x, w: product(x, w).sum()), in_axes=(0, None))(x, w).shape == shape


def test_sums_in_64_bits():
    """``numpy`` takes None for float64: a wider sum that was asked for must not be lost to it."""
    with jax.enable_x64(True):
        x, w = jnp.ones((2, 3), jnp.float32), jnp.ones((3, 4), jnp.float32)
        assert product(x, w, preferred_element_type=np.dtype("float64")).dtype == jnp.float64
        assert product(x, w).dtype == jnp.float32


# --- weights in panels ---------------------------------------------------------------------------------------

IN_PANELS = {"panels": lambda w: panels.laid_out(w, 1), "turned": lambda w: panels.laid_out(w, 0)}
PRODUCTS = {"panels": panels.product, "turned": panels.product_of_turned}
FORMS = pytest.mark.parametrize("form", IN_PANELS)
PANELS = pytest.mark.parametrize("rows", [0, 1, 4])


def of_panels(form):
    """As a function of the weights as they are."""
    return lambda x, w: PRODUCTS[form](x, IN_PANELS[form](w))


@FORMS
@PANELS
def test_panels_equal_the_product(form, rows):
    given = arguments(SMALL._replace(rows=rows, depth=32, features=48))
    jitted = [jax.jit(lambda *a, f=f: value_and_gradients(f, *a)) for f in (of_panels(form), reference)]
    assert_close(*(f(*given) for f in jitted))


@FORMS
@pytest.mark.parametrize("axes", [(0, 0, 0), (0, None, 0), (None, 0, 0), (1, 2, 0)], ids=str)
def test_panels_under_vmap(form, axes):
    given = [
        x[0] if axis is None else jnp.moveaxis(x, 0, axis)
        for x, axis in zip(arguments(SMALL._replace(depth=16, features=32), 3), axes, strict=True)
    ]
    batched = lambda f: jax.vmap(lambda *a: value_and_gradients(f, *a), in_axes=axes)(*given)  # noqa: E731
    assert_close(batched(of_panels(form)), batched(reference))


@FORMS
@pytest.mark.parametrize("axes", [(0, 0), (0, None), (None, 0), (1, 2)], ids=str)
def test_gradients_of_a_batch_in_panels(form, axes):
    """Differentiated after ``vmap``, not before it."""
    x, w, weights = (
        x[0] if axis is None else jnp.moveaxis(x, 0, axis)
        for x, axis in zip(arguments(SMALL._replace(depth=16, features=32), 3), (*axes, 0), strict=True)
    )

    def gradients(function):
        batched = jax.vmap(function, in_axes=axes)
        return jax.grad(lambda x, w: jnp.sum(weights * jnp.sin(batched(x, w))), argnums=(0, 1))(x, w)

    assert_close(gradients(of_panels(form)), gradients(reference))


def test_panels_of_another_type_are_refused():
    with pytest.raises(TypeError, match="bfloat16 and float32 in panels, expected one dtype"):
        panels.product(jnp.ones((4, 32), jnp.bfloat16), jnp.ones((1, 32, 16)))


@FORMS
def test_panels_in_forward_mode_and_second_derivatives(form):
    given = arguments(SMALL._replace(depth=16, features=32))

    def curvature(function):
        total = lambda x, w: jnp.sum(given[2] * jnp.sin(function(x, w)))  # noqa: E731
        gradient = jax.grad(total, argnums=(0, 1))
        return jax.tree.leaves(jax.jvp(gradient, given[:2], [jnp.cos(x) for x in given[:2]]))

    assert_close(curvature(of_panels(form)), curvature(reference))


def test_panels_are_what_they_say(panels_everywhere):
    w = jnp.arange(32 * 48, dtype=jnp.float32).reshape(32, 48)
    for laid, matrix in ((panels.panels(w, rows=4, times=1), w), (panels.turned(w, rows=4, times=1), w.T)):
        assert laid.ndim == 3
        for number, panel in enumerate(laid):
            np.testing.assert_array_equal(panel, matrix[:, 16 * number : 16 * number + 16])


@pytest.mark.parametrize(
    ("shape", "dtype", "rows", "times"),
    [
        ((32, 40), "float32", 4, 9),
        ((32, 48), "bfloat16", 4, 9),
        ((32, 48), "float32", 1, 9),
        ((32, 48), "float32", 65, 9),
    ],
    ids=["no whole panel", "narrow numbers", "one row", "many rows"],
)
def test_what_stays_out_of_panels(shape, dtype, rows, times, panels_everywhere):
    w = jnp.ones(shape, dtype)
    assert panels.panels(w, rows, times) is w
    assert panels.turned(w.T, rows, times).shape == shape


def test_small_weights_and_short_loops_stay_out_of_panels(monkeypatch):
    monkeypatch.setattr(panels, "_makes_products", lambda: True)
    monkeypatch.setattr(panels.backends, "current", lambda: "cpu")
    w = jnp.ones((256, 256))
    assert panels.panels(w, rows=4, times=16).shape == (16, 256, 16)
    assert panels.panels(w, rows=4, times=15) is w and panels.panels(w[:255], rows=4, times=16).ndim == 2
    monkeypatch.setattr(panels, "_makes_products", lambda: False)
    assert panels.panels(w, rows=4, times=16) is w
    monkeypatch.setattr(panels.backends, "current", lambda: "nvidia")
    assert panels.panels(w, rows=4, times=16) is w


AFTER = {
    "sine": jnp.sin,
    "mean": lambda y: y - y.mean(-1, keepdims=True),
    "mean of rows": lambda y: y - y.mean(0),
    "normalised": lambda y: (y - y.mean(-1, keepdims=True)) / jnp.sqrt(1e-3 + y.var(-1, keepdims=True)),
}


@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("weights", [1, 4])
def test_products_in_panels_are_the_librarys(weights, after):
    """Of rows that meet several weights, too, and with a sum behind: what would be added up is neither written nor made twice."""
    if jax.default_backend() != "cpu" or not panels._makes_products():
        pytest.skip("this compiler makes a loop of a sum of products")

    def loop(h, ws):
        step = lambda h, _: (jnp.tanh(sum(AFTER[after](panels.product(h, w)) for w in ws)), None)  # noqa: E731
        return jax.lax.scan(step, h, length=20)[0]

    given = jnp.ones((4, 256)), [jnp.ones((16, 256, 16))] * weights
    program = jax.jit(loop).lower(*given).compile()
    text = program.as_text()
    assert text.count(" f32[4,16,256,16]{3,2,1,0} multiply(") == weights
    assert program.memory_analysis().temp_size_in_bytes < 4 * 4 * 256 * 256
