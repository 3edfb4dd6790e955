"""What a setting may be: read off a parameter's annotation, checked, and converted.

A parameter of a factory is a setting of a TOML file when its annotation can be said in TOML: numbers, text, switches,
choices, lists, tables, and other components (an optimizer, a chain).
"""

from __future__ import annotations

import abc
import collections.abc
import dataclasses
import difflib
import inspect
import math
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union

import jax
import numpy as np

Parts = Mapping[Any, "Form"]
"""Annotations that stand for other components, and how those are given."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message begins with the path of the key."""


class Form(abc.ABC):
    """One way in which a setting can be given.

    Attributes:
      says: for messages: ``"a number"``.
    """

    says: str

    @abc.abstractmethod
    def accepts(self, value: Any) -> bool:
        """Whether a value is said in this way."""

    def resolve(self, path: str, value: Any) -> Any:
        """The value in TOML's types, complete; raises ConfigError for what lies deeper."""
        return value

    def build(self, value: Any) -> Any:
        """What a resolved value stands for: itself, but for components."""
        return value


@dataclasses.dataclass(frozen=True)
class Scalar(Form):
    says: str
    test: Callable[[Any], bool]
    convert: Callable[[Any], Any]

    def accepts(self, value: Any) -> bool:
        return self.test(value)

    def resolve(self, path: str, value: Any) -> Any:
        return self.convert(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))


NUMBER = Scalar("a number", _is_number, float)
INTEGER = Scalar("an integer", _is_integer, int)
SWITCH = Scalar("true or false", lambda value: isinstance(value, bool), bool)
TEXT = Scalar("text", lambda value: isinstance(value, str), str)
PATH = Scalar("a path", lambda value: isinstance(value, str | Path), str)


@dataclasses.dataclass(frozen=True)
class Choice(Form):
    values: tuple

    @property
    def says(self) -> str:
        return "one of " + ", ".join(shown(value) for value in self.values)

    def accepts(self, value: Any) -> bool:
        return any(value == known and type(value) is type(known) for known in self.values)


@dataclasses.dataclass(frozen=True)
class Several(Form):
    """A list whose items have a form of their own."""

    items: tuple[Form, ...]

    @property
    def says(self) -> str:
        return f"a list ({either(self.items)} each)"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, list | tuple)

    def resolve(self, path: str, value: Any) -> Any:
        return [resolve(f"{path}[{index}]", item, self.items) for index, item in enumerate(value)]


@dataclasses.dataclass(frozen=True)
class Table(Form):
    """A table with free names, whose values have a form of their own."""

    items: tuple[Form, ...]

    @property
    def says(self) -> str:
        return f"a table ({either(self.items)} each)"

    def accepts(self, value: Any) -> bool:
        return isinstance(value, Mapping)

    def resolve(self, path: str, value: Any) -> Any:
        return {str(name): resolve(f"{path}.{name}", item, self.items) for name, item in value.items()}

    def build(self, value: Any) -> Any:
        return {name: build(item, self.items) for name, item in value.items()}


_SCALARS = {float: NUMBER, int: INTEGER, bool: SWITCH, str: TEXT, Path: PATH}


def forms_of(annotation: Any, parts: Parts) -> tuple[Form, ...]:
    """Forms that an annotation allows; ``()`` when it cannot be said in TOML."""
    for stands_for, form in parts.items():
        if annotation is stands_for:
            return (form,)
    if annotation in _SCALARS:
        return (_SCALARS[annotation],)
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return (Choice(arguments),)
    if origin in (Union, types.UnionType):
        return _of_union(arguments, parts)
    if origin in (list, tuple, collections.abc.Sequence, collections.abc.Iterable):
        items = forms_of(arguments[0], parts) if arguments else ()
        return (Several(items),) if items else ()
    if origin in (dict, collections.abc.Mapping):
        items = forms_of(arguments[1], parts) if len(arguments) == 2 and arguments[0] is str else ()
        return (Table(items),) if items else ()
    return ()


def _of_union(arguments: Sequence[Any], parts: Parts) -> tuple[Form, ...]:
    if Any in arguments:
        return ()
    if Path in arguments:
        return (PATH,)
    # optax annotates numbers as arrays, numbers and schedules in one: a number is what TOML can say of it.
    if jax.Array in arguments or np.ndarray in arguments:
        return (NUMBER,)
    found = [form for argument in arguments for form in forms_of(argument, parts)]
    # A choice and then free text would never refuse anything: choices stand first for the message's sake.
    return tuple(dict.fromkeys(sorted(found, key=lambda form: not isinstance(form, Choice))))


def resolve(path: str, value: Any, forms: Iterable[Form]) -> Any:
    """The value in its complete form.

    Raises:
      ConfigError: no form accepts it.
    """
    forms = tuple(forms)
    for form in forms:
        if form.accepts(value):
            return form.resolve(path, value)
    hint = ""
    for form in forms:
        if isinstance(form, Choice) and isinstance(value, str):
            hint = nearest(value, [str(known) for known in form.values])
    raise ConfigError(f"{path} is {shown(value)}, expected {either(forms)}.{hint}")


def build(value: Any, forms: Iterable[Form]) -> Any:
    """What a resolved value stands for."""
    return next((form.build(value) for form in forms if form.accepts(value)), value)


def either(forms: Iterable[Form]) -> str:
    return " or ".join(form.says for form in forms)


def shown(value: Any) -> str:
    """A value as TOML writes it, shortened."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        return f'"{value}"'
    if isinstance(value, Mapping):
        return "a table"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(shown(item) for item in value[:5]) + (", ...]" if len(value) > 5 else "]")
    if isinstance(value, float | int):
        return repr(value)
    return f"{value} ({type(value).__name__})"


def nearest(value: str, known: Iterable[str]) -> str:
    """`` Did you mean ...?``, or nothing."""
    close = difflib.get_close_matches(value, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A setting of a component.

    Attributes:
      name: as in TOML.
      forms: what it may be.
      required: it has no default.
      default: ``None`` also stands for "not given".
      about: from the docstring; may be empty.
    """

    name: str
    forms: tuple[Form, ...]
    required: bool
    default: Any
    about: str = ""

    @property
    def says(self) -> str:
        """What it may be, in words."""
        return either(self.forms)

    @property
    def shown_default(self) -> str:
        """As TOML writes it."""
        return "not set" if self.default is None else shown(self.default)


def parameters_of(
    factory: Callable, parts: Parts, given: Iterable[str] = (), about: Mapping[str, str] | None = None
) -> dict[str, Parameter]:
    """Settings of a factory, without those that the program gives.

    Raises:
      ConfigError: a parameter without default cannot be said in TOML.
    """
    found = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if name in given or parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        annotation = _annotation(factory, parameter)
        forms, required = forms_of(annotation, parts), parameter.default is parameter.empty
        if forms:
            default = None if required else parameter.default
            found[name] = Parameter(name, forms, required, default, (about or {}).get(name, ""))
        elif required:
            raise ConfigError(
                f"{factory.__name__} has the parameter {name} of type {annotation}, which a configuration "
                "cannot give: annotate it as float, int, bool, str, Path, Literal, a list of these, an optax "
                "transformation or a Transform, or give it a default."
            )
    return found


def _annotation(factory: Callable, parameter: inspect.Parameter) -> Any:
    """What the annotation means; ``None`` when it is missing or names something that cannot be found."""
    module = sys.modules.get(getattr(factory, "__module__", ""), None)
    names = getattr(inspect.unwrap(factory), "__globals__", None) or vars(module or typing)
    holder = types.SimpleNamespace(__annotations__={"it": parameter.annotation})
    if parameter.annotation is parameter.empty:
        return None
    try:
        return typing.get_type_hints(holder, globalns=names)["it"]
    except NameError:
        return None
