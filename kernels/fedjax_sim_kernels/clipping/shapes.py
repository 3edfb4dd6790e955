"""Arguments of clipping and summing, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax


class ClipShape(NamedTuple):
    """``updates: [clients, coordinates]``."""

    name: str
    clients: int
    coordinates: int
    dtype: str = "float32"

    def arguments(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Updates of which about half are longer than the bound, weights, the bound."""
        one, two, three = jax.random.split(key, 3)
        length = jax.random.uniform(one, (self.clients, 1), minval=0.2, maxval=2.0)
        rows = jax.random.normal(two, (self.clients, self.coordinates)) * length
        bound = jax.numpy.sqrt(jax.numpy.float32(self.coordinates))
        return rows.astype(self.dtype), jax.random.uniform(three, (self.clients,)), bound


EDGE_CASES = (
    ClipShape("one", 1, 5),
    ClipShape("small", 3, 100),
    ClipShape("block", 4, 1024),
    ClipShape("blocks", 7, 2500),
    ClipShape("half", 4, 300, "bfloat16"),
)
MODELS = (ClipShape("emnist-16", 16, 1_206_590), ClipShape("mlp-64", 64, 199_210))
