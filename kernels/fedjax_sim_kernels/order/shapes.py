"""Arguments of order statistics, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim_kernels import draws
from fedjax_sim_kernels.windows import Ints


class RowsShape(NamedTuple):
    """``rows: f32[rows, *coordinates]``, of which the last ``absent`` are not there."""

    name: str
    rows: int
    coordinates: Ints
    absent: int = 0

    def arguments(self, seed: int) -> tuple[jax.Array, jax.Array]:
        """Random rows and which of them are there."""
        there = [row < self.rows - self.absent for row in range(self.rows)]
        return jnp.asarray(draws.normal(seed, 0, self.rows, *self.coordinates)), jnp.asarray(there)


EDGE_CASES = (
    RowsShape("one", 1, (7,)),
    RowsShape("two", 2, (3, 5)),
    RowsShape("odd", 9, (31,)),
    RowsShape("even-absent", 9, (31,), 3),
    RowsShape("nobody", 4, (5,), 4),
    RowsShape("scalar", 5, ()),
    RowsShape("blocks", 16, (3, 5000), 2),
    RowsShape("many", 64, (1500,), 7),
    RowsShape("more", 100, (600,), 1),
)

MODELS = (
    RowsShape("emnist-10", 10, (1_206_590,)),
    RowsShape("emnist-20", 20, (1_206_590,)),
    RowsShape("mlp-50", 50, (199_210,)),
    RowsShape("mlp-100", 100, (199_210,)),
)
