"""Arguments of quantising and packing, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class PackShape(NamedTuple):
    """``x: f32[size]``."""

    name: str
    size: int
    bits: int

    def arguments(self, seed: int) -> tuple[jax.Array, jax.Array]:
        """Elements and the chance behind each rounding."""
        draw = np.random.default_rng(seed)
        return (
            jnp.asarray(draw.standard_normal(self.size, np.float32)),
            jnp.asarray(draw.random(self.size, np.float32)),
        )


EDGE_CASES = (
    PackShape("one", 1, 4),
    PackShape("a-word", 32, 1),
    PackShape("remainder", 37, 2),
    PackShape("bytes", 1000, 8),
    PackShape("blocks", 5000, 4),
    PackShape("halves", 777, 16),
)
MODELS = (PackShape("emnist-8", 1_206_590, 8), PackShape("emnist-1", 1_206_590, 1))
