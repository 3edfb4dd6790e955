"""Floating-point operations of a traced program, loops counted as often as they run."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, jaxprs_in_params


def flops(program: Jaxpr) -> float:
    """Two operations for every product that a matrix product or convolution adds up, one for every number of other arithmetic.

    As XLA counts them, but for what it leaves out, functions such as ``exp``, and what it counts, integers. It would have to be
    asked for a lowered program, which takes as long as tracing one, answers for CPUs alone, and sees a loop's body once.
    Of branches the costliest counts, and of a loop of dynamic length one step.
    """
    return sum(map(_of_equation, program.eqns))


def _of_equation(equation: Any) -> float:
    name = equation.primitive.name
    inside = [flops(program) for program in jaxprs_in_params(equation.params)]
    if inside:
        return (
            equation.params["length"] * sum(inside)
            if name == "scan"
            else max(inside)
            if name == "cond"
            else sum(inside)
        )
    if name in _PRODUCTS:
        return _PRODUCTS[name](equation)
    results = [variable.aval for variable in equation.outvars]
    if name in _MOVES or not any(jnp.issubdtype(result.dtype, jnp.inexact) for result in results):
        return 0.0
    # A sum takes as many additions as it has terms, anything else works on each of its results.
    return float(max(variable.aval.size for variable in [*equation.invars, *equation.outvars]))


_MOVES = frozenset(
    {
        "bitcast_convert_type", "broadcast_in_dim", "concatenate", "convert_element_type", "copy", "copy_p", "dynamic_slice",
        "dynamic_update_slice", "gather", "optimization_barrier", "pad", "reshape", "rev", "scatter", "slice",
        "split", "squeeze", "stack", "transpose",
    }
)  # fmt: skip
"""Primitives that put numbers elsewhere and do not calculate with them."""


def _of_dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _of_contract(equation: Any) -> float:
    depth = equation.invars[0].aval.shape[-2 if equation.params["layout"] == "tn" else -1]
    return 2.0 * equation.outvars[0].aval.size * depth


def _of_conv(equation: Any) -> float:
    """Of a convolution, without the products with padding and with the zeros of a dilated input."""
    settings, (images, kernel), result = (
        equation.params,
        (x.aval.shape for x in equation.invars),
        equation.outvars[0].aval.shape,
    )
    numbers = settings["dimension_numbers"]
    (batch, features, *places), (_, depth, *taps) = numbers.out_spec, numbers.rhs_spec
    per_axis = [
        _products_along(images[i], kernel[k], result[o], stride, pad[0], spread, tap_spread)
        for i, k, o, stride, pad, spread, tap_spread in zip(
            numbers.lhs_spec[2:],
            taps,
            places,
            settings["window_strides"],
            settings["padding"],
            settings["lhs_dilation"],
            settings["rhs_dilation"],
            strict=True,
        )
    ]
    return 2.0 * result[batch] * result[features] * kernel[depth] * math.prod(per_axis)


def _products_along(
    size: int, taps: int, results: int, stride: int, pad: int, spread: int, tap_spread: int
) -> int:
    """Pairs of a result and a tap along one axis between which there is an element of the input."""
    place = np.arange(results)[:, None] * stride + np.arange(taps) * tap_spread - pad
    return int(np.sum((place >= 0) & (place <= (size - 1) * spread) & (place % spread == 0)))


_PRODUCTS = {"dot_general": _of_dot, "contract": _of_contract, "conv_general_dilated": _of_conv}
