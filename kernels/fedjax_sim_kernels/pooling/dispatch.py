"""Which form a pooling takes."""

from __future__ import annotations

import math
from typing import Literal

import jax
from jax import lax

from fedjax_sim_kernels.pooling import reference, slices
from fedjax_sim_kernels.pooling.spec import PoolSpec

Form = Literal["slices", "whole", "reference"]

MOST_OFFSETS = 64
"""A window with more offsets would be that many slices: a longer program than any gain is worth."""


def choose(x: jax.Array, spec: PoolSpec) -> tuple[Form, str]:
    """The form for these arguments, and why it is the reference where it is."""
    if spec.kind == "sum" and _is_whole(x, spec):
        return "whole", ""
    if math.prod(spec.window) > MOST_OFFSETS:
        return "reference", f"a window of {' x '.join(str(extent) for extent in spec.window if extent > 1)}"
    return "slices", ""


def pool(x: jax.Array, spec: PoolSpec, form: Form | None = None) -> jax.Array:
    """A pooling in the form for these arguments, or in a given one."""
    name = choose(x, spec)[0] if form is None else form
    if name == "whole":
        axes = tuple(axis for axis, extent in enumerate(spec.window) if extent > 1)
        return lax.expand_dims(lax.reduce_sum(x, axes), axes)
    return (slices if name == "slices" else reference).pool(x, spec)


def _is_whole(x: jax.Array, spec: PoolSpec) -> bool:
    """One window over the whole of some axes: global average pooling."""
    untouched = set(spec.base_dilation) <= {1} and set(spec.window_dilation) <= {1}
    plain = untouched and all(pair == (0, 0) for pair in spec.padding)
    one = all(
        extent == size or (extent == 1 and stride == 1)
        for extent, size, stride in zip(spec.window, x.shape, spec.strides, strict=True)
    )
    return plain and one
