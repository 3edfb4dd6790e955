"""What a masked modular sum computes: a remainder after every addition."""

from __future__ import annotations

import jax
import jax.numpy as jnp

LARGEST = 2**31


def check_modulus(modulus: int) -> None:
    """Raises ``ValueError`` unless two elements can be added without an overflow, or the overflow is the modulus."""
    if not (2 <= modulus <= LARGEST or modulus == 2**32):
        raise ValueError(f"modulus is {modulus}, expected an integer from 2 to 2**31, or 2**32.")


def masked_sum(rows: jax.Array, valid: jax.Array, modulus: int) -> jax.Array:
    """Arguments and result as those of ``modular.masked_sum``."""
    check_modulus(modulus)
    mask = valid.reshape((-1,) + (1,) * (rows.ndim - 1))
    rows = jnp.where(mask, rows, jnp.uint32(0))
    total = jnp.zeros(rows.shape[1:], jnp.uint32)
    for row in rows:
        total = total + row
        total = total if modulus == 2**32 else total % jnp.uint32(modulus)
    return total
