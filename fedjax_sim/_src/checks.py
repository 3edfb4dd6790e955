"""Checks of arguments: at construction, in Python, with errors that name the thing, what was got and the fix.

A traced hyper-parameter (an array under ``jit``, as in a sweep) cannot be looked at and passes. A concrete JAX array
can, but not with JAX's own operators, which ``jit`` would trace: hence ``float(value)``.
"""

from __future__ import annotations

import inspect
import math
from typing import Any

from jax.core import Tracer

from fedjax_sim._src.types import Task, Variables


def is_traced(value: Any) -> bool:
    return isinstance(value, Tracer)


def _number(name: str, value: Any, expected: str) -> None:
    try:
        math.isfinite(value)
    except (TypeError, ValueError):
        fix = "."
        if callable(value):
            fix = "; schedules work where an optax optimizer is expected, as in optax.sgd(schedule)."
        raise TypeError(f"{name} is {_shown(value)}, expected {expected}{fix}") from None


def _shown(value: Any) -> str:
    """A value short enough for a message, or what it is."""
    if isinstance(value, (bool, int, float, str)):
        return repr(value)
    return f"the function {value.__name__}" if inspect.isroutine(value) else f"a {type(value).__name__}"


def positive(name: str, value: Any) -> None:
    if is_traced(value):
        return
    _number(name, value, "a finite number above 0")
    if not (math.isfinite(value) and float(value) > 0):
        raise ValueError(f"{name} is {value}, expected a finite number above 0.")


SMALLEST_NORM = 1e-12
"""Squares of numbers below 1e-19 are 0 in float32: a norm that is some millions of them could not be told from 0."""


def clip_norm(name: str, value: Any) -> None:
    """A bound on a norm that is taken in float32."""
    positive(name, value)
    if not is_traced(value) and float(value) < SMALLEST_NORM:
        raise ValueError(
            f"{name} is {value}, expected {SMALLEST_NORM:g} or above: norms are taken in float32, where the squares of smaller "
            "numbers are 0, so that the bound would not hold. Scale the updates up."
        )


def not_negative(name: str, value: Any) -> None:
    if is_traced(value):
        return
    _number(name, value, "a finite number, 0 or above")
    if not (math.isfinite(value) and float(value) >= 0):
        raise ValueError(f"{name} is {value}, expected a finite number, 0 or above.")


def fraction(name: str, value: Any) -> None:
    """0 < value <= 1."""
    if is_traced(value):
        return
    _number(name, value, "a number in (0, 1]")
    if not 0 < float(value) <= 1:
        raise ValueError(f"{name} is {value}, expected a number in (0, 1].")


def positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least 1.")


def not_negative_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
        raise ValueError(f"{name} is {value!r}, expected an integer, 0 or above.")


def one_of(name: str, value: Any, accepted: tuple) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, accepted))}.")


def returned(who: str, value: Any, *names: str) -> tuple:
    """The values that a user's function returned, one for each name.

    Raises:
      TypeError: it returned something else; says what.
    """
    plain = isinstance(value, (tuple, list)) and not hasattr(value, "_fields")
    if not plain or len(value) != len(names):
        got = f"{len(value)} values" if plain else f"a {type(value).__name__}"
        raise TypeError(f"{who} returned {got}, expected {len(names)}: ({', '.join(names)}).")
    return tuple(value)


def variables(who: str, value: Any) -> Variables:
    """A model as it was handed over; parameters alone are the commonest mistake.

    Raises:
      TypeError: something else.
    """
    if not isinstance(value, Variables):
        raise TypeError(
            f"{who} is a {type(value).__name__}, expected Variables(params, frozen, stats), the whole model."
        )
    return value


def optimizer(name: str, value: Any) -> None:
    """Something with optax's two functions."""
    if hasattr(value, "init") and hasattr(value, "update"):
        return
    fix = "call it, as in optax.sgd(0.1)" if callable(value) else "use for example optax.sgd(0.1)"
    if isinstance(value, (int, float)):
        fix = f"a step size alone does not say what to do with it, write optax.sgd({value})"
    raise TypeError(f"the {name} is {_shown(value)}, expected an optax optimizer: {fix}.")


def task(value: Any) -> None:
    """A model with its loss; flax modules are callable, so a rule could take one for a loss function."""
    if not isinstance(value, Task):
        raise TypeError(
            f"task is {_shown(value)}, expected a Task: wrap a flax module, as in fs.tasks.classification(module), or "
            "write fs.Task(init, apply, loss)."
        )
