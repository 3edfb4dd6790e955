"""An experiment: complete settings, and the data, task, algorithm and simulation that they describe."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from fedjax_sim import models
from fedjax_sim._src.types import Algorithm, Task
from fedjax_sim.data import Federated, holdout_clients, repartition
from fedjax_sim.data._remarks import label_remarks
from fedjax_sim.data.client_source import Clients
from fedjax_sim.experiment import _extends, _settings
from fedjax_sim.experiment._forms import ConfigError
from fedjax_sim.experiment._privacy import Privacy
from fedjax_sim.experiment._registry import build_part, find, importable
from fedjax_sim.experiment._said_in_toml import said_in_toml
from fedjax_sim.experiment._settings import DEAL, PLAIN, Clock, Evaluate, Keep, Settings
from fedjax_sim.experiment._tasks import wrapped
from fedjax_sim.simulate import Simulation


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What a configuration describes. Nothing is read or built before it is asked for.

    Attributes:
      settings: complete, in TOML's types; paths are absolute.

    Example:
      >>> from fedjax_sim import experiment
      >>> small = experiment.load(changes=["data.clients=20", "cohort.size=5", "model.name=linear"])
      >>> small.settings["cohort"]
      {'name': 'uniform', 'size': 5, 'replace': False}
      >>> sim = small.simulation()
      >>> state, history = sim.run(sim.init(seed=0), rounds=2)
    """

    settings: Settings

    # --- what the settings name ---

    @functools.cached_property
    def _seen_and_unseen(self) -> tuple[Federated, Federated | None]:
        with self._paths():
            with blame("data"):
                made = build_part("datasets", self.settings["data"])
                if not isinstance(made, Federated):
                    name = self.settings["data"]["name"]
                    raise TypeError(
                        f"{name} returned {type(made).__name__}, expected fedjax_sim.data.Federated."
                    )
            if "partition" in self.settings:
                with blame("partition"):
                    table = self.settings["partition"]
                    law = {key: value for key, value in table.items() if key not in DEAL}
                    deal = {key: value for key, value in table.items() if key in DEAL}
                    made = repartition(made, build_part("partitions", law), **deal)
        if "unseen" not in self.settings:
            return made, None
        with blame("unseen"):
            return holdout_clients(made, **self.settings["unseen"])

    @property
    def federated(self) -> Federated:
        """The data that is trained on, and its test part.

        Raises:
          ConfigError: it cannot be read or divided; begins with the table that says so.
        """
        return self._seen_and_unseen[0]

    def evaluation_sets(self) -> dict[str, Clients]:
        """What models are evaluated on: ``eval``, and ``unseen`` where clients are held out; sets without examples go."""
        seen, unseen = self._seen_and_unseen
        sets = {"eval": seen.test} | ({} if unseen is None else {"unseen": unseen.test})
        return {name: data for name, data in sets.items() if data.num_examples}

    @property
    def name(self) -> str:
        """Of the run folder."""
        if "name" in self.settings:
            return self.settings["name"]
        plain = [self.settings[part]["name"].rpartition(":")[2] for part in ("algorithm", "data")]
        return "-".join(plain)

    @property
    def seeds(self) -> list[int]:
        return list(self.settings["seeds"])

    @property
    def rounds(self) -> int:
        return self.settings["rounds"]

    @property
    def evaluation(self) -> Evaluate:
        return Evaluate(**self.settings["evaluation"])

    @property
    def checkpoints(self) -> Keep:
        return Keep(**self.settings["checkpoints"])

    @property
    def clock(self) -> Clock:
        return Clock(**self.settings["clock"])

    @property
    def privacy(self) -> Privacy:
        return Privacy(**self.settings["privacy"])

    def task(self) -> Task:
        """The model with its loss."""
        settings = dict(self.settings["model"])
        entry = find("models", settings["name"], "model.name")
        classes = self.federated.classes
        for name in _settings.FROM_DATA["model"]:
            if name in entry.parameters and name not in settings and classes is not None:
                settings[name] = classes
            elif name in entry.parameters and name not in settings and entry.parameters[name].required:
                why = "".join(f" The {said}." for said in label_remarks(self.federated))
                raise ConfigError(
                    f"model.{name} is missing, and {self.federated.name} does not tell it; {settings['name']} needs it.{why}"
                )
        with self._paths(), blame("model"):
            model = entry.build(settings)
        with self._paths(), blame("task"):
            task = build_part("tasks", self.settings["task"], model=model)
        return wrapped(task, self.settings, self._row(), blame)

    def algorithm(self, changes: Mapping[str, Any] | None = None) -> Algorithm:
        """The algorithm.

        Args:
          changes: ``{dotted key: value}`` for settings below ``algorithm``; values may be traced.
        """
        settings = {"algorithm": _copy(self.settings["algorithm"])}
        for key, value in (changes or {}).items():
            _settings.set_at(settings, key, value)
        with self._paths(), blame("algorithm"):
            return build_part("algorithms", settings["algorithm"], task=self._task)

    @functools.cached_property
    def _task(self) -> Task:
        return self.task()

    def parameters(self) -> int:
        """Trained parameters of the model."""
        variables = jax.eval_shape(self._task.init, jax.eval_shape(lambda: jax.random.key(0)), self._row())
        return models.count_parameters(variables.params)

    def _row(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Specs of a batch of one example."""
        on_device = jax.dtypes.canonicalize_dtype
        columns = self.federated.train.columns
        row = {
            name: jax.ShapeDtypeStruct((1, *c.shape[1:]), on_device(c.dtype)) for name, c in columns.items()
        }
        return row | {"mask": jax.ShapeDtypeStruct((1,), bool)}

    def simulation(self, changes: Mapping[str, Any] | None = None) -> Simulation:
        """All of it put together.

        Args:
          changes: as for ``algorithm``.

        Raises:
          ConfigError: parts that do not fit, such as a cohort larger than the population.
        """
        with self._paths():
            with blame("cohort"):
                cohort = build_part("cohorts", self.settings["cohort"])
            with blame("local"):
                local = PLAIN["local"](**self.settings["local"])
            with blame("engine"):
                engine = build_part("engines", self.settings["engine"])
        algorithm, train = self.algorithm(changes), self.federated.train
        chunk = self.settings.get("rounds_per_chunk")
        chunk = None if chunk is None else min(chunk, self.rounds)
        with blame(""):
            return Simulation(
                algorithm, train, cohort=cohort, local=local, engine=engine, rounds_per_chunk=chunk
            )

    def programs(self) -> list[Experiment]:
        """One experiment per program that the swept settings need.

        Numbers of the algorithm may be traced, so that all their values, and all seeds, run as replicas of one program.
        What changes shapes or steps (a model's width, a batch size) needs a program for every value.
        """
        swept = self.settings.get("sweep", {})
        structural = {key: values for key, values in swept.items() if not self._traceable(key, values)}
        if not structural:
            return [self]
        traced = {key: values for key, values in swept.items() if key not in structural}
        found = []
        for values in itertools.product(*structural.values()):
            settings = _copy({key: value for key, value in self.settings.items() if key != "sweep"})
            changes = list(zip(structural, values, strict=True))
            if traced:
                settings["sweep"] = traced
            said = "-".join(f"{key.rpartition('.')[2]}={value}" for key, value in changes)
            short = re.sub(r"[^\w.=+-]+", "_", said).strip("_")[:80]
            found.append(from_tables(settings, [*changes, ("name", f"{len(found):03d}-{short}")]))
        return found

    def _traceable(self, key: str, values: Iterable[Any]) -> bool:
        """Whether the algorithm can be built with a traced number in this place."""
        numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        if not key.startswith("algorithm.") or not numbers:
            return False
        try:
            jax.eval_shape(lambda value: (self.simulation({key: value}), 0)[1], 1.0)
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError, TypeError, ConfigError):
            return False
        return True

    def replicas(self) -> list[dict[str, Any]]:
        """What tells the replicas of one program apart: every seed with every combination of the swept settings."""
        swept = self.settings.get("sweep", {})
        cells = [dict(zip(swept, values, strict=True)) for values in itertools.product(*swept.values())]
        return [{"seed": seed} | ({"sweep": cell} if cell else {}) for cell in cells for seed in self.seeds]

    def traced(self, labels: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
        """Arguments of ``Simulation.sweep`` for the swept settings, one value per replica."""
        cells = [label.get("sweep", {}) for label in labels]
        if not cells[0]:
            return {}
        return {
            "algorithm": lambda **changes: self.algorithm(changes),
            "hyperparameters": {key: [float(cell[key]) for cell in cells] for key in cells[0]},
        }

    @property
    def devices(self) -> int:
        """Devices that the engine asks for; on CPU they must be set before JAX starts."""
        return int(self.settings["engine"].get("devices", 1))

    def same_run(self) -> Settings:
        """The settings that must stay as they are when the run goes on."""
        return {key: value for key, value in self.settings.items() if key not in _settings.FREE_ON_RESUME}

    @contextlib.contextmanager
    def _paths(self) -> Iterator[None]:
        with importable(map(Path, self.settings["paths"])):
            yield


@contextlib.contextmanager
def blame(path: str) -> Iterator[None]:
    """Errors of bad input say which table they come from."""
    try:
        yield
    except ConfigError:
        raise
    except (ValueError, TypeError, OSError) as error:
        said = said_in_toml(str(error))
        raise ConfigError(f"{path}: {said}" if path else said) from error


def load(path: str | Path | None = None, changes: Iterable[str] = ()) -> Experiment:
    """Reads an experiment.

    Args:
      path: a TOML file, or a run folder; without one, the default experiment on the embedded digits. A file may
        build on another: ``extends = "base.toml"``, relative to it.
      changes: ``key=value`` each, as after ``--set``.

    Raises:
      ConfigError: the file or a change cannot be used; begins with the key's path.
    """
    folder, tables = Path(), {}
    if path is not None:
        path = Path(path)
        file = path / "config.toml" if path.is_dir() else path
        tables, folder = _extends.read(file), file.parent
    assigned = [_settings.assignment(change) for change in changes]
    return from_tables(tables, assigned, folder)


def from_tables(
    tables: Mapping[str, Any], changes: Iterable[tuple[str, Any]] = (), folder: Path = Path()
) -> Experiment:
    """An experiment from the tables of a TOML file in a folder, and dotted changes.

    Paths in a change begin at the folder that the command is run in, as they do in every command.
    """
    changes = list(changes)
    said = {key for key, _ in changes}
    paths = dict(changes).get("paths", tables.get("paths", []))
    start = Path() if "paths" in said else folder
    listed = paths if isinstance(paths, list) else []
    folders = [Path(_extends.absolute(item, start)) for item in listed if isinstance(item, str)]
    with importable(folders):
        settings = _settings.resolve(tables, changes)
    return Experiment(_extends.located(settings, folder, said))


def _copy(settings: Any) -> Any:
    if isinstance(settings, dict):
        return {key: _copy(value) for key, value in settings.items()}
    return [_copy(value) for value in settings] if isinstance(settings, list) else settings
