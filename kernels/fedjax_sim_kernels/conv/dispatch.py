"""Which form a convolution takes, by backend and settings; decisions 13, 15 (CPU) and 25 (NVIDIA GPUs) have measurements."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from types import ModuleType
from typing import Literal

import jax
from jax import lax

from fedjax_sim_kernels import backends
from fedjax_sim_kernels.conv import overlap, reference, shifted, slices, winograd
from fedjax_sim_kernels.conv.spec import ConvSpec, window_of

Form = Literal["slices", "winograd", "shifted", "overlap", "pallas", "vendor", "reference"]
FORMS = {"slices": slices, "winograd": winograd, "shifted": shifted, "overlap": overlap}

MOST_OFFSETS = 256
"""A window with more offsets would be that many slices: a longer program than any gain is worth."""

WINOGRAD_CHANNELS = 16
"""With fewer on either side the transformations cost more than they save: at 8, 0.6 times the speed of slices."""


def choose(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> tuple[Form, str]:
    """The form for these arguments, and why it is the reference where it is."""
    if not slices.supports(lhs, rhs, spec):
        return "reference", "groups of rows (batch_group_count)"
    if not jax.numpy.issubdtype(lhs.dtype, jax.numpy.floating):
        return "reference", f"elements of type {lhs.dtype}"
    window = window_of(rhs, spec)
    tiles = window == tuple(spec.strides) and set(spec.rhs_dilation) == {1}
    if math.prod(window) > MOST_OFFSETS and not tiles:
        return "reference", f"a window of {' x '.join(map(str, window))}"
    if max(spec.lhs_dilation) > 1 and overlap.supports(lhs, rhs, spec):
        return "overlap", ""
    out, into = (rhs.shape[axis] for axis in spec.dimension_numbers.rhs_spec[:2])
    backend = backends.current()
    if into == 1 and spec.feature_group_count > 1:
        return ("vendor" if backend == "nvidia" else "shifted"), ""
    if backend == "cpu" and min(into, out) >= WINOGRAD_CHANNELS and winograd.supports(lhs, rhs, spec):
        return "winograd", ""
    sliding = math.prod(window) > 1 and max(spec.strides) == 1
    if backend == "nvidia" and sliding and not _exact(spec) and module_of("pallas").supports(lhs, rhs, spec):
        return "pallas", ""
    return "slices", ""


def _exact(spec: ConvSpec) -> bool:
    """Whether products of float32 are asked for that tensor cores do not compute."""
    asked = spec.precision if isinstance(spec.precision, tuple) else (spec.precision,)
    default = jax.config.jax_default_matmul_precision  # type: ignore
    return any((default if one is None else one) not in _FAST for one in asked)


_FAST = (
    None, lax.Precision.DEFAULT, lax.Precision.HIGH, "default", "fastest", "bfloat16", "high", "bfloat16_3x", "tensorfloat32",
)  # fmt: skip
"""Precisions that an NVIDIA GPU multiplies float32 in with tensor cores."""


def conv(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, form: Form | None = None) -> jax.Array:
    """A convolution in the form for these arguments, or in a given one."""
    name = choose(lhs, rhs, spec)[0] if form is None else form
    run: Callable = module_of(name).conv
    return run(lhs, rhs, spec)


def with_relu(lhs: jax.Array, rhs: jax.Array, bias: jax.Array, spec: ConvSpec) -> jax.Array:
    """ReLU of a convolution and its bias ``[features]`` in one pass, where the convolution takes the form "pallas"."""
    return importlib.import_module("fedjax_sim_kernels.conv.rectified").conv(lhs, rhs, bias, spec)


def quarters(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> list[jax.Array]:
    """The even and odd columns of a convolution's even and odd rows, where it takes the form "winograd", which makes them so."""
    return winograd.quarters(lhs, rhs, spec)


def module_of(form: Form) -> ModuleType:
    """Where a form is written. Pallas is imported where it is used: it takes half a second."""
    if form in ("vendor", "reference"):
        return reference
    return importlib.import_module("fedjax_sim_kernels.conv.pallas") if form == "pallas" else FORMS[form]
