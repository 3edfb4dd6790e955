"""Advice that the library gives in Python, said in TOML: who wrote a file is told what to write into it."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator

from fedjax_sim.experiment._components import BUILT_IN

_CALL = re.compile(
    r"(?<![\w.])(?:agg\.|aggregation\.|fs\.aggregation\.)?chain\(|(?<![\w.])(?:agg|fs\.cohorts|fs\.aggregation)\.\w+\("
)
"""Where the call of a chain begins, or that of a component by its module."""


def said_in_toml(text: str) -> str:
    """The same message, with chains and components as a file has them; what is no such call stays.

    Example:
      >>> from fedjax_sim.experiment._said_in_toml import said_in_toml
      >>> said_in_toml("use agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over='clients')).")
      'use [{ name = "clip_by_global_norm", clip_norm = 1.0 }, { name = "mean", over = "clients" }].'
    """
    found, end = [], 0
    for start, stop, said in _calls(text):
        found += [text[end:start], said]
        end = stop
    return "".join([*found, text[end:]])


def _calls(text: str) -> Iterator[tuple[int, int, str]]:
    """Beginning and end of each such call, and what a file says instead."""
    end = 0
    for match in _CALL.finditer(text):
        stop = _closing(text, match.end())
        if match.start() < end or stop is None:
            continue
        try:
            said = _value(ast.parse(text[match.start() : stop], mode="eval").body)
        except (SyntaxError, _NotSaidError):
            continue
        yield match.start(), stop, said
        end = stop


def _closing(text: str, start: int) -> int | None:
    """Behind the bracket that closes the one before ``start``."""
    depth = 1
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if depth == 0:
            return place + 1
    return None


class _NotSaidError(Exception):
    """A piece of Python without a counterpart in TOML."""


def _value(node: ast.expr) -> str:
    if isinstance(node, ast.Call):
        return _component(node)
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return f'"{node.value}"'
    if isinstance(node, ast.Constant) and node.value is ...:
        return "..."
    if isinstance(node, ast.Constant | ast.Name | ast.BinOp):
        return ast.unparse(node)
    raise _NotSaidError


def _component(call: ast.Call) -> str:
    name = ast.unparse(call.func).rpartition(".")[2]
    if name == "chain":
        return f"[{', '.join(_value(layer) for layer in call.args)}]"
    kind = next((kind for kind in ("transforms", "cohorts") if name in BUILT_IN[kind]), None)
    if kind is None:
        raise _NotSaidError
    parameters = list(inspect.signature(BUILT_IN[kind][name]).parameters)
    settings = [f'name = "{name}"']
    for parameter, argument in zip(parameters, call.args, strict=False):
        value = _value(argument)
        settings.append(value if value == "..." else f"{parameter} = {value}")
    settings += [f"{keyword.arg} = {_value(keyword.value)}" for keyword in call.keywords]
    return f"{{ {', '.join(settings)} }}"
