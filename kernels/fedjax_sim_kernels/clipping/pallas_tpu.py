"""The two passes as Pallas kernels for TPUs; written for Mosaic and never measured (``fedjax_sim_kernels/mosaic.py``)."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim_kernels.clipping.streamed import scales
from fedjax_sim_kernels.mosaic import LANES, over_blocks


def clip_and_sum(
    updates: jax.Array, weights: jax.Array, bound: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """Equals ``reference.clip_and_sum``; ``interpret`` runs it where there is no TPU."""
    squares = over_blocks(
        _squares, [updates], out=(len(updates), jnp.float32), narrow=True, interpret=interpret
    )
    norms = jnp.sqrt(jnp.sum(squares, axis=1))
    scale = scales(norms, weights, bound)[:, None]
    total = over_blocks(_scaled_sum, [updates], columns=[scale], out=(1, jnp.float32), interpret=interpret)
    return total[0], norms


def _squares(updates, out):
    """Sums over every 128th coordinate: a register is added to a register, and none is summed up."""
    parts = [
        jnp.square(updates[:, start : start + LANES].astype(jnp.float32))
        for start in range(0, updates.shape[1], LANES)
    ]
    out[...] = sum(parts[1:], parts[0])


def _scaled_sum(scale, updates, out):
    factor = scale[...]
    scaled = jnp.where(factor == 0, 0.0, factor * updates[...].astype(jnp.float32))
    out[...] = jnp.sum(scaled, axis=0, keepdims=True)
