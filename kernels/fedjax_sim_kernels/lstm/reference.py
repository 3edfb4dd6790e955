"""What the recurrence of a long short-term memory computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def lstm(inputs: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Hidden states of all times, from zero states.

    Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et al., 2000.

    Args:
      inputs: ``[time, batch, 4 * size]``, what the inputs and the bias add to the gates: input, forget, cell, output.
      recurrent: ``[size, 4 * size]``, what the previous hidden state is multiplied with.

    Returns:
      ``[time, batch, size]``.
    """
    zeros = jnp.zeros((inputs.shape[1], recurrent.shape[0]), inputs.dtype)

    def step(carry: tuple[jax.Array, jax.Array], gates: jax.Array):
        hidden, cell = carry
        i, f, g, o = jnp.split(gates + hidden @ recurrent, 4, axis=-1)
        cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
        hidden = jax.nn.sigmoid(o) * jnp.tanh(cell)
        return (hidden, cell), hidden

    return lax.scan(step, (zeros, zeros), inputs)[1]
