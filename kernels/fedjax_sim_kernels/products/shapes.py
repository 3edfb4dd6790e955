"""Arguments of products, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim_kernels import draws
from fedjax_sim_kernels.products.contract import LARGE, NARROW, TALL_DEPTH, WIDE


class ProductShape(NamedTuple):
    """``rows: f32[rows, depth]``, ``weights: f32[depth, features]``."""

    name: str
    rows: int
    depth: int
    features: int

    def arguments(self, seed: int, *clients: int) -> tuple[jax.Array, jax.Array]:
        """Rows and weights, with leading axes for clients where asked."""
        rows = draws.normal(seed, 0, *clients, self.rows, self.depth)
        weights = draws.normal(seed, 1, *clients, self.depth, self.features) / self.depth**0.5
        return jnp.asarray(rows), jnp.asarray(weights, jnp.float32)


# On both sides of every limit of a form.
EDGE_CASES = (
    ProductShape("small", 3, 4, 5),
    ProductShape("one", 1, 1, 1),
    ProductShape("narrow", 20, 70, NARROW),
    ProductShape("wide", 20, 30, NARROW + 1),
    ProductShape("large", LARGE // 4096 + 1, 4096, 20),
    ProductShape("tall", TALL_DEPTH, 24, 20),
    ProductShape("tall-and-wide", TALL_DEPTH, 20, 24),
    ProductShape("tall-and-very-wide", TALL_DEPTH, 20, WIDE),
    ProductShape("empty", 0, 3, 4),
)

MODELS = (
    ProductShape("logistic", 10, 60, 10),
    ProductShape("linear", 20, 784, 10),
    ProductShape("mlp", 20, 784, 200),
    ProductShape("emnist-dense", 20, 9216, 128),
    ProductShape("lstm", 320, 256, 1024),
    ProductShape("patches", 11520, 288, 64),
)
