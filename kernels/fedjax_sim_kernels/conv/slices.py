"""Convolution as slices and one matrix product (im2col).

Chellapilla, Puri and Simard, "High performance convolutional neural networks for document processing", 2006.

Why not ``lax.conv_general_dilated``: under ``vmap`` over per-client kernels it becomes a grouped convolution, and on
CPU a convolution inside a compiled loop runs on one naive path. One product of depth ``offsets * channels``
beats a sum of shallow products, one per offset. The derivatives are left to JAX: the transpose of the slices
is a sum of pads that XLA fuses into one pass over the image, which was twice as fast as a hand-written backward
convolution, and forward mode keeps working.
"""

from __future__ import annotations

import math

import jax
from jax import lax

from fedjax_sim_kernels.conv.spec import ConvSpec, plain, restored
from fedjax_sim_kernels.products import product
from fedjax_sim_kernels.windows import patches


def supports(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> bool:
    """Every convolution but those over groups of rows."""
    return spec.batch_group_count == 1


def conv(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Equals ``reference.conv`` for what it supports.

    >>> import jax.numpy as jnp
    >>> from jax import lax
    >>> from fedjax_sim_kernels.conv import ConvSpec, slices
    >>> x, kernel = jnp.ones((2, 28, 28, 1)), jnp.ones((3, 3, 1, 32))
    >>> axes = lax.conv_dimension_numbers(x.shape, kernel.shape, ("NHWC", "HWIO", "NHWC"))
    >>> slices.conv(x, kernel, ConvSpec((1, 1), ((0, 0), (0, 0)), (1, 1), (1, 1), axes)).shape
    (2, 26, 26, 32)
    """
    x, kernel = plain(lhs, rhs, spec)
    *window, into, out = kernel.shape
    groups, offsets = spec.feature_group_count, math.prod(window)
    columns = patches(x, tuple(window), spec.strides, spec.rhs_dilation)
    *positions, _, _ = columns.shape
    rows = math.prod(positions)
    exact = {"precision": spec.precision, "preferred_element_type": spec.preferred_element_type}
    if groups == 1:
        # Two-dimensional operands: the CPU's product of [batch, *positions, depth] is a fifth slower.
        result = product(columns.reshape(rows, offsets * into), kernel.reshape(offsets * into, out), **exact)
    else:
        columns = columns.reshape(rows, offsets, groups, into).transpose(2, 0, 1, 3)
        kernel = kernel.reshape(offsets, into, groups, out // groups).transpose(2, 0, 1, 3)
        result = lax.dot_general(
            columns.reshape(groups, rows, offsets * into),
            kernel.reshape(groups, offsets * into, out // groups),
            (((2,), (1,)), ((0,), (0,))),
            **exact,
        ).transpose(1, 0, 2)
    return restored(result.reshape(*positions, out), spec)
