"""Arguments of modular sums, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim_kernels import draws
from fedjax_sim_kernels.windows import Ints


class ModularShape(NamedTuple):
    """``rows: uint32[rows, *coordinates]`` below ``modulus``; every third is not there."""

    name: str
    rows: int
    coordinates: Ints
    modulus: int

    def arguments(self, seed: int) -> tuple[jax.Array, jax.Array]:
        """Rows and which of them are there."""
        bits = draws.bits(seed, 0, self.rows, *self.coordinates)
        rows = bits if self.modulus == 2**32 else bits % self.modulus
        return jnp.asarray(rows), jnp.asarray([row % 3 != 2 for row in range(self.rows)])


EDGE_CASES = (
    ModularShape("one", 1, (5,), 7),
    ModularShape("power", 6, (33,), 2**16),
    ModularShape("word", 5, (33,), 2**32),
    ModularShape("half-word", 9, (3, 500), 2**31),
    ModularShape("prime", 9, (2500,), 2**31 - 1),
    ModularShape("two", 4, (9,), 2),
)
MODELS = (
    ModularShape("emnist-100-power", 100, (120_000,), 2**24),
    ModularShape("emnist-100-prime", 100, (120_000,), 2**31 - 1),
)
