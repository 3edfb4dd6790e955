"""The recurrence with all that its gradient can know beforehand taken out of the loop.

The derivative of ``scan`` adds ``hidden_t^T @ gates_t`` to an accumulator of the size of the matrix at every step, and
for the small batches of clients that traffic costs as much as the products. The tangent of the pre-activations,

    d gates_t = d inputs_t + hidden_{t-1} @ d recurrent + d hidden_{t-1} @ recurrent,

needs ``d recurrent`` only in its second term, whose hidden states are known once the recurrence has run: one product
over all times, and so is its transpose, the gradient. The derivatives of the gates are known then, too, and are taken for
all times at once. The matrix is transposed once for the third term, whose transpose runs through the loop backwards and
would meet it the wrong way round at every time. Forward mode keeps working.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.lstm.reference import gates_to_state
from fedjax_sim_kernels.products import product


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
    times, batch, size = hiddens.shape
    of_before = product(_before(hiddens).reshape(times * batch, size), d_recurrent)
    d_known = d_inputs + of_before.reshape(times, batch, 4 * size)
    turned = jnp.transpose(recurrent)

    def step(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, _Slopes]):
        d_hidden, d_cell = carry
        d_known, slopes = at
        d_gates = d_known + lax.dot_general(d_hidden, turned, (((1,), (1,)), ((), ())))
        d_input, d_forget, d_new, d_output = jnp.split(d_gates, 4, axis=-1)
        d_cell = slopes.kept * d_cell + slopes.input * d_input + slopes.forget * d_forget + slopes.new * d_new
        d_hidden = slopes.output * d_output + slopes.cell * d_cell
        return (d_hidden, d_cell), d_hidden

    zeros = jnp.zeros_like(hiddens[0])
    _, d_hiddens = lax.scan(step, (zeros, zeros), (d_known, _slopes(gates, _before(cells), cells)))
    return hiddens, d_hiddens


class _Slopes(NamedTuple):
    """Derivatives of a time's new cell by the old one and by its gates, and of the hidden state by output gate and cell."""

    kept: jax.Array
    input: jax.Array
    forget: jax.Array
    new: jax.Array
    output: jax.Array
    cell: jax.Array


def _slopes(gates: jax.Array, before: jax.Array, cells: jax.Array) -> _Slopes:
    """Of all times, ``[time, batch, size]`` each."""
    i, f, g, o = jnp.split(gates, 4, axis=-1)
    i, f, g, o, c = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o), jnp.tanh(cells)
    return _Slopes(
        kept=f,
        input=g * i * (1 - i),
        forget=before * f * (1 - f),
        new=i * (1 - g * g),
        output=c * o * (1 - o),
        cell=o * (1 - c * c),
    )


def _before(states: jax.Array) -> jax.Array:
    """The state that each time starts from."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
