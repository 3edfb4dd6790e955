"""Checks of arguments: at construction, in Python, with errors that name the thing, what was got and the fix.

A traced hyper-parameter (an array under ``jit``, as in a sweep) cannot be looked at and passes. A concrete JAX array
can, but not with JAX's own operators, which ``jit`` would trace: hence ``float(value)``.
"""

from __future__ import annotations

import math
from typing import Any

from jax.core import Tracer


def is_traced(value: Any) -> bool:
    return isinstance(value, Tracer)


def positive(name: str, value: Any) -> None:
    if not is_traced(value) and not (math.isfinite(value) and float(value) > 0):
        raise ValueError(f"{name} is {value}, expected a finite number above 0.")


def not_negative(name: str, value: Any) -> None:
    if not is_traced(value) and not (math.isfinite(value) and float(value) >= 0):
        raise ValueError(f"{name} is {value}, expected a finite number, 0 or above.")


def fraction(name: str, value: Any) -> None:
    """0 < value <= 1."""
    if not is_traced(value) and not 0 < float(value) <= 1:
        raise ValueError(f"{name} is {value}, expected a number in (0, 1].")


def positive_int(name: str, value: Any) -> None:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
        raise ValueError(f"{name} is {value!r}, expected an integer of at least 1.")


def one_of(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(repr, accepted))}.")
