"""What a two-dimensional convolution computes."""

from __future__ import annotations

import jax
from jax import lax

from fedjax_sim_kernels.windows import Padding, resolve_padding


def conv2d(
    x: jax.Array, kernel: jax.Array, *, strides: tuple[int, int] = (1, 1), padding: Padding = "SAME"
) -> jax.Array:
    """Cross-correlates images with a kernel, as ``lax.conv_general_dilated`` does.

    Args:
      x: ``[batch, height, width, in_channels]``.
      kernel: ``[kernel_height, kernel_width, in_channels, out_channels]``, of the dtype of ``x``.
      strides: steps of the window along height and width.
      padding: ``"VALID"``, ``"SAME"`` or ``((top, bottom), (left, right))``.

    Returns:
      ``[batch, out_height, out_width, out_channels]``.

    Raises:
      ValueError: the padded image is smaller than the window.
    """
    pads = resolve_padding(padding, x.shape[1:3], kernel.shape[:2], strides)
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=("NHWC", "HWIO", "NHWC"))
