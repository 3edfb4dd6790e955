"""Names that a configuration may use, and what they stand for.

A component is a plain factory: its signature says what settings it has, its docstring what they mean. One's own needs
no registration: ``name = "my_package.my_module:factory"`` finds it, an entry point of the group
``fedjax_sim.<kind>`` gives it a short name, and ``register`` does so from Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import importlib.metadata
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import optax

from fedjax_sim import aggregation, data
from fedjax_sim._src.types import Transform
from fedjax_sim.data import partitions
from fedjax_sim.experiment import _docstrings
from fedjax_sim.experiment._components import BUILT_IN, GIVEN, INSTEAD
from fedjax_sim.experiment._forms import (
    ConfigError,
    Form,
    Parameter,
    build,
    nearest,
    parameters_of,
    resolve,
    shown,
)

_registered: dict[tuple[str, str], Callable[..., Any]] = {}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One component.

    Attributes:
      kind: ``"algorithms"``, ``"models"``, ...
      name: as in TOML.
      factory: makes it.
      parameters: its settings.
      summary: first sentence of its docstring.
      source: the paper that it comes from, where the docstring says so.
    """

    kind: str
    name: str
    factory: Callable[..., Any]
    parameters: Mapping[str, Parameter]
    summary: str
    source: str

    def resolve(self, path: str, table: Mapping[str, Any], open: Collection[str] = ()) -> dict[str, Any]:
        """All settings, defaults included, checked; a setting that is ``None`` is left out.

        Args:
          path: of the table, for messages; empty for the keys outside of any table.
          table: what is given.
          open: settings that the program fills in where they are not given.

        Raises:
          ConfigError: an unknown key, a wrong value, or a setting that is missing.
        """
        for key in table:
            if key not in self.parameters:
                has = f"it has {', '.join(self.parameters)}" if self.parameters else "it has none"
                near = nearest(str(key), self.parameters)
                if (self.name, key) in INSTEAD:
                    near = f" {INSTEAD[self.name, key]}"
                raise ConfigError(f"{below(path, key)} is no setting of {self.name}; {has}.{near}")
        found = {}
        for name, parameter in self.parameters.items():
            if name in table:
                found[name] = resolve(below(path, name), table[name], parameter.forms)
            elif name in open:
                continue
            elif parameter.required:
                about = f": {parameter.about.rstrip('.')}" if parameter.about else ""
                says = " or ".join(form.says for form in parameter.forms)
                raise ConfigError(f"{below(path, name)} is missing; {self.name} needs it ({says}{about}).")
            elif parameter.default is not None:
                found[name] = resolve(below(path, name), parameter.default, parameter.forms)
        return found

    def build(self, settings: Mapping[str, Any], **given: Any) -> Any:
        """Calls the factory with resolved settings and what the program gives."""
        built = {
            name: build(value, self.parameters[name].forms)
            for name, value in settings.items()
            if name != "name"
        }
        return self.factory(**built, **given)


@dataclasses.dataclass(frozen=True)
class Part(Form):
    """Another component: a table with a ``name``, or the name alone; in a list where several compose."""

    kind: str
    compose: Callable[..., Any] | None = None

    @property
    def says(self) -> str:
        one = f"a table with a name, one of {', '.join(names(self.kind))}"
        return f"a list of tables, each {one.removeprefix('a table ')}" if self.compose else one

    def accepts(self, value: Any) -> bool:
        return isinstance(value, str | Mapping) or (
            self.compose is not None and isinstance(value, list | tuple)
        )

    def resolve(self, path: str, value: Any) -> Any:
        if self.compose is None:
            return resolve_part(self.kind, path, value)
        items = value if isinstance(value, list | tuple) else [value]
        return [resolve_part(self.kind, f"{path}[{index}]", item) for index, item in enumerate(items)]

    def build(self, settings: Any) -> Any:
        if self.compose is None:
            return build_part(self.kind, settings)
        return self.compose(*(build_part(self.kind, item) for item in settings))


PARTS: dict[Any, Part] = {
    optax.GradientTransformation: Part("optimizers"),
    Transform: Part("transforms", aggregation.chain),
    partitions.Partitioner: Part("partitions"),
    data.augmentations.Augmentation: Part("augmentations", data.augmentations.compose),
    data.decoders.Decoder: Part("decoders"),
    data.preprocessing.Preprocessing: Part("preprocessing", data.preprocessing.compose),
}


def kinds() -> tuple[str, ...]:
    """Kinds of components: ``"datasets"``, ``"models"``, ``"algorithms"``, and so on."""
    return tuple(BUILT_IN)


def register(kind: str, name: str, factory: Callable[..., Any]) -> None:
    """Gives a factory a name that configurations of this process may use.

    Args:
      kind: ``"algorithms"``, ``"models"``, ``"datasets"``, ``"tasks"``, ``"optimizers"``, ``"transforms"``,
        ``"cohorts"``, ``"engines"`` or ``"trackers"``.
      name: how TOML calls it.
      factory: its annotated parameters are its settings.

    Raises:
      ConfigError: an unknown kind, or a parameter that TOML cannot give.
      ValueError: the name is taken by another factory.

    Example:
      >>> import optax
      >>> from fedjax_sim import experiment
      >>> experiment.register("optimizers", "slow_sgd", lambda: optax.sgd(1e-3))
    """
    if kind not in BUILT_IN:
        raise ConfigError(
            f"kind is {shown(kind)}, expected one of {', '.join(BUILT_IN)}.{nearest(kind, BUILT_IN)}"
        )
    if name in BUILT_IN[kind] or _registered.get((kind, name), factory) is not factory:
        raise ValueError(f"{kind} has a {name!r} already; choose another name.")
    entry_of(kind, name, factory)
    _registered[kind, name] = factory


def names(kind: str) -> list[str]:
    """Names of a kind: built in, registered, and of installed packages."""
    registered = [name for of, name in _registered if of == kind]
    return [
        *BUILT_IN[kind],
        *registered,
        *(name for name in _entry_points(kind) if name not in BUILT_IN[kind]),
    ]


@functools.cache
def _entry_points(kind: str) -> dict[str, importlib.metadata.EntryPoint]:
    return {point.name: point for point in importlib.metadata.entry_points(group=f"fedjax_sim.{kind}")}


@contextlib.contextmanager
def importable(folders: Iterable[Path]) -> Iterator[None]:
    """Modules in these folders can be imported inside."""
    added = [str(folder.resolve()) for folder in folders]
    sys.path[:0] = added
    try:
        yield
    finally:
        for folder in added:
            sys.path.remove(folder)


def find(kind: str, name: str, path: str) -> Entry:
    """The component of a name.

    Args:
      kind: where to look.
      name: a known name, or ``module:attribute``.
      path: of the key that asks, for messages.

    Raises:
      ConfigError: there is none.
    """
    if name in BUILT_IN[kind]:
        return entry_of(kind, name, BUILT_IN[kind][name])
    if (kind, name) in _registered:
        return entry_of(kind, name, _registered[kind, name])
    try:
        if ":" in name:
            module, _, attribute = name.partition(":")
            factory = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
        elif name in _entry_points(kind):
            factory = _entry_points(kind)[name].load()
        else:
            raise ConfigError(
                f"{path} is {shown(name)}, expected one of {', '.join(names(kind))}, or one of your own as "
                f'"module:name".{nearest(name, names(kind))}'
            )
    except (ImportError, AttributeError) as error:
        near = nearest(name.partition(":")[0], names(kind))
        raise ConfigError(
            f"{path} is {shown(name)}, but it cannot be imported: {error}.{near} Of a module of your own, the folder must be "
            "installed, or listed in the top-level key paths."
        ) from error
    if not callable(factory):
        raise ConfigError(
            f"{path} is {shown(name)}, which is {type(factory).__name__}, expected a function or class."
        )
    return entry_of(kind, name, factory)


@functools.cache
def entry_of(kind: str, name: str, factory: Callable[..., Any]) -> Entry:
    """Reads a factory's signature and docstring."""
    text = inspect.getdoc(factory) or ""
    about = _docstrings.arguments(text)
    return Entry(
        kind,
        name,
        factory,
        parameters_of(factory, PARTS, GIVEN.get(kind, ()), about),
        _docstrings.summary(text),
        _docstrings.source(text),
    )


def below(path: str, key: Any) -> str:
    """Path of a key in a table."""
    return f"{path}.{key}" if path else str(key)


def resolve_part(
    kind: str,
    path: str,
    value: Any,
    open: Collection[str] = (),
    also: Mapping[str, Parameter] = MappingProxyType({}),
) -> dict[str, Any]:
    """A component's table with all its settings; ``value`` is the table, or the name alone.

    ``also`` are settings that the table has beside the component's.
    """
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path} is {shown(value)}, expected {Part(kind).says}.")
    if "name" not in table:
        raise ConfigError(f"{path}.name is missing, expected one of {', '.join(names(kind))}.")
    name = table["name"]
    if not isinstance(name, str):
        raise ConfigError(f"{path}.name is {shown(name)}, expected one of {', '.join(names(kind))}.")
    entry = find(kind, name, f"{path}.name")
    entry = dataclasses.replace(entry, parameters={**entry.parameters, **also})
    rest = {key: item for key, item in table.items() if key != "name"}
    return {"name": name, **entry.resolve(path, rest, open)}


def build_part(kind: str, settings: Mapping[str, Any], **given: Any) -> Any:
    return find(kind, settings["name"], kind).build(settings, **given)
