"""What clipping and summing computes: each update clipped, then the sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def clip_and_sum(updates: jax.Array, weights: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Arguments and results as those of ``clipping.clip_and_sum``."""
    norms = jnp.sqrt(jnp.sum(jnp.square(updates.astype(jnp.float32)), axis=1))
    clipped = jax.vmap(_clipped, in_axes=(0, 0, None))(updates.astype(jnp.float32), norms, bound)
    return jnp.sum(weights[:, None] * clipped, axis=0), norms


def _clipped(update: jax.Array, norm: jax.Array, bound: jax.Array) -> jax.Array:
    scaled = update * jnp.minimum(1.0, bound / jnp.maximum(norm, jnp.finfo(jnp.float32).tiny))
    return jnp.where(jnp.isfinite(norm), scaled, 0.0)
