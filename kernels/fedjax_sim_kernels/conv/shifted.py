"""Convolution as a sum of shifted products, one per offset of the window, without a buffer of patches.

With one input channel per group (a depthwise convolution) the products are elementwise, and nothing is better; else
they are matrix products whose depth is the number of channels alone.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.conv.spec import ConvSpec, plain, restored
from fedjax_sim_kernels.windows import window_slices


def supports(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> bool:
    """Every convolution but those over groups of rows."""
    return spec.batch_group_count == 1


def conv(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Equals ``reference.conv`` for what it supports; sums are taken in the wider of the two types."""
    x, kernel = plain(lhs, rhs, spec)
    *window, into, out = kernel.shape
    groups = spec.feature_group_count
    shifts = window_slices(x, (1, *window, 1), (1, *spec.strides, 1), (1, *spec.rhs_dilation, 1))
    kernels = kernel.reshape(math.prod(window), into, out)
    total = None
    for shift, one in zip(shifts, kernels, strict=True):
        product = _product(shift, one, groups, spec)
        total = product if total is None else total + product
    assert total is not None
    return restored(total, spec)


def _product(shift: jax.Array, kernel: jax.Array, groups: int, spec: ConvSpec) -> jax.Array:
    *positions, channels = shift.shape
    into, out = kernel.shape
    if into == 1:
        wide = spec.preferred_element_type or shift.dtype
        copies = shift if out == groups else jnp.repeat(shift, out // groups, axis=-1)
        return copies.astype(wide) * kernel[0].astype(wide)
    rows = math.prod(positions)
    exact = {"precision": spec.precision, "preferred_element_type": spec.preferred_element_type}
    if groups == 1:
        product = lax.dot_general(shift.reshape(rows, channels), kernel, (((1,), (0,)), ((), ())), **exact)
        return product.reshape(*positions, out)
    product = lax.dot_general(
        shift.reshape(rows, groups, into),
        kernel.reshape(into, groups, out // groups),
        (((2,), (0,)), ((1,), (1,))),
        **exact,
    )
    return product.transpose(1, 0, 2).reshape(*positions, out)
