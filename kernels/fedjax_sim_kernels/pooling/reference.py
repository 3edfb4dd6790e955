"""What max pooling computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.windows import Padding, resolve_padding


def max_pool2d(
    x: jax.Array,
    window: tuple[int, int] = (2, 2),
    *,
    strides: tuple[int, int] | None = None,
    padding: Padding = "VALID",
) -> jax.Array:
    """Largest value of each window, as ``lax.reduce_window`` gives; padding never wins.

    Args:
      x: ``[batch, height, width, channels]``, floating.
      window: height and width of the window.
      strides: steps of the window; those of the window itself when ``None``.
      padding: ``"VALID"``, ``"SAME"`` or ``((top, bottom), (left, right))``.

    Returns:
      ``[batch, out_height, out_width, channels]``.

    Raises:
      ValueError: the padded image is smaller than the window.
    """
    strides = window if strides is None else strides
    pads = resolve_padding(padding, x.shape[1:3], window, strides)
    # A concrete scalar of the dtype: the form from which JAX recognises the differentiable maximum.
    return lax.reduce_window(
        x, x.dtype.type(-jnp.inf), lax.max, (1, *window, 1), (1, *strides, 1), ((0, 0), *pads, (0, 0))
    )
