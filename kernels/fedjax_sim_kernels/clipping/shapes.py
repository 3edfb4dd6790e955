"""Arguments of clipping and summing, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim_kernels import draws


class ClipShape(NamedTuple):
    """``updates: [clients, coordinates]``."""

    name: str
    clients: int
    coordinates: int
    dtype: str = "float32"

    def arguments(self, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Updates of which about half are longer than the bound, weights, the bound."""
        length = 0.2 + 1.8 * draws.uniform(seed, 0, self.clients, 1)
        rows = length * draws.normal(seed, 1, self.clients, self.coordinates)
        weights, bound = draws.uniform(seed, 2, self.clients), jnp.float32(self.coordinates**0.5)
        return jnp.asarray(rows, self.dtype), jnp.asarray(weights), bound


EDGE_CASES = (
    ClipShape("one", 1, 5),
    ClipShape("small", 3, 100),
    ClipShape("block", 4, 1024),
    ClipShape("blocks", 7, 2500),
    ClipShape("half", 4, 300, "bfloat16"),
)
MODELS = (ClipShape("emnist-16", 16, 1_206_590), ClipShape("mlp-64", 64, 199_210))
