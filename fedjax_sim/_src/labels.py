"""Labels beside outputs: of the same shape, as a list of which, and as 0 or 1 for each."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def several_hot(listed: jax.Array, count: int) -> jax.Array:
    """Lists of labels ``int[batch, most]``, padded below 0, as ``bool[batch, count]``: whether an example has a label.

    Raises:
      ValueError: they are no integers ``[batch, most]``.
    """
    if listed.ndim != 2 or not jnp.issubdtype(listed.dtype, jnp.integer):
        raise ValueError(
            f"the labels are {listed.dtype}{list(listed.shape)}, expected lists of integers [batch, most], padded with -1. "
            "For 0 or 1 in [batch, labels] give listed=False."
        )
    # Compared and not scattered: small, and the same in every order.
    return jnp.any(listed.astype(jnp.int32)[..., None] == jnp.arange(count, dtype=jnp.int32), axis=1)


def aligned(outputs: jax.Array, labels: jax.Array, label: str) -> jax.Array:
    """Outputs in the shape of the labels: ``[batch, 1]`` becomes ``[batch]``.

    Raises:
      ValueError: the shapes differ otherwise. Broadcasting would silently pair every output with every label.
    """
    if outputs.shape == (*labels.shape, 1):
        return outputs[..., 0]
    if outputs.shape != labels.shape:
        raise ValueError(
            f"the outputs have shape {list(outputs.shape)} and column {label!r} {list(labels.shape)}, "
            f"expected equal shapes, or outputs {[*labels.shape, 1]}."
        )
    return outputs
