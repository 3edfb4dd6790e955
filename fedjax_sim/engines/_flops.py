"""Floating-point operations of a traced function, loops counted as often as they run."""

from __future__ import annotations

import math
from typing import Any

import jax
from jax.extend.core import Jaxpr, jaxprs_in_params


def flops(traced: jax.stages.Traced) -> float:
    """XLA's count of a traced function, and for every ``scan`` the products of the steps beyond the first.

    XLA counts a loop's body once. Loops of traced length are counted once here, too. It counts a program for the CPU: for
    accelerators it refuses. Where there is no CPU to ask, the products alone are counted.
    """
    program = traced.jaxpr.jaxpr
    try:
        with jax.default_device(jax.local_devices(backend="cpu")[0]):
            counted = (traced.lower().cost_analysis() or {}).get("flops")
    except (RuntimeError, ValueError):  # JAX was told to see no CPU, or a kernel cannot be lowered for it
        counted = None
    if counted is None:
        return _beyond_once(program, 1, 0)
    return float(counted) + _beyond_once(program, 1, 1)


def _beyond_once(program: Jaxpr, times: int, counted: int) -> float:
    """Operations of products in a program that runs ``times`` times and that XLA counts ``counted`` times, beyond its count."""
    total = 0.0
    for equation in program.eqns:
        if (operations := _PRODUCTS.get(equation.primitive.name)) is not None:
            total += (times - counted) * operations(equation)
        length, seen = _steps(equation) if equation.primitive.name == "scan" else (1, 1)
        total += sum(
            _beyond_once(inner, times * length, counted * seen) for inner in jaxprs_in_params(equation.params)
        )
    return total


def _steps(scan: Any) -> tuple[int, int]:
    """Steps of a loop, and how often its body stands in the program: an unrolled one several times, and once for each step
    that is left over."""
    length, unroll = scan.params["length"], scan.params["unroll"]
    return length, length if unroll >= length else unroll + length % unroll


def _of_dot(equation: Any) -> float:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)


def _of_contract(equation: Any) -> float:
    depth = equation.invars[0].aval.shape[-2 if equation.params["layout"] == "tn" else -1]
    return 2.0 * equation.outvars[0].aval.size * depth


def _of_conv(equation: Any) -> float:
    kernel, axes = equation.invars[1].aval, equation.params["dimension_numbers"].rhs_spec
    return 2.0 * equation.outvars[0].aval.size * kernel.size / kernel.shape[axes[0]]


_PRODUCTS = {"dot_general": _of_dot, "contract": _of_contract, "conv_general_dilated": _of_conv}
