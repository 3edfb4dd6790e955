"""The settings of an experiment: read from TOML, changed from outside, checked, and completed with every default."""

from __future__ import annotations

import copy
import dataclasses
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_sim.data import holdout_clients, repartition
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.experiment._forms import ConfigError, nearest, shown
from fedjax_sim.experiment._merge import merged
from fedjax_sim.experiment._privacy import Privacy
from fedjax_sim.experiment._registry import Entry, Part, entry_of, resolve_part
from fedjax_sim.experiment._tasks import WRAPPERS

Settings = dict[str, Any]
"""Complete settings in TOML's types; what is ``None`` is left out."""


@dataclasses.dataclass(frozen=True)
class Run:
    """The keys that stand outside of any table.

    Attributes:
      name: of the run folder; made of algorithm and data if not given.
      rounds: rounds of training.
      seeds: one replica each, all in one program.
      rounds_per_chunk: rounds that run without the host; ten, or up to fifty short ones, if not given.
      paths: folders, relative to this file, in which modules of your own are found.
      plots: draw the run at its end, into the run folder's plots/.
    """

    name: str | None = None
    rounds: int = 100
    seeds: Sequence[int] = (0,)
    rounds_per_chunk: int | None = None
    paths: Sequence[str] = ()
    plots: bool = True


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """When and how models are evaluated.

    Attributes:
      every: rounds between two evaluations.
      personalised: at the end, also every client's own model after local training, before against after.
    """

    every: int = 10
    personalised: bool = False


@dataclasses.dataclass(frozen=True)
class Keep:
    """Checkpoints.

    Attributes:
      every: rounds between two checkpoints.
      keep: how many of the newest are kept.
      keep_every: checkpoints after a multiple of so many rounds are kept for good.
    """

    every: int = 50
    keep: int = 2
    keep_every: int | None = None


@dataclasses.dataclass(frozen=True)
class Clock:
    """A simple law of simulated time: a round lasts as long as its slowest client computes, plus its messages.

    Attributes:
      seconds_per_step: of local training, on every client.
      up_megabytes_per_second: from a client.
      down_megabytes_per_second: to a client.
    """

    seconds_per_step: float = 0.05
    up_megabytes_per_second: float = 1.0
    down_megabytes_per_second: float = 5.0


PARTS = {
    "data": "datasets", "task": "tasks", "model": "models", "algorithm": "algorithms", "cohort": "cohorts",
    "engine": "engines",
}  # fmt: skip
"""Tables that name a component, and its kind."""

PLAIN: dict[str, type] = {
    "local": LocalWork,
    "evaluation": Evaluate,
    "checkpoints": Keep,
    "clock": Clock,
    "privacy": Privacy,
}
"""Tables whose keys are fixed, and the dataclass that they become."""

OPTIONAL: dict[str, Callable] = {"unseen": holdout_clients, **WRAPPERS}
DEAL = entry_of("partition", "partition", repartition).parameters
"""Settings of ``[partition]`` beside those of the law that it names."""
"""Tables that may be missing, and the function that is called with what they hold."""

DEFAULTS: dict[str, Any] = {
    "data": {"name": "digits"},
    "task": {"name": "classification"},
    "model": {"name": "mlp"},
    "algorithm": {"name": "fedavg", "client": {"name": "sgd", "learning_rate": 0.1}},
    "cohort": {"name": "uniform", "size": 10},
    "engine": {"name": "lanes"},
}

FROM_DATA = {"model": ("classes", "vocabulary")}
"""Settings that come from the data where they are not given."""

FREE_ON_RESUME = (
    "name", "rounds", "rounds_per_chunk", "paths", "plots", "engine", "evaluation", "checkpoints", "trackers", "clock",
    "privacy",
)  # fmt: skip
"""What may differ from the run that is gone on with: none of it changes the model."""


def read(path: str | Path) -> dict[str, Any]:
    """The tables of a TOML file, which may begin with a byte-order mark.

    Raises:
      ConfigError: it is not there, or not TOML; names the line.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"there is no file {path}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}.") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error}.") from error


def assignment(text: str) -> tuple[str, Any]:
    """``key=value`` with a dotted key and a TOML value; a bare word is text.

    Raises:
      ConfigError: there is no ``=`` or no key.
    """
    key, equals, value = text.partition("=")
    key, value = key.strip(), value.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+|\[\d+\])*", key):
        raise ConfigError(
            f"{shown(text)} is no setting, expected key=value, for example algorithm.client.learning_rate=0.1."
        )
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        if re.fullmatch(r"[\w./:~@+-]+", value):
            return key, value
        raise ConfigError(
            f"{key} is set to {value}, which is no value of TOML: put text into quotes."
        ) from None


def resolve(tables: Mapping[str, Any], changes: Iterable[tuple[str, Any]] = ()) -> Settings:
    """Complete and checked settings.

    Args:
      tables: of a TOML file.
      changes: ``(dotted key, value)``; later ones win.

    Raises:
      ConfigError: an unknown key, a wrong value, or a missing one; begins with the key's path.
    """
    given = _changed(tables, list(changes))
    run = entry_of("settings", "an experiment", Run)
    known = [*run.parameters, *PARTS, "partition", *OPTIONAL, *PLAIN, "trackers", "sweep"]
    for key in given:
        if key not in known:
            raise ConfigError(
                f"{key} is no setting of an experiment; it has {', '.join(known)}.{nearest(key, known)}"
            )
    found: Settings = run.resolve("", {key: given[key] for key in run.parameters if key in given})
    for key, kind in PARTS.items():
        found[key] = resolve_part(kind, key, given[key], FROM_DATA.get(key, ()))
        if key == "data" and "partition" in given:
            found["partition"] = resolve_part("partitions", "partition", given["partition"], also=DEAL)
    for key, function in OPTIONAL.items():
        if key in given:
            found[key] = entry_of(key, key, function).resolve(key, _table(key, given[key]))
    for key, factory in PLAIN.items():
        found[key] = _plain(key, factory).resolve(key, _table(key, given.get(key, {})))
    found["trackers"] = Part("trackers", compose=tuple).resolve("trackers", given.get("trackers", []))
    if "sweep" in given:
        found["sweep"] = _sweep(given["sweep"], tables, changes)
    _check_run(found)
    return found


def differences(before: Settings, after: Settings) -> list[str]:
    """What differs between two runs that must not when one goes on with the other; one line each."""
    old, new = flat(before), flat(after)
    lines = []
    for key in dict.fromkeys([*old, *new]):
        if re.split(r"[.\[]", key)[0] in FREE_ON_RESUME or old.get(key) == new.get(key):
            continue
        was = shown(old[key]) if key in old else "not set"
        lines.append(f"{key}: {was} in the run folder, {shown(new[key]) if key in new else 'not set'} now")
    return lines


def flat(settings: Any, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key."""
    if isinstance(settings, Mapping) and (settings or not prefix):
        items = [(f"{prefix}.{key}" if prefix else key, value) for key, value in settings.items()]
    elif isinstance(settings, list) and any(isinstance(item, Mapping) for item in settings):
        items = [(f"{prefix}[{index}]", value) for index, value in enumerate(settings)]
    else:
        return {prefix: settings}
    return {name: leaf for key, value in items for name, leaf in flat(value, key).items()}


def _plain(key: str, factory: type) -> Entry:
    return entry_of("settings", key, factory)


def _table(path: str, value: Any) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{path} is {shown(value)}, expected a table.")
    return value


def _changed(tables: Mapping[str, Any], changes: list[tuple[str, Any]]) -> dict[str, Any]:
    """The tables over the defaults, with the changes in them."""
    given = _over_defaults(copy.deepcopy({**DEFAULTS, **tables}))
    # The default's settings mean nothing to another component.
    for key, value in changes:
        part, _, last = key.rpartition(".")
        if last == "name" and part in DEFAULTS and part not in tables and value != given[part]["name"]:
            given[part] = {"name": value}
    for key, value in changes:
        set_at(given, key, value)
    return _over_defaults(given)


def _over_defaults(given: dict[str, Any]) -> dict[str, Any]:
    """A component's table without a name changes settings of the default."""
    nameless = {
        part: merged(default, given[part])
        for part, default in DEFAULTS.items()
        if isinstance(given[part], Mapping) and "name" not in given[part]
    }
    return {**given, **nameless}


def set_at(settings: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key, tables made on the way.

    Raises:
      ConfigError: the way leads through something that is no table, or past the end of a list.
    """
    steps = re.findall(r"[\w-]+", key)
    here: Any = settings
    for index, step in enumerate(steps):
        path = ".".join(steps[:index]) or "the experiment"
        place: Any = step
        if isinstance(here, list) and step.isdigit():
            place = int(step)
            if place >= len(here):
                raise ConfigError(f"{key} cannot be set: {path} has {len(here)} items, counted from 0.")
        elif not isinstance(here, dict):
            raise ConfigError(f"{key} cannot be set: {path} is {shown(here)}, expected a table.")
        if index == len(steps) - 1:
            here[place] = value
            return
        below = here[place] if isinstance(here, list) else here.get(place, {})
        # A name alone, as in `client = "adam"`, is a table with nothing but a name.
        here[place] = {"name": below} if isinstance(below, str) else below
        here = here[place]


def _sweep(table: Any, tables: Mapping[str, Any], changes: Iterable[tuple[str, Any]]) -> dict[str, list]:
    """Each swept key with its values, all of which the experiment accepts."""
    found = {}
    without = {key: value for key, value in tables.items() if key != "sweep"}
    kept = [(key, value) for key, value in changes if not key.startswith("sweep")]
    for key, values in flat_sweep(_table("sweep", table)).items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"sweep.{key} is {shown(values)}, expected a list of values.")
        if key.endswith(".name"):
            table_key = key.removesuffix(".name")
            raise ConfigError(
                f"sweep.{key}: another name has settings of its own. Sweep the whole table: sweep.{table_key} = "
                '[{ name = "..." }, { name = "..." }].'
            )
        if key in ("seeds", "paths", "name"):
            raise ConfigError(
                f"sweep.{key}: {key} cannot be swept."
                + (" Give seeds = [0, 1, 2]." if key == "seeds" else "")
            )
        for value in values:
            resolve(without, [*kept, (key, value)])
        found[key] = values
    return found


def flat_sweep(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys, whether they were written in quotes or as tables."""
    found = {}
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        found |= flat_sweep(value, name) if isinstance(value, Mapping) else {name: value}
    return found


def _check_run(found: Settings) -> None:
    for key in ("rounds", "rounds_per_chunk"):
        if found.get(key, 1) < 1:
            raise ConfigError(f"{key} is {found[key]}, expected an integer of at least 1.")
    seeds = found["seeds"]
    if not seeds or len(set(seeds)) != len(seeds) or min(seeds) < 0 or max(seeds) >= 2**32:
        raise ConfigError(
            f"seeds is {shown(seeds)}, expected different integers from 0 to {2**32 - 1}, at least one."
        )
    for table, key in (
        ("evaluation", "every"),
        ("checkpoints", "every"),
        ("checkpoints", "keep"),
    ):
        if found[table][key] < 1:
            raise ConfigError(f"{table}.{key} is {found[table][key]}, expected an integer of at least 1.")
    for key, value in found["clock"].items():
        if value < 0 or (value == 0 and key != "seconds_per_step"):
            raise ConfigError(f"clock.{key} is {value}, expected a number above 0.")
