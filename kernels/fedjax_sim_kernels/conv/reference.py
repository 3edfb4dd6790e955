"""What a convolution computes."""

from __future__ import annotations

import jax
from jax import lax

from fedjax_sim_kernels.conv.spec import ConvSpec


def conv(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> jax.Array:
    """``lax.conv_general_dilated``: the vendor's grouped convolution, once ``vmap`` has gone over its kernels."""
    return lax.conv_general_dilated(
        lhs,
        rhs,
        spec.strides,
        spec.padding,
        lhs_dilation=spec.lhs_dilation,
        rhs_dilation=spec.rhs_dilation,
        dimension_numbers=spec.dimension_numbers,
        feature_group_count=spec.feature_group_count,
        batch_group_count=spec.batch_group_count,
        precision=spec.precision,
        preferred_element_type=spec.preferred_element_type,
    )
