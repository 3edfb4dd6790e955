"""Arguments of quantising and packing, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim_kernels import draws


class PackShape(NamedTuple):
    """``x: f32[size]``."""

    name: str
    size: int
    bits: int

    def arguments(self, seed: int) -> tuple[jax.Array, jax.Array]:
        """Elements and the chance behind each rounding."""
        return jnp.asarray(draws.normal(seed, 0, self.size)), jnp.asarray(draws.uniform(seed, 1, self.size))


EDGE_CASES = (
    PackShape("one", 1, 4),
    PackShape("a-word", 32, 1),
    PackShape("remainder", 37, 2),
    PackShape("bytes", 1000, 8),
    PackShape("blocks", 5000, 4),
    PackShape("halves", 777, 16),
)
MODELS = (PackShape("emnist-8", 1_206_590, 8), PackShape("emnist-1", 1_206_590, 1))
