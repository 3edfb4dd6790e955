import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels.pooling import reference, slices
from fedjax_sim_kernels.pooling.shapes import EDGE_CASES, MODELS


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradient(max_pool2d, case, x):
    def total(x):
        y = max_pool2d(x, case.window, strides=case.strides, padding=case.padding)
        return jnp.sum(y * jnp.arange(y.size, dtype=y.dtype).reshape(y.shape)), y

    gradient, y = jax.grad(total, has_aux=True)(x)
    return y, gradient


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@pytest.mark.parametrize("case", EDGE_CASES + MODELS, ids=lambda case: case.name)
def test_slices_equal_the_reference(case, ties):
    x = jax.random.normal(jax.random.key(0), case.x)
    x = jnp.round(jax.nn.relu(x)) if ties else x
    for actual, expected in zip(
        value_and_gradient(slices.max_pool2d, case, x),
        value_and_gradient(reference.max_pool2d, case, x),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_slices_equal_the_reference_under_vmap(case):
    x = jax.random.normal(jax.random.key(0), (3, *case.x))
    batched = jax.vmap(lambda x: value_and_gradient(slices.max_pool2d, case, x))(x)
    for client in range(3):
        for actual, expected in zip(
            batched, value_and_gradient(reference.max_pool2d, case, x[client]), strict=True
        ):
            np.testing.assert_allclose(actual[client], expected, rtol=1e-6)


@pytest.mark.parametrize("position", range(4))
def test_nan_is_passed_on(position):
    x = jnp.zeros(4).at[position].set(jnp.nan).reshape(1, 2, 2, 1)
    assert np.isnan(slices.max_pool2d(x)).all()


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"height of the image is 1 .* smaller than the window's, 2"):
        slices.max_pool2d(jnp.zeros((1, 1, 4, 1)))
