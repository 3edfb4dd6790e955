"""Floating-point operations of a traced program, loops counted as often as they run."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params


def flops(program: Jaxpr) -> float:
    """Two operations for every product that is added up, one for every number that other arithmetic makes or adds up.

    As XLA counts them, but for what it leaves out, functions such as ``exp``, and what it counts, integers. It would have to be
    asked for a lowered program, which takes as long as tracing one, answers for CPUs alone, and sees a loop's body once.
    Of branches the costliest counts, and of a loop of dynamic length one step.
    """
    return sum(map(_of_equation, program.eqns))


def _of_equation(equation: Any) -> float:
    name = equation.primitive.name
    if inside := [flops(program) for program in jaxprs_in_params(equation.params)]:
        times = equation.params["length"] if name == "scan" else 1
        return times * (max(inside) if name == "cond" else sum(inside))
    if name in _PRODUCTS:
        return 2.0 * _PRODUCTS[name](equation)
    calculates = name not in _MOVES and any(
        jnp.issubdtype(result.aval.dtype, jnp.inexact) for result in equation.outvars
    )
    return float(max(x.aval.size for x in [*equation.invars, *equation.outvars])) if calculates else 0.0


_MOVES = frozenset(
    {
        "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "dynamic_slice",
        "dynamic_update_slice", "gather", "optimization_barrier", "pad", "reshape", "rev", "scatter", "slice",
        "split", "squeeze", "stack", "transpose",
    }
)  # fmt: skip
"""Primitives that put numbers elsewhere and do not calculate with them."""


def _of_dot(equation: Any) -> int:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _of_contract(equation: Any) -> int:
    depth = equation.invars[0].aval.shape[-2 if equation.params["layout"] == "tn" else -1]
    return equation.outvars[0].aval.size * depth


def _of_panels(equation: Any) -> int:
    panels = equation.outvars[0] if equation.params["layout"] == "gradient" else equation.invars[1]
    return panels.aval.size * equation.invars[0].aval.shape[-2]


def _of_conv(equation: Any) -> int:
    """Without the products with padding, and with the zeros between elements of a dilated input."""
    images, kernel = (operand.aval.shape for operand in equation.invars)
    result, settings = equation.outvars[0].aval.shape, equation.params
    numbers = settings["dimension_numbers"]
    (batch, features, *_), (_, depth, *_) = numbers.out_spec, numbers.rhs_spec
    products = result[batch] * result[features] * kernel[depth]
    for axis, (image, tap, place) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        spread, taps_spread = settings["lhs_dilation"][axis], settings["rhs_dilation"][axis]
        first = np.arange(result[place]) * settings["window_strides"][axis] - settings["padding"][axis][0]
        at = first[:, None] + np.arange(kernel[tap]) * taps_spread
        there = (at >= 0) & (at <= (images[image] - 1) * spread) & (at % spread == 0)
        products *= int(np.sum(there))
    return products


_PRODUCTS = {
    "dot_general": _of_dot,
    "contract": _of_contract,
    "panels": _of_panels,
    "conv_general_dilated": _of_conv,
}
"""Primitives that add up products: how many."""
