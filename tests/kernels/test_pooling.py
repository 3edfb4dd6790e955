"""Pooling as slices equals the reference, value and gradient, over one list of shapes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import pooling
from fedjax_sim_kernels.pooling import reference, slices
from fedjax_sim_kernels.pooling.shapes import EDGE_CASES, MODELS, PoolShape

CASES = [(case, kind) for case in EDGE_CASES + MODELS for kind in case.kinds]
IDS = [f"{case.name}-{kind}" for case, kind in CASES]
SMALL = [(case, kind) for case in EDGE_CASES for kind in case.kinds]


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradient(pool, spec, x):
    def total(x):
        y = pool(x, spec)
        return jnp.sum(y * jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)), y

    gradient, y = jax.grad(total, has_aux=True)(x)
    return y, gradient


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6 * float(jnp.max(jnp.abs(b))))


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize(("case", "kind"), CASES, ids=IDS)
def test_pooling_equals_the_reference(case, kind, ties):
    x = jax.random.normal(jax.random.key(0), case.x)
    x, spec = jnp.round(jax.nn.relu(x)) if ties else x, case.spec(kind)
    assert pooling.choose(x, spec)[0] != "reference"
    assert_equal(value_and_gradient(pooling.pool, spec, x), value_and_gradient(reference.pool, spec, x))


@pytest.mark.parametrize(("case", "kind"), SMALL, ids=[f"{c.name}-{k}" for c, k in SMALL])
def test_pooling_equals_the_reference_under_vmap(case, kind):
    x, spec = jax.random.normal(jax.random.key(0), (3, *case.x)), case.spec(kind)
    batched = jax.vmap(lambda x: value_and_gradient(pooling.pool, spec, x))(x)
    for client in range(3):
        expected = value_and_gradient(reference.pool, spec, x[client])
        assert_equal([leaf[client] for leaf in batched], expected)


DILATED = {
    "image": PoolShape("image", (2, 4, 5, 2), (3, 2), (1, 2), ((1, 0), (0, 1)), base_dilation=(2, 3)),
    "window": PoolShape("window", (2, 9, 8, 2), (2, 3), (1, 2), window_dilation=(3, 2)),
}


@pytest.mark.parametrize("kind", ["max", "min", "sum"])
@pytest.mark.parametrize("name", DILATED)
def test_dilated_images_and_windows_have_a_value(name, kind):
    """JAX itself has no gradient of a maximum with dilation."""
    case = DILATED[name]
    x = jax.random.normal(jax.random.key(0), case.x)
    np.testing.assert_allclose(slices.pool(x, case.spec(kind)), reference.pool(x, case.spec(kind)), rtol=1e-6)


@pytest.mark.parametrize("kind", ["max", "min", "sum"])
def test_integers_are_pooled_exactly(kind):
    case = PoolShape("bytes", (2, 5, 5, 3), (3, 3), (2, 2), "SAME")
    x = jax.random.randint(jax.random.key(0), case.x, 0, 100, jnp.int32)
    got = pooling.pool(x, case.spec(kind))
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, reference.pool(x, case.spec(kind)))


@pytest.mark.parametrize("kind", ["max", "min"])
@pytest.mark.parametrize("position", range(4))
def test_nan_is_passed_on(kind, position):
    x = jnp.zeros(4).at[position].set(jnp.nan).reshape(1, 2, 2, 1)
    assert np.isnan(pooling.pool(x, PoolShape("two", x.shape).spec(kind))).all()


def test_large_windows_are_the_references():
    case = PoolShape("large", (1, 12, 12, 1), (9, 9), (1, 1))
    assert pooling.choose(jnp.zeros(case.x), case.spec("max")) == ("reference", "a window of 9 x 9")
