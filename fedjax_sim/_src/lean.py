"""Programs without the operations whose results nobody uses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun


def lean(function: Callable) -> Callable:
    """The same function of pytrees of arrays, traced without what its results do not need, in loops too.

    Every client gets keys, epochs and fields of a plan that few rules look at. XLA leaves them out in the end, when they have
    been lowered. JAX leaves them out before, but outside of loops, where hardly any of a round is.
    """

    @functools.wraps(function)
    def needed(*arguments):
        traced = jax.jit(function).trace(*arguments)
        results = jaxpr_as_fun(_Needed().program(traced.jaxpr))(*jax.tree.leaves(arguments))
        return jax.tree.unflatten(jax.tree.structure(traced.out_info), results)

    return needed


_ENTERED = ("cond", "jit", "pjit", "scan", "shard_map", "while")
"""Primitives whose programs are entered; what is inside others stays as it is."""


class _Needed:
    """What programs need. One that stands in several places is one afterwards, too, and so is lowered once."""

    def __init__(self):
        self._known: dict[int, tuple[Any, Any]] = {}

    def program(self, program: Any) -> Any:
        if id(program) not in self._known:
            # The key is the address of a program that is kept alive beside it.
            self._known[id(program)] = program, self._without_dead_code(program)
        return self._known[id(program)][1]

    def _without_dead_code(self, program: Any) -> Any:
        if not isinstance(program, Jaxpr):  # up to jax 0.11 a program with its constants is another class
            return program.replace(jaxpr=self.program(program.jaxpr))
        used = {result for result in program.outvars if not isinstance(result, Literal)}
        needed = []
        for equation in reversed(program.eqns):
            if equation.effects or not used.isdisjoint(equation.outvars):
                used.update(operand for operand in equation.invars if not isinstance(operand, Literal))
                needed.append(self._inside(equation))
        return program.replace(eqns=needed[::-1])

    def _inside(self, equation: Any) -> Any:
        if equation.primitive.name not in _ENTERED:
            return equation
        return equation.replace(
            params={name: self._setting(value) for name, value in equation.params.items()}
        )

    def _setting(self, value: Any) -> Any:
        if isinstance(value, (Jaxpr, ClosedJaxpr)):
            return self.program(value)
        if isinstance(value, tuple) and any(isinstance(x, (Jaxpr, ClosedJaxpr)) for x in value):
            return tuple(map(self.program, value))  # the branches of a cond
        return value
