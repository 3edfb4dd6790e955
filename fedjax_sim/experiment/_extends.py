"""Files that build on another: ``extends = "original.toml"``, so that a variant holds nothing but what it changes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from fedjax_sim.experiment import _settings
from fedjax_sim.experiment._forms import PATH, ConfigError, shown
from fedjax_sim.experiment._merge import as_table, merged
from fedjax_sim.experiment._registry import Part, find, importable

KEY = "extends"


def read(file: Path) -> dict[str, Any]:
    """The tables of a TOML file over those of the file that it extends, and so on; ``extends`` itself is gone.

    A table is merged into the other file's key by key, unless its ``name`` is another: then it replaces it, for the
    settings of one component mean nothing to the next. Lists are replaced as a whole. Paths begin at the file that
    says them; they come back absolute where that is not ``file`` itself.

    Raises:
      ConfigError: a file is missing or no TOML, ``extends`` is no path, or files extend each other.
    """
    return _read(file, ())


def _read(file: Path, above: tuple[Path, ...]) -> dict[str, Any]:
    place = file.resolve()
    if place in above:
        circle = " extends ".join(path.name for path in (*above[above.index(place) :], place))
        raise ConfigError(f"{KEY}: {circle}; a file cannot build on itself, one of them must stand alone.")
    try:
        tables = _settings.read(file)
    except ConfigError as error:
        if not above:
            raise
        # A file that nobody named on the command line is named together with the one that asks for it.
        raise ConfigError(f"{KEY} in {above[-1]}: {error}") from error
    if KEY not in tables:
        return tables
    base = tables.pop(KEY)
    if not isinstance(base, str) or not base:
        raise ConfigError(f"{KEY} is {shown(base)}, expected the path of a TOML file, relative to {file}.")
    other = file.parent / Path(base).expanduser()
    below = _read(other, (*above, place))
    if other.resolve().parent != place.parent:
        below = located(below, other.parent)
    return merged(below, tables)


def located(
    tables: Mapping[str, Any], folder: Path, changed: Collection[str] = frozenset()
) -> dict[str, Any]:
    """Tables whose paths begin at a folder, with absolute ones: ``paths``, and what the data source calls a path.

    So does ``pretrained.weights``.

    Args:
      tables: of a file, or the settings made of them.
      folder: of the file.
      changed: dotted keys that the command line gave, whose paths begin at the folder that the command is run in.
    """

    def start(key: str) -> Path:
        return Path() if any(f"{key}.".startswith(f"{one}.") for one in changed) else folder

    found = dict(tables)
    listed = found.get("paths", [])
    if not isinstance(listed, list):
        return found  # refused when the settings are checked
    if listed:
        listed = found["paths"] = _absolute(listed, start("paths"))
    with importable(Path(item) for item in listed if isinstance(item, str)):
        data = as_table(found.get("data"))
        names = _path_names(data)
        if data is not None:
            found["data"] = _located_part("datasets", "data", data, start)
        if isinstance(found.get("pretrained"), Mapping) and "weights" in found["pretrained"]:
            weights = _absolute(found["pretrained"]["weights"], start("pretrained.weights"))
            found["pretrained"] = {**found["pretrained"], "weights": weights}
        if isinstance(found.get("sweep"), Mapping):
            found["sweep"] = {
                key: _located_values(key, values, names, start(f"sweep.{key}"))
                for key, values in _settings.flat_sweep(found["sweep"]).items()
            }
    return found


def _located_part(kind: str, path: str, table: Any, start: Callable[[str], Path]) -> Any:
    """A component's table, and those of components inside it, with absolute paths."""
    if not isinstance(table, Mapping) or not isinstance(table.get("name"), str):
        return table
    parameters, found = find(kind, table["name"], f"{path}.name").parameters, dict(table)
    for key, value in table.items():
        here, forms = f"{path}.{key}", parameters[key].forms if key in parameters else ()
        parts = [one.kind for form in forms for one in getattr(form, "items", ()) if isinstance(one, Part)]
        if PATH in forms:
            found[key] = _absolute(value, start(here))
        elif parts and isinstance(value, Mapping):
            found[key] = {
                name: _located_part(parts[0], f"{here}.{name}", one, start) for name, one in value.items()
            }
    return found


def _path_names(data: Any) -> set[str]:
    """Settings of a data source that are paths."""
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        return set()
    parameters = find("datasets", data["name"], "data.name").parameters
    return {name for name, parameter in parameters.items() if PATH in parameter.forms}


def _located_values(key: str, values: Any, names: Collection[str], folder: Path) -> Any:
    """The values of a swept key: paths, or whole tables of data sources that hold some."""
    if key == "data" and isinstance(values, list):
        return [
            {k: _absolute(v, folder) if k in _path_names(table) else v for k, v in table.items()}
            if isinstance(table, Mapping)
            else table
            for table in values
        ]
    is_path = key == "pretrained.weights" or (key.startswith("data.") and key.removeprefix("data.") in names)
    return _absolute(values, folder) if is_path else values


def _absolute(value: Any, folder: Path) -> Any:
    """A path, or a list of them; anything else is refused when the settings are checked."""
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    return absolute(value, folder) if isinstance(value, str) else value


def absolute(path: str, folder: Path) -> str:
    """Paths begin at the file that says them, wherever the command is run."""
    return str((folder / Path(path).expanduser()).resolve())
