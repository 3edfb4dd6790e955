"""What clipping and summing computes: each update clipped, then the sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def clip_and_sum(updates: jax.Array, weights: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Sum of ``weights[i] * updates[i] * min(1, bound / |updates[i]|)``.

    Args:
      updates: ``[clients, coordinates]``; one that is not finite counts as zero.
      weights: ``f32[clients]``.
      bound: ``f32[]``, largest L2 norm that is left as it is.

    Returns:
      The sum, ``f32[coordinates]``, and the norms before clipping, ``f32[clients]``, not finite where the update was not.
    """
    norms = jnp.sqrt(jnp.sum(jnp.square(updates.astype(jnp.float32)), axis=1))
    clipped = jax.vmap(_clipped, in_axes=(0, 0, None))(updates.astype(jnp.float32), norms, bound)
    return jnp.sum(weights[:, None] * clipped, axis=0), norms


def _clipped(update: jax.Array, norm: jax.Array, bound: jax.Array) -> jax.Array:
    scaled = update * jnp.minimum(1.0, bound / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    return jnp.where(jnp.isfinite(norm), scaled, 0.0)
