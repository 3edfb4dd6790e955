"""What pooling computes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.pooling.spec import Kind, PoolSpec


def neutral(kind: Kind, dtype) -> float | int:
    """What padding holds: it never wins and adds nothing."""
    if kind == "sum":
        return 0
    lowest = -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).min)
    highest = jnp.inf if jnp.issubdtype(dtype, jnp.floating) else int(jnp.iinfo(dtype).max)
    return lowest if kind == "max" else highest


def pool(x: jax.Array, spec: PoolSpec) -> jax.Array:
    """``lax.reduce_window`` with maximum, minimum or sum."""
    operation = {"max": lax.max, "min": lax.min, "sum": lax.add}[spec.kind]
    # A concrete scalar of the dtype: the form from which JAX recognises the differentiable operations.
    return lax.reduce_window(
        x, x.dtype.type(neutral(spec.kind, x.dtype)), operation, spec.window, spec.strides, spec.padding,
        spec.base_dilation, spec.window_dilation,
    )  # fmt: skip
