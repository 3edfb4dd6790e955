"""The recurrence with all that its gradient can know beforehand taken out of the loop.

The derivative of ``scan`` adds ``hidden_t^T @ gates_t`` to an accumulator of the size of the matrix at every step, and
for the small batches of clients that traffic costs as much as the products. The tangent of the pre-activations,

    d gates_t = d inputs_t + hidden_{t-1} @ d recurrent + d hidden_{t-1} @ recurrent,

needs ``d recurrent`` only in its second term, whose hidden states are known once the recurrence has run: one product
over all times, and so is its transpose, the gradient. The derivatives of the gates are known then, too, and are taken for
all times at once. All four gates of a time are one ``tanh``, of which a sigmoid is a half, so that no gate is a pass of
its own over the loop's product. The matrix is laid out once for the products of the loop, and once more for the third
term, whose transpose runs through the loop backwards and would meet it the wrong way round at every time. Forward mode
keeps working.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.products import panels, product


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
    size = recurrent.shape[0]
    zeros = jnp.zeros((inputs.shape[1], size), inputs.dtype)
    scales = _scales(size, inputs.dtype)
    weights = panels.panels(recurrent, rows=inputs.shape[1], times=inputs.shape[0])

    def step(carry: tuple[jax.Array, jax.Array], gates: jax.Array):
        hidden, cell = carry
        tanhs = jnp.tanh(scales * (gates + panels.product(hidden, weights)))
        i, f, g, o = _gates(tanhs)
        cell = f * cell + i * g
        hidden = o * jnp.tanh(cell)
        return (hidden, cell), (hidden, cell, tanhs)

    return lax.scan(step, (zeros, zeros), inputs)[1]


@lstm.defjvp
def _lstm_jvp(primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]):
    inputs, recurrent = primals
    d_inputs, d_recurrent = tangents
    hiddens, cells, tanhs = _run(inputs, recurrent)
    times, batch, size = hiddens.shape
    of_before = product(_before(hiddens).reshape(times * batch, size), d_recurrent)
    d_known = d_inputs + of_before.reshape(times, batch, 4 * size)
    turned = panels.turned(recurrent, rows=batch, times=times)

    def step(carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, _Slopes]):
        d_hidden, d_cell = carry
        d_known, slopes = at
        d_gates = d_known + panels.product_of_turned(d_hidden, turned)
        d_input, d_forget, d_new, d_output = jnp.split(slopes.gates * d_gates, 4, axis=-1)
        d_cell = slopes.kept * d_cell + d_input + d_forget + d_new
        d_hidden = d_output + slopes.cell * d_cell
        return (d_hidden, d_cell), d_hidden

    zeros = jnp.zeros_like(hiddens[0])
    _, d_hiddens = lax.scan(step, (zeros, zeros), (d_known, _slopes(tanhs, _before(cells), cells)))
    return hiddens, d_hiddens


class _Slopes(NamedTuple):
    """Derivatives of a time's new cell by the old one, of cell or hidden state by the gates, and of the hidden state by the cell."""

    kept: jax.Array
    gates: jax.Array
    cell: jax.Array


def _gates(tanhs: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Input, forget, cell and output gate; a sigmoid is ``tanh(x / 2) / 2 + 1 / 2``."""
    i, f, g, o = jnp.split(tanhs, 4, axis=-1)
    return 0.5 * i + 0.5, 0.5 * f + 0.5, g, 0.5 * o + 0.5


def _slopes(tanhs: jax.Array, before: jax.Array, cells: jax.Array) -> _Slopes:
    """Of all times, ``[time, batch, size]`` and, of the gates, ``[time, batch, 4 * size]``."""
    i, f, g, o = _gates(tanhs)
    c = jnp.tanh(cells)
    scales = _scales(cells.shape[-1], tanhs.dtype)
    gates = scales * scales * (1 - tanhs * tanhs) * jnp.concatenate([g, before, i, c], axis=-1)
    return _Slopes(f, gates, o * (1 - c * c))


def _before(states: jax.Array) -> jax.Array:
    """The state that each time starts from."""
    return jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])


def _scales(size: int, dtype) -> jax.Array:
    """What the gates are multiplied with before their ``tanh``, ``[4 * size]``."""
    return jnp.asarray([0.5] * 2 * size + [1.0] * size + [0.5] * size, dtype)
