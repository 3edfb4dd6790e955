"""Two passes over the updates: their norms, then each is scaled and added to the sum. No clipped update is ever stored.

One update after the other: a reduction over the first axis, with the scaling inside, runs fifteen times slower on CPU. On a GPU it is the loop
that takes two to six times as long.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def scales(norms: jax.Array, weights: jax.Array, bound: jax.Array) -> jax.Array:
    """What each update is multiplied with; 0 for one that is not finite."""
    factor = jnp.minimum(1.0, bound / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny))
    return jnp.where(jnp.isfinite(norms), weights * factor, 0.0)


def clip_and_sum(updates: jax.Array, weights: jax.Array, bound: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Equals ``reference.clip_and_sum``."""
    norms = jnp.sqrt(jnp.sum(jnp.square(updates.astype(jnp.float32)), axis=1))
    scale = scales(norms, weights, bound)

    def add(client: jax.Array, total: jax.Array) -> jax.Array:
        # The selection stands inside: zero times infinity is NaN.
        return total + jnp.where(scale[client] == 0, 0.0, scale[client] * updates[client].astype(jnp.float32))

    return lax.fori_loop(0, updates.shape[0], add, jnp.zeros(updates.shape[1:], jnp.float32)), norms
