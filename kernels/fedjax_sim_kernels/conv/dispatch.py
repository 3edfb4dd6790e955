"""Which form a convolution takes, by backend and settings; ``tuning`` has the measurements behind it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import jax

from fedjax_sim_kernels.conv import overlap, reference, shifted, slices, winograd
from fedjax_sim_kernels.conv.spec import ConvSpec

Form = Literal["slices", "winograd", "shifted", "overlap", "reference"]
FORMS = {"slices": slices, "winograd": winograd, "shifted": shifted, "overlap": overlap}

MOST_OFFSETS = 256
"""A window with more offsets would be that many slices: a longer program than any gain is worth."""


WINOGRAD_CHANNELS = 16


def choose(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> tuple[Form, str]:
    """The form for these arguments, and why it is the reference where it is."""
    if not slices.supports(spec):
        return "reference", "groups of rows (batch_group_count)"
    if not jax.numpy.issubdtype(lhs.dtype, jax.numpy.floating):
        return "reference", f"elements of type {lhs.dtype}"
    *_, window = _window(rhs, spec)
    tiles = tuple(window) == tuple(spec.strides) and set(spec.rhs_dilation) == {1}
    if math.prod(window) > MOST_OFFSETS and not tiles:
        return "reference", f"a window of {' x '.join(map(str, window))}"
    if max(spec.lhs_dilation) > 1 and overlap.supports(spec):
        return "overlap", ""
    into = rhs.shape[spec.dimension_numbers.rhs_spec[1]]
    if into == 1 and spec.feature_group_count > 1:
        return "shifted", ""
    if _winograd_pays(lhs, rhs, spec, window):
        return "winograd", ""
    return "slices", ""


def _winograd_pays(lhs, rhs, spec: ConvSpec, window) -> bool:
    """On CPU, in float32, with enough channels on both sides for the transformations to cost less than they save."""
    out, into, _ = _window(rhs, spec)
    return (
        jax.default_backend() == "cpu"
        and lhs.dtype == rhs.dtype == jax.numpy.float32
        and min(into, out) >= WINOGRAD_CHANNELS
        and winograd.supports(spec, window)
    )


def conv(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, form: Form | None = None) -> jax.Array:
    """A convolution in the form for these arguments, or in a given one."""
    name = choose(lhs, rhs, spec)[0] if form is None else form
    run: Callable = reference.conv if name == "reference" else FORMS[name].conv
    return run(lhs, rhs, spec)


def _window(rhs: jax.Array, spec: ConvSpec) -> tuple[int, int, tuple[int, ...]]:
    out, into, *space = spec.dimension_numbers.rhs_spec
    return rhs.shape[out], rhs.shape[into], tuple(rhs.shape[axis] for axis in space)
