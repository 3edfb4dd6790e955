"""One row after the other. The remainder of a sum of two is a comparison and a subtraction, where a division takes some
thirty cycles; modulo a power of two it is a mask at the end, for the machine's own sums are modulo ``2**32``.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.modular.reference import check_modulus


def masked_sum(rows: jax.Array, valid: jax.Array, modulus: int) -> jax.Array:
    """Equals ``reference.masked_sum``."""
    check_modulus(modulus)

    def add(row: jax.Array, total: jax.Array) -> jax.Array:
        total = total + jnp.where(valid[row], rows[row], jnp.uint32(0))
        if modulus & (modulus - 1) == 0:
            return total
        return jnp.where(total >= jnp.uint32(modulus), total - jnp.uint32(modulus), total)

    total = lax.fori_loop(0, rows.shape[0], add, jnp.zeros(rows.shape[1:], jnp.uint32))
    return total & jnp.uint32(modulus - 1) if modulus & (modulus - 1) == 0 else total
