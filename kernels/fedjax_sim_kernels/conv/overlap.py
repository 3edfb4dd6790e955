"""Transposed convolution: every pixel is multiplied once with the whole kernel, and the results are laid over each other.

As slices of the dilated image, most of the products would be with the zeros between its elements.
"""

from __future__ import annotations

import itertools
import math

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.conv.spec import ConvSpec, plain, restored


def supports(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> bool:
    """Dilated images with a window that takes every step."""
    return spec.batch_group_count == 1 and spec.feature_group_count == 1 and set(spec.strides) == {1}


def conv(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """Equals ``reference.conv`` for what it supports."""
    x, kernel = plain(lhs, rhs, spec, pad=False)
    batch, *space, into = x.shape
    *window, _, out = kernel.shape
    products = lax.dot_general(
        x.reshape(-1, into),
        kernel.reshape(math.prod(window), into, out).transpose(1, 0, 2).reshape(into, -1),
        (((1,), (0,)), ((), ())),
        precision=spec.precision,
        preferred_element_type=spec.preferred_element_type,
    ).reshape(batch, *space, math.prod(window), out)
    total, zero = None, jnp.zeros((), products.dtype)
    for index, offset in enumerate(itertools.product(*map(range, window))):
        # Output o of an axis sees element p at offset k where p * lhs_dilation + low = o + k * rhs_dilation.
        config = []
        for size, extent, place, (low, high), apart, spread in zip(
            space, window, offset, spec.padding, spec.lhs_dilation, spec.rhs_dilation, strict=True
        ):
            length = (size - 1) * apart + 1
            positions = length + low + high - (extent - 1) * spread
            before = low - place * spread
            config.append((before, positions - length - before, apart - 1))
        laid = lax.pad(products[..., index, :], zero, [(0, 0, 0), *config, (0, 0, 0)])
        total = laid if total is None else total + laid
    assert total is not None
    return restored(total, spec)
