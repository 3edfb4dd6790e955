"""Max pooling as elementwise selections between slices.

``lax.reduce_window`` and its gradient run on naive paths on CPU: twenty times slower than this.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from fedjax_sim_kernels.windows import Padding, resolve_padding, window_slices


def max_pool2d(
    x: jax.Array,
    window: tuple[int, int] = (2, 2),
    *,
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Largest value of each window; equals ``reference.max_pool2d``, and so does its gradient at ties.

    Args:
      x: ``[batch, height, width, channels]``, floating.
      window: height and width of the window.
      strides: steps of the window; those of the window itself when ``None``.
      padding: ``"VALID"``, ``"SAME"`` or ``((top, bottom), (left, right))``.

    Returns:
      ``[batch, out_height, out_width, channels]``. A window that holds NaN gives NaN.

    Raises:
      ValueError: the padded image is smaller than the window.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim_kernels import max_pool2d
    >>> max_pool2d(jnp.arange(16.0).reshape(1, 4, 4, 1))[0, :, :, 0].tolist()
    [[5.0, 7.0], [13.0, 15.0]]
    """
    strides = window if strides is None else strides
    rows, columns = resolve_padding(padding, x.shape[1:3], window, strides)
    if (rows, columns) != ((0, 0), (0, 0)):
        x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)), constant_values=-jnp.inf)
    return functools.reduce(_first_largest, window_slices(x, window, strides))


def _first_largest(first: jax.Array, second: jax.Array) -> jax.Array:
    # A selection sends the whole cotangent to the first of equal values, as the reference does; maximum would
    # split it. The comparison with itself lets NaN through.
    return jnp.where((second > first) | (second != second), second, first)
