"""What the recurrence of a long short-term memory computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def gates_to_state(gates: jax.Array, cell: jax.Array) -> tuple[jax.Array, jax.Array]:
    """One step's new hidden and cell state, ``[batch, size]`` each, from pre-activations ``[batch, 4 * size]``.

    The gates stand in the order input, forget, cell, output.
    """
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
    return jax.nn.sigmoid(o) * jnp.tanh(cell), cell


def lstm(inputs: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Hidden states of all times, from zero states.

    Hochreiter and Schmidhuber, "Long short-term memory", 1997, with the forget gate of Gers et al., 2000.

    Args:
      inputs: ``[time, batch, 4 * size]``, what the inputs and the bias add to the gates.
      recurrent: ``[size, 4 * size]``, what the previous hidden state is multiplied with.

    Returns:
      ``[time, batch, size]``.
    """
    zeros = jnp.zeros((inputs.shape[1], recurrent.shape[0]), inputs.dtype)

    def step(carry: tuple[jax.Array, jax.Array], gates: jax.Array):
        hidden, cell = gates_to_state(gates + carry[0] @ recurrent, carry[1])
        return (hidden, cell), hidden

    return lax.scan(step, (zeros, zeros), inputs)[1]
