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
import re
import sys
import textwrap
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import optax

from fedjax_sim import aggregation, algorithms, data, engines, models, tasks, tracking
from fedjax_sim._src.types import Transform
from fedjax_sim.algorithms import server_optimizers
from fedjax_sim.data import Federated, cohorts, repartition
from fedjax_sim.experiment._forms import ConfigError, Form, Parameter, nearest, parameters_of, resolve, shown


def sharded(devices: int, lanes: int | Literal["auto"] = "auto") -> engines.Engine:
    """The lanes on several devices, one sum over them per round. Without accelerators, CPU cores are the devices.

    Args:
      devices: how many.
      lanes: per device.
    """
    return engines.sharded(engines.client_mesh(devices), lanes=lanes)


def iid(
    data: Federated, clients: int = 50, seed: int = 0, test_fraction: float | None = None, label: str = "y"
) -> Federated:
    """The examples dealt out evenly at random.

    Args:
      clients: how many.
      seed: of the deal.
      test_fraction: pools training and test examples and divides each new client's; else the test part stays.
      label: the label column.
    """
    return repartition(data, "iid", clients=clients, seed=seed, test_fraction=test_fraction, label=label)


def dirichlet(
    data: Federated,
    clients: int = 50,
    alpha: float = 0.3,
    seed: int = 0,
    min_examples: int | None = None,
    test_fraction: float | None = None,
    label: str = "y",
) -> Federated:
    """Each label divided over the clients by a Dirichlet law (Yurochkin et al. 2019).

    Args:
      clients: how many.
      alpha: small gives each label to few clients.
      seed: of the draw.
      min_examples: what every client holds at least; 1, or 2 with ``test_fraction``.
      test_fraction: as for ``iid``.
      label: the label column.
    """
    return repartition(
        data, "dirichlet", clients=clients, alpha=alpha, seed=seed, min_examples=min_examples,
        test_fraction=test_fraction, label=label,
    )  # fmt: skip


def shards(
    data: Federated,
    clients: int = 50,
    shards_per_client: int = 2,
    seed: int = 0,
    test_fraction: float | None = None,
    label: str = "y",
) -> Federated:
    """Examples sorted by label, cut into shards, and dealt (McMahan et al. 2017).

    Args:
      clients: how many.
      shards_per_client: so many labels, about, at each client.
      seed: of the deal.
      test_fraction: as for ``iid``.
      label: the label column.
    """
    return repartition(
        data, "shards", clients=clients, shards_per_client=shards_per_client, seed=seed,
        test_fraction=test_fraction, label=label,
    )  # fmt: skip


def csv(folder: Path, keep_rounds: int | None) -> tracking.Tracker:
    """The rows of metrics.jsonl as a table, metrics.csv in the run folder."""
    return tracking.Csv(folder / "metrics.csv", keep_rounds)


def tensorboard(folder: Path, keep_rounds: int | None) -> tracking.Tracker:
    """Event files for TensorBoard, in the run folder's tensorboard/. Needs the extra ``tensorboard``."""
    return tracking.TensorBoard(folder / "tensorboard", keep_rounds)


def wandb(
    folder: Path,
    keep_rounds: int | None,
    project: str = "fedjax-sim",
    mode: Literal["online", "offline", "disabled"] = "offline",
) -> tracking.Tracker:
    """Weights & Biases; offline runs lie in the run folder. Needs the extra ``wandb``.

    Args:
      project: where the run is filed.
      mode: ``"offline"`` needs no account and no network.
    """
    # The folder's name tells the run, so that one that goes on stays the same run there.
    return tracking.WeightsAndBiases(project, folder.name, folder=folder, mode=mode, run_id=folder.name)


BUILT_IN: dict[str, dict[str, Callable[..., Any]]] = {
    "datasets": {
        name: getattr(data, name) for name in ("digits", "npz", "leaf", "images", "mnist_by_writer")
    },
    "partitions": {"iid": iid, "dirichlet": dirichlet, "shards": shards},
    "augmentations": {
        name: getattr(data.augmentations, name) for name in ("shift", "rotate", "brightness", "horizontal_flip")
    },
    "models": {
        name: getattr(models, name)
        for name in (
            "linear", "mlp", "cnn", "emnist_cnn", "reference_cnn", "deeper_cnn", "cifar10_cnn", "char_lstm",
        )
    },
    "tasks": {"classification": tasks.classification, "regression": tasks.regression},
    "algorithms": {
        name: getattr(algorithms, name)
        for name in (
            "fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "fedsgd", "scaffold", "mime", "ifca",
        )
    },
    "optimizers": {
        **{name: getattr(optax, name) for name in ("sgd", "adam", "adamw", "adagrad", "rmsprop", "yogi", "lion", "lamb")},
        **{name: getattr(server_optimizers, name) for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad")},
    },
    "transforms": {
        name: getattr(aggregation, name)
        for name in (
            "identity", "mean", "clip_by_global_norm", "adaptive_clip", "gaussian_noise", "top_k", "coordinate_median",
            "mean_by_model",
        )
    },
    "cohorts": {name: getattr(cohorts, name) for name in ("uniform", "poisson", "fixed", "all_clients")},
    "engines": {"lanes": engines.lanes, "sequential": engines.sequential, "sharded": sharded},
    "trackers": {"csv": csv, "tensorboard": tensorboard, "wandb": wandb},
}  # fmt: skip

GIVEN = {
    "algorithms": ("task",), "tasks": ("model",), "trackers": ("folder", "keep_rounds"), "partitions": ("data",),
    "unseen": ("data",),
}  # fmt: skip
"""Parameters that the program gives: an algorithm's task is made of the tables ``task`` and ``model``."""

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
                raise ConfigError(f"{below(path, key)} is no setting of {self.name}; {has}.{near}")
        found = {}
        for name, parameter in self.parameters.items():
            if name in table:
                found[name] = resolve(below(path, name), table[name], parameter.forms)
            elif name in open:
                continue
            elif parameter.required:
                about = f": {parameter.about}" if parameter.about else ""
                says = " or ".join(form.says for form in parameter.forms)
                raise ConfigError(f"{below(path, name)} is missing; {self.name} needs it ({says}{about}).")
            elif parameter.default is not None:
                found[name] = resolve(below(path, name), parameter.default, parameter.forms)
        return found

    def build(self, settings: Mapping[str, Any], **given: Any) -> Any:
        """Calls the factory with resolved settings and what the program gives."""
        built = {name: value for name, value in settings.items() if name != "name"}
        for name, value in built.items():
            for form in self.parameters[name].forms:
                if isinstance(form, Part) and form.accepts(value):
                    built[name] = form.build(value)
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
    data.augmentations.Augmentation: Part("augmentations", data.augmentations.compose),
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
        raise ConfigError(
            f"{path} is {shown(name)}, but it cannot be imported: {error}. Its folder must be installed, or listed in the "
            "top-level key paths."
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
    about = _arguments(text)
    return Entry(
        kind,
        name,
        factory,
        parameters_of(factory, PARTS, GIVEN.get(kind, ()), about),
        _summary(text),
        _source(text),
    )


def below(path: str, key: Any) -> str:
    """Path of a key in a table."""
    return f"{path}.{key}" if path else str(key)


def resolve_part(kind: str, path: str, value: Any, open: Collection[str] = ()) -> dict[str, Any]:
    """A component's table with all its settings; ``value`` is the table, or the name alone."""
    table = {"name": value} if isinstance(value, str) else value
    if not isinstance(table, Mapping):
        raise ConfigError(f"{path} is {shown(value)}, expected {Part(kind).says}.")
    if "name" not in table:
        raise ConfigError(f"{path}.name is missing, expected one of {', '.join(names(kind))}.")
    name = table["name"]
    if not isinstance(name, str):
        raise ConfigError(f"{path}.name is {shown(name)}, expected one of {', '.join(names(kind))}.")
    entry = find(kind, name, f"{path}.name")
    rest = {key: item for key, item in table.items() if key != "name"}
    return {"name": name, **entry.resolve(path, rest, open)}


def build_part(kind: str, settings: Mapping[str, Any], **given: Any) -> Any:
    return find(kind, settings["name"], kind).build(settings, **given)


# --- docstrings ----------------------------------------------------------------------------------------------


def _summary(text: str) -> str:
    paragraph = " ".join(text.split("\n\n")[0].split())
    return re.split(r"(?<=[.;:])\s", paragraph)[0] if len(paragraph) > 120 else paragraph


def _arguments(text: str) -> dict[str, str]:
    """What the section Args, or Attributes, says of each parameter, on one line."""
    section = re.search(r"^(?:Args|Attributes|Parameters):\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    if section is None:
        return {}
    lines = textwrap.dedent(section.group(1)).splitlines()
    found: dict[str, str] = {}
    current: list[str] = []
    for line in lines:
        match = re.match(r"(\*{0,2}\w+(?:, \w+)*)(?: \([^)]*\))?: (.*)", line)
        if match:
            current = [name.strip("*") for name in match.group(1).split(", ")]
            found |= dict.fromkeys(current, match.group(2).strip())
        elif line.strip() and line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}" for name in current}
    return found


def _source(text: str) -> str:
    explicit = re.search(r"^Source: ((?:.+\n?)+)", text, re.MULTILINE)
    if explicit:
        return " ".join(explicit.group(1).split())
    cited = re.search(r"[A-Z]\w+ et al\.?,? (?:\"[^\"]+\", )?\d{4}", " ".join(text.split()))
    paper = re.search(r"\(([^()]*\d{4}[^()]*)\)", text.split("\n\n")[0])
    if paper:
        return " ".join(paper.group(1).split())
    return cited.group(0) if cited else ""
