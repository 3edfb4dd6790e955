"""Arguments of convolutions, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels import draws
from fedjax_sim_kernels.conv.spec import ConvSpec
from fedjax_sim_kernels.windows import Ints, Pads


class ConvShape(NamedTuple):
    """``x: [batch, *image, in_channels]``, ``kernel: [*window, in_channels / groups, out_channels]``, as flax has them."""

    name: str
    batch: int
    image: Ints
    window: Ints
    in_channels: int
    out_channels: int
    strides: Ints | int = 1
    padding: str | Pads = "VALID"
    lhs_dilation: Ints | int = 1
    rhs_dilation: Ints | int = 1
    groups: int = 1
    layout: tuple[str, str, str] | None = None
    dtype: str = "float32"

    @property
    def x(self) -> Ints:
        return (self.batch, *self.image, self.in_channels)

    @property
    def kernel(self) -> Ints:
        return (*self.window, self.in_channels // self.groups, self.out_channels)

    @property
    def spec(self) -> ConvSpec:
        """The settings of the convolution of these ``arguments``."""
        strides, apart, spread = map(self._per_axis, (self.strides, self.lhs_dilation, self.rhs_dilation))
        padding = self.padding
        if isinstance(padding, str):
            spans = [(extent - 1) * step + 1 for extent, step in zip(self.window, spread, strict=True)]
            padding = tuple(lax.padtype_to_pads(self.image, spans, strides, padding))
        numbers = lax.conv_dimension_numbers(self.x, self.kernel, self.layout or _channels_last(self.image))
        return ConvSpec(strides, padding, apart, spread, numbers, self.groups)

    def arguments(self, seed: int, *clients: int) -> tuple[jax.Array, jax.Array]:
        """Random ``x`` and ``kernel`` in the order of ``layout``, with leading axes for clients where asked."""
        found, last = [], _channels_last(self.image)
        layouts = zip(last, self.layout or last, strict=True)
        for place, (shape, (now, wanted)) in enumerate(zip((self.x, self.kernel), layouts, strict=False)):
            value = draws.normal(seed, place, *clients, *shape)
            order = (len(clients) + now.index(axis) for axis in wanted)
            found.append(jnp.asarray(value.transpose(*range(len(clients)), *order), self.dtype))
        return found[0], found[1]

    def _per_axis(self, value: Ints | int) -> Ints:
        return (value,) * len(self.image) if isinstance(value, int) else value


def _channels_last(image: Ints) -> tuple[str, str, str]:
    space = "DHW"[-len(image) :]
    return f"N{space}C", f"{space}IO", f"N{space}C"


EDGE_CASES = (
    ConvShape("1x1", 2, (5, 5), (1, 1), 3, 4),
    ConvShape("1x1-strided", 2, (7, 6), (1, 1), 3, 4, (2, 3)),
    ConvShape("same", 2, (8, 8), (3, 3), 1, 4, padding="SAME"),
    ConvShape("same-even-window", 2, (7, 6), (2, 4), 2, 3, padding="SAME"),
    ConvShape("same-strided", 2, (9, 8), (3, 3), 2, 3, 2, "SAME"),
    ConvShape("valid-strided-remainder", 2, (10, 9), (3, 2), 2, 3, (2, 3)),
    ConvShape("stride-above-window", 2, (9, 9), (2, 2), 2, 3, 3),
    ConvShape("tiles", 2, (9, 8), (4, 2), 3, 5, (4, 2)),
    ConvShape("explicit", 2, (6, 7), (3, 3), 2, 3, (1, 2), ((2, 0), (1, 3))),
    ConvShape("cropping", 2, (8, 7), (3, 3), 2, 3, 1, ((-1, 0), (1, -2))),
    ConvShape("window-is-image", 3, (4, 5), (4, 5), 2, 3),
    ConvShape("one-example", 1, (6, 6), (5, 5), 3, 2, padding="SAME"),
    ConvShape("dilated", 2, (9, 8), (3, 2), 2, 3, rhs_dilation=(2, 3)),
    ConvShape("dilated-strided", 2, (11, 9), (3, 3), 2, 3, 2, "SAME", rhs_dilation=2),
    ConvShape("transposed", 2, (4, 5), (3, 3), 3, 2, padding=((2, 1), (2, 1)), lhs_dilation=2),
    ConvShape("transposed-cropped", 2, (4, 5), (2, 2), 3, 2, padding=((0, 1), (-1, 0)), lhs_dilation=(3, 2)),
    ConvShape("transposed-dilated", 2, (4, 3), (3, 2), 3, 2, 1, ((3, 4), (1, 2)), 2, 2),
    ConvShape("transposed-strided", 2, (5, 4), (3, 3), 2, 3, (1, 2), ((1, 1), (1, 1)), 2),
    ConvShape("groups", 2, (6, 5), (3, 3), 4, 6, padding="SAME", groups=2),
    ConvShape("groups-strided-dilated", 2, (9, 8), (2, 3), 6, 3, 2, "SAME", 1, 2, 3),
    ConvShape("transposed-groups", 2, (4, 4), (3, 3), 4, 4, 1, ((1, 1), (1, 1)), 2, 1, 2),
    ConvShape("depthwise", 2, (7, 6), (3, 3), 4, 4, padding="SAME", groups=4),
    ConvShape("depthwise-multiplied", 2, (7, 6), (3, 2), 3, 6, 2, groups=3),
    ConvShape("1d", 3, (11,), (4,), 2, 5, 2, "SAME"),
    ConvShape("1d-causal-dilated", 2, (9,), (3,), 2, 3, 1, ((4, 0),), 1, 2),
    ConvShape("1d-transposed", 2, (6,), (3,), 2, 3, 1, ((2, 2),), 3),
    ConvShape("3d", 2, (5, 4, 6), (2, 3, 3), 2, 3, (1, 2, 1), "SAME"),
    ConvShape("3d-depthwise", 1, (4, 4, 5), (2, 2, 2), 3, 3, groups=3),
    ConvShape("channels-first", 2, (6, 7), (3, 2), 3, 4, 1, "SAME", layout=("NCHW", "OIHW", "NCHW")),
    ConvShape("mixed-layout", 2, (6, 7), (3, 2), 3, 4, 2, layout=("HWNC", "IOWH", "CNHW")),
    ConvShape("channels-first-3x3", 2, (6, 7), (3, 3), 3, 4, 1, "SAME", layout=("NCHW", "OIHW", "NCHW")),
    ConvShape("3x3-window-is-image", 2, (3, 3), (3, 3), 3, 4),
    ConvShape("3x3-above-image", 2, (2, 5), (3, 3), 3, 4),
    ConvShape("empty-batch", 0, (6, 6), (3, 3), 2, 3),
)

MODELS = (
    ConvShape("emnist-1", 20, (28, 28), (3, 3), 1, 32),
    ConvShape("emnist-2", 20, (26, 26), (3, 3), 32, 64),
    ConvShape("cifar10-1", 10, (32, 32), (3, 3), 3, 32),
    ConvShape("cifar10-2", 10, (30, 30), (3, 3), 32, 64),
    ConvShape("lenet-2", 50, (12, 12), (5, 5), 32, 64),
    ConvShape("digits-1", 20, (8, 8), (3, 3), 1, 32, padding="SAME"),
    ConvShape("digits-2", 20, (4, 4), (3, 3), 32, 64, padding="SAME"),
    ConvShape("resnet-3x3", 16, (8, 8), (3, 3), 64, 64, padding="SAME"),
    ConvShape("resnet-down", 16, (16, 16), (3, 3), 32, 64, 2, "SAME"),
    ConvShape("mobilenet", 16, (16, 16), (3, 3), 64, 64, padding="SAME", groups=64),
    ConvShape("patches", 16, (32, 32), (4, 4), 3, 128, 4),
    ConvShape("decoder", 16, (8, 8), (4, 4), 64, 32, 1, ((2, 2), (2, 2)), 2),
    ConvShape("audio", 8, (1024,), (25,), 8, 16, 4),
)
