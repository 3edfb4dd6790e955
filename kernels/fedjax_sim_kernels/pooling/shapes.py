"""Arguments of pooling, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

from fedjax_sim_kernels.windows import Padding


class PoolShape(NamedTuple):
    """``x: f32[*x]``."""

    name: str
    x: tuple[int, int, int, int]
    window: tuple[int, int] = (2, 2)
    strides: tuple[int, int] | None = None
    padding: Padding = "VALID"


EDGE_CASES = (
    PoolShape("remainder", (2, 7, 9, 3)),
    PoolShape("same", (2, 7, 5, 3), padding="SAME"),
    PoolShape("overlapping", (2, 8, 7, 3), (3, 3), (2, 2)),
    PoolShape("overlapping-same", (2, 8, 7, 3), (3, 2), (1, 1), "SAME"),
    PoolShape("explicit", (1, 6, 5, 2), (3, 3), (2, 1), ((1, 0), (0, 2))),
    PoolShape("stride-above-window", (2, 9, 9, 2), (2, 2), (3, 3)),
    PoolShape("window-is-image", (2, 4, 3, 2), (4, 3)),
    PoolShape("one-pixel", (2, 4, 3, 2), (1, 1)),
)

MODELS = (
    PoolShape("emnist", (20, 24, 24, 64)),
    PoolShape("cifar10", (10, 28, 28, 64)),
    PoolShape("reference", (20, 26, 26, 32)),
)
