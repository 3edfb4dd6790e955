"""What a product computes."""

from __future__ import annotations

from typing import Any

import jax
from jax import lax


def product(
    rows: jax.Array, weights: jax.Array, *, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """``rows @ weights``; arguments as those of ``contract.product``."""
    return lax.dot_general(rows, weights, (((1,), (0,)), ((), ())), precision, preferred_element_type)
