"""What order statistics over rows are: by sorting each coordinate."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def median(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Arguments and result as those of ``order.median``."""
    ordered, count = _ordered(rows, valid)
    low, high = ordered[jnp.maximum((count - 1) // 2, 0)], ordered[jnp.minimum(count // 2, rows.shape[0] - 1)]
    return middle(low, high, count)


def middle(low: jax.Array, high: jax.Array, count: jax.Array) -> jax.Array:
    """Half way between the middle two: infinite where both are, and no overflow where they are large."""
    return jnp.where(count > 0, jnp.where(low == high, low, low / 2 + high / 2), 0).astype(low.dtype)


def trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array) -> jax.Array:
    """Arguments and result as those of ``order.trimmed_mean``."""
    ordered, count = _ordered(rows, valid)
    place = jnp.arange(rows.shape[0]).reshape((-1,) + (1,) * (rows.ndim - 1))
    kept = (place >= trim) & (place < count - trim)
    total = jnp.sum(jnp.where(kept, ordered, 0), axis=0, dtype=jnp.promote_types(rows.dtype, jnp.float32))
    return (total / jnp.maximum(count - 2 * trim, 1)).astype(rows.dtype)


def _ordered(rows: jax.Array, valid: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ascending along the rows, absent rows last, and how many are there."""
    mask = valid.reshape((-1,) + (1,) * (rows.ndim - 1))
    rows = jnp.where(mask, jnp.where(jnp.isnan(rows), jnp.inf, rows), jnp.inf)
    return jnp.sort(rows, axis=0), jnp.sum(valid, dtype=jnp.int32)
