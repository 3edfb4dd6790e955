"""The recurrence with the gradient of its matrix taken once, after the loop.

The derivative of ``scan`` adds ``hidden_t^T @ gates_t`` to an accumulator of the size of the matrix at every step, and
for the small batches of clients that traffic costs as much as the products. The tangent of the pre-activations,

    d gates_t = d inputs_t + hidden_{t-1} @ d recurrent + d hidden_{t-1} @ recurrent,

needs ``d recurrent`` only in its second term, whose hidden states are known once the recurrence has run: one product
over all times, and so is its transpose, the gradient. Forward mode keeps working.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.lstm.reference import gates_to_state


@jax.custom_jvp
def lstm(inputs: jax.Array, recurrent: jax.Array) -> jax.Array:
    """Hidden states of all times, from zero states; equals ``reference.lstm``.

    Args:
      inputs: ``[time, batch, 4 * size]``, what the inputs and the bias add to the gates: input, forget, cell, output.
      recurrent: ``[size, 4 * size]``, what the previous hidden state is multiplied with.

    Returns:
      ``[time, batch, size]``.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim_kernels import lstm
    >>> lstm(jnp.zeros((80, 4, 1024)), jnp.zeros((256, 1024))).shape
    (80, 4, 256)
    """
    return _run(inputs, recurrent)[0]


def _run(inputs: jax.Array, recurrent: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    zeros = jnp.zeros((inputs.shape[1], recurrent.shape[0]), inputs.dtype)

    def step(carry: tuple[jax.Array, jax.Array], gates: jax.Array):
        gates = gates + carry[0] @ recurrent
        hidden, cell = gates_to_state(gates, carry[1])
        return (hidden, cell), (hidden, cell, gates)

    return lax.scan(step, (zeros, zeros), inputs)[1]


@lstm.defjvp
def _lstm_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]):
    inputs, recurrent = primals
    d_inputs, d_recurrent = tangents
    hiddens, cells, gates = _run(inputs, recurrent)
    d_known = d_inputs + _before(hiddens) @ d_recurrent

    def step(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array, jax.Array]):
        d_hidden, d_cell = carry
        d_known, gates, cell = at
        d_gates = d_known + d_hidden @ recurrent
        _, (d_hidden, d_cell) = jax.jvp(gates_to_state, (gates, cell), (d_gates, d_cell))
        return (d_hidden, d_cell), d_hidden

    zeros = jnp.zeros_like(hiddens[0])
    _, d_hiddens = lax.scan(step, (zeros, zeros), (d_known, gates, _before(cells)))
    return hiddens, d_hiddens


def _before(states: jax.Array) -> jax.Array:
    """The state that each time starts from."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
