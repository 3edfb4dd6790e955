import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels.conv import reference, slices
from fedjax_sim_kernels.conv.shapes import EDGE_CASES, MODELS

CASES = pytest.mark.parametrize("case", EDGE_CASES + MODELS, ids=lambda case: case.name)


def arguments(case, *batch):
    keys = jax.random.split(jax.random.key(0), 2)
    return tuple(jax.random.normal(k, (*batch, *s)) for k, s in zip(keys, (case.x, case.kernel), strict=True))


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(conv2d, case, x, kernel):
    # The cotangent depends on the value and on where it stands.
    def total(x, kernel):
        y = conv2d(x, kernel, strides=case.strides, padding=case.padding)
        return jnp.mean(jnp.sin(y + (jnp.arange(y.size) % 7).astype(y.dtype).reshape(y.shape))), y

    gradients, y = jax.grad(total, argnums=(0, 1), has_aux=True)(x, kernel)
    return y, *gradients


def assert_equal(actual, expected):
    for name, a, b in zip(("value", "input", "kernel"), actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        scale = np.max(np.abs(b))
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-5, err_msg=name)


@CASES
def test_slices_equal_the_reference(case):
    x, kernel = arguments(case)
    assert_equal(
        value_and_gradients(slices.conv2d, case, x, kernel),
        value_and_gradients(reference.conv2d, case, x, kernel),
    )


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_slices_equal_the_reference_under_vmap_over_kernels(case):
    x, kernel = arguments(case, 3)
    batched = jax.vmap(lambda x, k: value_and_gradients(slices.conv2d, case, x, k))(x, kernel)
    for client in range(3):
        expected = value_and_gradients(reference.conv2d, case, x[client], kernel[client])
        assert_equal([leaf[client] for leaf in batched], expected)


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_forward_mode_equals_the_reference(case):
    x, kernel = arguments(case)
    tangents = arguments(case._replace(name="tangent"))

    def tangent(conv2d):
        return jax.jvp(
            lambda x, k: conv2d(x, k, strides=case.strides, padding=case.padding), (x, kernel), tangents
        )[1]

    np.testing.assert_allclose(tangent(slices.conv2d), tangent(reference.conv2d), rtol=1e-4, atol=1e-4)


def test_no_convolution_is_left_in_the_compiled_loop():
    case = next(case for case in MODELS if case.name == "digits-2")
    x, kernel = arguments(case, 4)

    def train(x, kernel):
        def step(_, kernel):
            grad = jax.vmap(jax.grad(lambda k, x: jnp.sum(slices.conv2d(x, k) ** 2)))(kernel, x)
            return kernel - 0.1 * grad

        return jax.lax.fori_loop(0, 3, step, kernel)

    assert "convolution" not in jax.jit(train).lower(x, kernel).as_text()


def test_bfloat16_stays_bfloat16():
    x, kernel = (a.astype(jnp.bfloat16) for a in arguments(EDGE_CASES[1]))
    assert slices.conv2d(x, kernel).dtype == jnp.bfloat16


def test_a_window_larger_than_the_image_is_refused():
    with pytest.raises(ValueError, match=r"width of the image is 2 .* smaller than the window's, 3"):
        slices.conv2d(jnp.zeros((1, 3, 2, 1)), jnp.zeros((3, 3, 1, 1)), padding="VALID")


@pytest.mark.parametrize("padding", ["FULL", ((1, 1),), ((0, 0), (-1, 0))])
def test_unknown_padding_is_refused(padding):
    with pytest.raises(ValueError, match="padding is"):
        slices.conv2d(jnp.zeros((1, 4, 4, 1)), jnp.zeros((3, 3, 1, 1)), padding=padding)


def test_channels_and_dtypes_must_fit():
    with pytest.raises(ValueError, match=r"float32\[1, 4, 4, 2\] and kernel float32\[3, 3, 1, 1\]"):
        slices.conv2d(jnp.zeros((1, 4, 4, 2)), jnp.zeros((3, 3, 1, 1)))
