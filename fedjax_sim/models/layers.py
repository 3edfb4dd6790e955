"""Layers on this project's kernels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from fedjax_sim_kernels.lstm import lstm
from flax import linen as nn

__all__ = ["LSTM"]


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
