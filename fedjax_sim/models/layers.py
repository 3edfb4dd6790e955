"""Layers on this project's kernels, with the parameters of their flax namesakes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from fedjax_sim_kernels.conv import conv2d
from fedjax_sim_kernels.lstm import lstm
from fedjax_sim_kernels.pooling import max_pool2d
from fedjax_sim_kernels.windows import Padding
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax.nn.initializers import Initializer

__all__ = ["LSTM", "Conv", "max_pool"]


class Conv(nn.Module):
    """A two-dimensional convolution; parameters and numbers are those of ``flax.linen.Conv``.

    ``[batch, height, width, in_channels]`` to ``[batch, out_height, out_width, features]``. It stays fast where
    ``flax.linen.Conv`` does not: under ``vmap`` over clients' kernels, and inside compiled loops on CPU.

    Attributes:
      features: number of output channels.
      kernel_size: height and width of the window.
      strides: steps of the window.
      padding: ``"VALID"``, ``"SAME"`` or ``((top, bottom), (left, right))``.
      use_bias: whether a bias is added.
      kernel_init: initialises ``kernel: f32[height, width, in_channels, features]``.
      bias_init: initialises ``bias: f32[features]``.
    """

    features: int
    kernel_size: tuple[int, int] = (3, 3)
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "SAME"
    use_bias: bool = True
    kernel_init: Initializer = nn.initializers.lecun_normal()
    bias_init: Initializer = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (*self.kernel_size, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, jnp.float32)
        bias = self.param("bias", self.bias_init, (self.features,), jnp.float32) if self.use_bias else None
        x, kernel, bias = promote_dtype(x, kernel, bias)
        y = conv2d(x, kernel, strides=self.strides, padding=self.padding)
        return y if bias is None else y + bias


def max_pool(
    x: jax.Array,
    window: tuple[int, int] = (2, 2),
    *,
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Largest value of each window, ``[batch, height, width, channels]`` to the same with fewer pixels.

    Unlike in ``flax.linen.max_pool``, the strides are those of the window unless given.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim.models.layers import max_pool
    >>> max_pool(jnp.zeros((1, 8, 8, 3))).shape
    (1, 4, 4, 3)
    """
    return max_pool2d(x, window, strides=strides, padding=padding)


class LSTM(nn.Module):
    """A long short-term memory over the time axis, ``f32[batch, time, in]`` to ``f32[batch, time, features]``.

    Starts from zeros. The four gates (input, forget, cell, output) are one product, and the inputs of all times are
    multiplied before the recurrence starts. The forget gate's bias starts at 1 (Jozefowicz, Zaremba and Sutskever,
    "An empirical exploration of recurrent network architectures", 2015).

    Attributes:
      features: size of the hidden and of the cell state.
    """

    features: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        size = self.features
        kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], 4 * size), jnp.float32)
        recurrent = self.param(
            "recurrent_kernel", nn.initializers.orthogonal(), (size, 4 * size), jnp.float32
        )
        bias = self.param("bias", _forget_gate_at_one, (4 * size,), jnp.float32)
        inputs = jnp.moveaxis(x @ kernel + bias, 1, 0)
        return jnp.moveaxis(lstm(inputs, recurrent), 0, 1)


def _forget_gate_at_one(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    del key
    size = shape[0] // 4
    return jnp.zeros(shape, dtype).at[size : 2 * size].set(1)
