"""Arguments of pooling, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

from jax import lax

from fedjax_sim_kernels.pooling.spec import Kind, PoolSpec
from fedjax_sim_kernels.windows import Ints, Pads


class PoolShape(NamedTuple):
    """``x: [batch, *image, channels]``; ``strides`` are those of the window unless given."""

    name: str
    x: Ints
    window: Ints = (2, 2)
    strides: Ints | None = None
    padding: str | Pads = "VALID"
    kinds: tuple[Kind, ...] = ("max", "sum")
    base_dilation: Ints | None = None
    window_dilation: Ints | None = None

    def spec(self, kind: Kind) -> PoolSpec:
        strides, ones = self.window if self.strides is None else self.strides, (1,) * len(self.window)
        apart, spread = self.base_dilation or ones, self.window_dilation or ones
        padding = self.padding
        if isinstance(padding, str):
            padding = tuple(lax.padtype_to_pads(self.x[1:-1], self.window, strides, padding))
        around = lambda values, edge: (edge, *values, edge)  # noqa: E731
        return PoolSpec(
            kind, around(self.window, 1), around(strides, 1), around(padding, (0, 0)), around(apart, 1),
            around(spread, 1),
        )  # fmt: skip


EVERY: tuple[Kind, ...] = ("max", "min", "sum")
EDGE_CASES = (
    PoolShape("remainder", (2, 7, 9, 3), kinds=EVERY),
    PoolShape("same", (2, 7, 5, 3), padding="SAME", kinds=EVERY),
    PoolShape("overlapping", (2, 8, 7, 3), (3, 3), (2, 2), kinds=EVERY),
    PoolShape("overlapping-same", (2, 8, 7, 3), (3, 2), (1, 1), "SAME"),
    PoolShape("explicit", (1, 6, 5, 2), (3, 3), (2, 1), ((1, 0), (0, 2))),
    PoolShape("stride-above-window", (2, 9, 9, 2), (2, 2), (3, 3)),
    PoolShape("window-is-image", (2, 4, 3, 2), (4, 3)),
    PoolShape("one-pixel", (2, 4, 3, 2), (1, 1)),
    PoolShape("dilated", (2, 9, 8, 2), (2, 3), (1, 2), kinds=("sum",), window_dilation=(3, 2)),
    PoolShape("1d", (3, 11, 2), (3,), (2,), "SAME"),
    PoolShape("3d", (2, 4, 5, 6, 2), (2, 2, 2), (2, 1, 2)),
)

MODELS = (
    PoolShape("emnist", (20, 24, 24, 64)),
    PoolShape("cifar10", (10, 28, 28, 64)),
    PoolShape("reference", (20, 26, 26, 32)),
    PoolShape("resnet", (16, 16, 16, 32), (3, 3), (2, 2), "SAME"),
    PoolShape("global-average", (16, 8, 8, 64), (8, 8), kinds=("sum",)),
)
