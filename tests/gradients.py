"""A convolution's value and gradients, and how they are compared; for the tests of its forms."""

import functools

import jax
import jax.numpy as jnp
import numpy as np


@functools.partial(jax.jit, static_argnums=(0, 1))
def value_and_gradients(function, spec, x, kernel):
    # The cotangent depends on the value and on where it stands.
    def total(x, kernel):
        y = function(x, kernel, spec)
        return jnp.sum(jnp.sin(y + (jnp.arange(y.size) % 7).astype(y.dtype).reshape(y.shape))), y

    gradients, y = jax.grad(total, argnums=(0, 1), has_aux=True)(x, kernel)
    return y, *gradients


def assert_equal(actual, expected):
    for name, a, b in zip(("value", "input", "kernel"), actual, expected, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype, name
        a, b = np.asarray(a), np.asarray(b)
        scale = np.max(np.abs(b), initial=1e-6)
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-5, err_msg=name)
