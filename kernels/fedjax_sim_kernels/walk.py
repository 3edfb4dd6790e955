"""Evaluating a traced program operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jax.extend.core import ClosedJaxpr, Literal

Results = Callable[[Any, list[Any]], Sequence[Any]]
"""Of an equation and its operands."""


def evaluate(program: ClosedJaxpr, arguments: Sequence[Any], results: Results) -> list[Any]:
    """The results of a program whose equations become what ``results`` says; values may be other things than arrays."""
    known: dict[Any, Any] = {}

    def read(variable: Any) -> Any:
        return variable.val if isinstance(variable, Literal) else known[variable]

    jaxpr = program.jaxpr
    known.update(zip(jaxpr.constvars, program.consts, strict=True))
    known.update(zip(jaxpr.invars, arguments, strict=True))
    for equation in jaxpr.eqns:
        operands = [read(variable) for variable in equation.invars]
        known.update(zip(equation.outvars, results(equation, operands), strict=True))
    return [read(variable) for variable in jaxpr.outvars]


def bound(equation: Any, operands: Sequence[Any]) -> Sequence[Any]:
    """The equation as it was, of arrays."""
    bind = equation.primitive.get_bind_params(equation.params)
    # Up to jax 0.9 a pair of functions and settings, then the settings alone.
    functions, settings = bind if isinstance(bind, tuple) else ((), bind)
    with equation.ctx.manager:
        found = equation.primitive.bind(*functions, *operands, **settings)
    return found if equation.primitive.multiple_results else [found]
