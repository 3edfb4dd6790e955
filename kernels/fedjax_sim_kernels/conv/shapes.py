"""Arguments of convolutions, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

from fedjax_sim_kernels.windows import Padding


class ConvShape(NamedTuple):
    """``x: f32[batch, *image, in_channels]``, ``kernel: f32[*window, in_channels, out_channels]``."""

    name: str
    batch: int
    image: tuple[int, int]
    window: tuple[int, int]
    in_channels: int
    out_channels: int
    strides: tuple[int, int] = (1, 1)
    padding: Padding = "VALID"

    @property
    def x(self) -> tuple[int, int, int, int]:
        return (self.batch, *self.image, self.in_channels)

    @property
    def kernel(self) -> tuple[int, int, int, int]:
        return (*self.window, self.in_channels, self.out_channels)


EDGE_CASES = (
    ConvShape("1x1", 2, (5, 5), (1, 1), 3, 4),
    ConvShape("same", 2, (8, 8), (3, 3), 1, 4, padding="SAME"),
    ConvShape("same-even-window", 2, (7, 6), (2, 4), 2, 3, padding="SAME"),
    ConvShape("same-strided", 2, (9, 8), (3, 3), 2, 3, (2, 2), "SAME"),
    ConvShape("valid-strided-remainder", 2, (10, 9), (3, 2), 2, 3, (2, 3)),
    ConvShape("stride-above-window", 2, (9, 9), (2, 2), 2, 3, (3, 3)),
    ConvShape("explicit", 2, (6, 7), (3, 3), 2, 3, (1, 2), ((2, 0), (1, 3))),
    ConvShape("window-is-image", 3, (4, 5), (4, 5), 2, 3),
    ConvShape("one-example", 1, (6, 6), (5, 5), 3, 2, padding="SAME"),
)

MODELS = (
    ConvShape("emnist-1", 20, (28, 28), (3, 3), 1, 32),
    ConvShape("emnist-2", 20, (26, 26), (3, 3), 32, 64),
    ConvShape("cifar10-1", 10, (32, 32), (3, 3), 3, 32),
    ConvShape("cifar10-2", 10, (30, 30), (3, 3), 32, 64),
    ConvShape("digits-1", 20, (8, 8), (3, 3), 1, 32, padding="SAME"),
    ConvShape("digits-2", 20, (4, 4), (3, 3), 32, 64, padding="SAME"),
)
