"""Arguments of clipping and summing, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class ClipShape(NamedTuple):
    """``updates: [clients, coordinates]``."""

    name: str
    clients: int
    coordinates: int
    dtype: str = "float32"

    def arguments(self, seed: int) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Updates of which about half are longer than the bound, weights, the bound."""
        draw = np.random.default_rng(seed)
        rows = draw.standard_normal((self.clients, self.coordinates), np.float32)
        rows *= draw.uniform(0.2, 2.0, (self.clients, 1)).astype(np.float32)
        weights, bound = draw.random(self.clients, np.float32), np.sqrt(np.float32(self.coordinates))
        return jnp.asarray(rows, self.dtype), jnp.asarray(weights), jnp.asarray(bound)


EDGE_CASES = (
    ClipShape("one", 1, 5),
    ClipShape("small", 3, 100),
    ClipShape("block", 4, 1024),
    ClipShape("blocks", 7, 2500),
    ClipShape("half", 4, 300, "bfloat16"),
)
MODELS = (ClipShape("emnist-16", 16, 1_206_590), ClipShape("mlp-64", 64, 199_210))
