"""Checkpoints: the whole of a run on disk, so that a run that was killed goes on as if it had not been.

A checkpoint is written with orbax: into a temporary folder that is renamed when it is complete, in the background,
as plain arrays and JSON. It holds the state, the history so far, and a description of what was run. The rows of clients have a
file of their own (``_client_item``), which a table on disk or in a store is copied into while the run waits.
"""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from fedjax_sim._client_layout import RowLayout
from fedjax_sim._client_rows import Opener, row_table
from fedjax_sim._client_state import copied
from fedjax_sim._client_store import ScratchError
from fedjax_sim._src import checks
from fedjax_sim._src.logs import silenced
from fedjax_sim.engines import SimState
from fedjax_sim.engines._state import ClientTable
from fedjax_sim.evaluation import Evaluation
from fedjax_sim.history import Costs, History

_FORMAT, _READABLE = 2, (1, 2)
"""Of what is written. Format 1 has the client table among the arrays."""
_ARRAYS, _ABOUT, _CLIENTS = "arrays", "about", "clients"


class CheckpointError(ValueError):
    """A folder of checkpoints that cannot be used for a run: foreign, damaged, or of a run with other settings."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """Where and how often a run is saved; ``Simulation.run`` goes on from the newest checkpoint by itself.

    Attributes:
      folder: holds one folder per checkpoint, named by the rounds done; made when it is missing.
      every: rounds between two checkpoints. The end of a run is always saved.
      keep: how many of the newest are kept.
      keep_every: checkpoints after a multiple of so many rounds are kept for good; ``None`` for none.
      settings: what must be the same when the run goes on, in JSON's types; the simulation adds what it can see
        itself: algorithm, chain, cohort, local work, data.

    Raises:
      ValueError: a count below 1.

    Example:
      >>> import tempfile, fedjax_sim as fs, optax
      >>> data = fs.data.load("digits", clients=20, alpha=0.3, seed=0)
      >>> task = fs.tasks.classification(fs.models.linear(classes=10))
      >>> sim = fs.Simulation(fs.algorithms.fedavg(task, optax.sgd(0.1)), data.train, cohort=fs.cohorts.uniform(5))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     checkpoints = fs.Checkpoints(folder, every=2)
      ...     _, short = sim.run(sim.init(seed=0), rounds=3, checkpoints=checkpoints)
      ...     _, whole = sim.run(sim.init(seed=0), rounds=5, checkpoints=checkpoints)  # two more
      >>> whole.rounds, bool((whole["loss"][:3] == short["loss"]).all())
      (5, True)
    """

    folder: str | Path
    every: int = 50
    keep: int = 2
    keep_every: int | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        checks.positive_int("Checkpoints.every", self.every)
        checks.positive_int("Checkpoints.keep", self.keep)
        if self.keep_every is not None:
            checks.positive_int("Checkpoints.keep_every", self.keep_every)

    def rounds(self) -> list[int]:
        """Rounds done at each checkpoint of the folder, ascending."""
        folder = Path(self.folder)
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit() and path.is_dir())


@dataclasses.dataclass(frozen=True)
class Saved:
    """What a checkpoint holds.

    Attributes:
      state: the state after ``rounds`` rounds, its client table not on a device.
      histories: one per replica.
      rounds: rounds done, counted from the state with round 0.
    """

    state: SimState
    histories: list[History]
    rounds: int


class Store:
    """The open folder of a run's checkpoints.

    Args:
      checkpoints: where and how often.
      description: what the run is, in JSON's types; a checkpoint of another one is refused.
      template: the run's state or its specs; a checkpoint has its structure.
      read_only: nothing in the folder is changed, and another process may write to it.
      opener: of the client table of a state that is read; ``None`` for one in memory.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        description: Mapping[str, Any],
        template: SimState,
        read_only: bool = False,
        opener: Opener | None = None,
    ):
        # Slow to import, and accelerator images may lack it: only runs with checkpoints need it.
        import orbax.checkpoint as ocp

        from fedjax_sim import _client_item

        self._ocp, self._item, self._opener = ocp, _client_item, opener
        self._checkpoints, self._template = checkpoints, template
        # As JSON gives it back, so that tuples and lists compare equal.
        self._description = json.loads(json.dumps({**description, "settings": dict(checkpoints.settings)}))
        self.every = checkpoints.every
        self._folder = Path(checkpoints.folder).absolute()
        self._read_only = read_only
        if not read_only:
            self._folder.mkdir(parents=True, exist_ok=True)
        with silenced("absl"):  # orbax logs which options follow from read_only
            if read_only:
                options = ocp.CheckpointManagerOptions(read_only=True)
            else:
                options = ocp.CheckpointManagerOptions(
                    max_to_keep=checkpoints.keep,
                    keep_period=checkpoints.keep_every,
                    cleanup_tmp_directories=True,
                    enable_async_checkpointing=True,
                )
            self._manager = ocp.CheckpointManager(self._folder, options=options)
        self._newest = max(checkpoints.rounds(), default=-1)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        try:
            with silenced("absl"):
                self._manager.close()  # waits for what is still being written
        except Exception:
            if kind is None:  # else the first error is the one to hear of
                raise

    def save(self, state: SimState, histories: Sequence[History]) -> None:
        """Writes a checkpoint, in the background but for a client table outside of memory; an error of the one before surfaces here.

        Raises:
          OSError: the disk is full or cannot be written.
        """
        rounds = _rounds(state)
        if rounds == self._newest:
            return
        specs = {name: _spec(value) for name, value in _named(_raw(state))}
        # A copy on the host: the device's buffers are given to the next chunk while the disk is written.
        rest = dataclasses.replace(state, clients=())
        values = {name: np.array(value) for name, value in _named(jax.device_get(_raw(rest)))}
        about = {
            "format": _FORMAT,
            "description": self._description,
            "specs": specs,
            "histories": [_pack(history) for history in histories],
        }
        for replica, history in enumerate(histories):
            values |= {f"history/{replica}/{name}": value for name, value in history.metrics.items()}
        args = self._ocp.args
        items = {
            _ARRAYS: args.StandardSave({k: v for k, v in values.items() if v.size}),
            _ABOUT: args.JsonSave(about),
        }
        if jax.tree.leaves(state.clients):
            items[_CLIENTS] = self._rows(state)
        try:
            with silenced("absl"):
                self._manager.save(rounds, args=args.Composite(**items))
        except (ValueError, OSError) as error:  # orbax and tensorstore report a full disk as the first
            message = f"the checkpoint after round {rounds} could not be written to {self._folder}: {error}"
            raise OSError(message) from error
        self._newest = rounds

    def _rows(self, state: SimState) -> Any:
        """What orbax gets of the client table: a copy in memory, or the table outside of it, which is read while the run waits."""
        table, layout = state.clients, RowLayout(state.clients, np.ndim(state.round))
        if row_table(table) is not None:
            return self._item.RowsSave(table, layout, background=False)
        copy = jax.tree.map(lambda x: copied(np.asarray(x)), table)
        return self._item.RowsSave(copy, layout, background=True)

    def newest(self, at_most: int | None = None) -> Saved | None:
        """The newest checkpoint that can be read, ``None`` without any.

        Instead of one that is damaged, the one before it is taken, with a warning; where the folder may be written, the
        damaged one is renamed.

        Raises:
          CheckpointError: it belongs to another run, or lies beyond ``at_most`` rounds.
        """
        for rounds in reversed(self._checkpoints.rounds()):
            if at_most is not None and rounds > at_most:
                raise CheckpointError(
                    f"{self._folder} has a checkpoint after {rounds} rounds, and {at_most} rounds were asked for. Ask for "
                    "at least as many, or use another folder."
                )
            try:
                saved = self._read(rounds)
            except (CheckpointError, ScratchError, MemoryError):  # which are no fault of the checkpoint's
                raise
            except Exception as error:  # orbax and tensorstore raise many kinds for damaged files
                self._set_aside(rounds, error)
                continue
            self._newest = rounds
            return saved
        return None

    def _set_aside(self, rounds: int, error: Exception) -> None:
        path, renamed = self._folder / str(rounds), ""
        if not self._read_only:
            aside = path.with_name(f"{rounds}.damaged")
            number = 2
            while aside.exists():
                aside, number = path.with_name(f"{rounds}.damaged-{number}"), number + 1
            path.rename(aside)
            self._manager.reload()
            renamed = f" and is now {aside.name}"
        warnings.warn(
            f"the checkpoint {path} cannot be read{renamed}; going on from the one before it, if there "
            f"is one. ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})",
            RuntimeWarning,
            stacklevel=4,
        )

    def _read(self, rounds: int) -> Saved:
        args = self._ocp.args
        if not (self._folder / str(rounds) / _ABOUT).is_dir():
            raise CheckpointError(
                f"{self._folder / str(rounds)} is not a checkpoint of fedjax_sim: it has no part {_ABOUT!r}. Use another folder."
            )
        with silenced("absl"):
            about = self._manager.restore(rounds, args=args.Composite(**{_ABOUT: args.JsonRestore()}))[_ABOUT]
        if not isinstance(about, dict) or about.get("format") not in _READABLE:
            raise CheckpointError(
                f"{self._folder / str(rounds)} has format {about.get('format') if isinstance(about, dict) else about!r}, "
                f"this version of fedjax_sim reads {' and '.join(map(str, _READABLE))}. Use the version that wrote it, or another folder."
            )
        self._compare(rounds, about)
        with silenced("absl"):
            arrays = self._manager.restore(rounds, args=args.Composite(**{_ARRAYS: args.StandardRestore()}))[
                _ARRAYS
            ]
        specs = {
            name: jax.ShapeDtypeStruct(shape, jax.numpy.dtype(dtype))
            for name, (dtype, shape) in about["specs"].items()
        }
        state = jax.tree.unflatten(jax.tree.structure(_raw(self._template)), specs.values())
        if about["format"] > 1 and jax.tree.leaves(state.clients):
            table = self._table(rounds, state)
            arrays |= {f"clients/{name}": leaf for name, leaf in _named(table)}
        # Arrays without elements are not written.
        leaves = [
            arrays[name] if name in arrays else np.zeros(spec.shape, spec.dtype)
            for name, spec in specs.items()
        ]
        state = _typed(jax.tree.unflatten(jax.tree.structure(state), leaves))
        histories = []
        for replica, packed in enumerate(about["histories"]):
            prefix = f"history/{replica}/"
            metrics = {name: arrays[prefix + name] for name in packed["metrics"]}
            histories.append(_unpack(packed, metrics))
        return Saved(state, histories, rounds)

    def _table(self, rounds: int, specs: SimState) -> ClientTable:
        path = self._folder / str(rounds) / _CLIENTS / self._item.FILE
        return self._item.read(path, RowLayout(specs.clients, len(specs.round.shape)), self._opener)

    def _compare(self, rounds: int, about: Mapping[str, Any]) -> None:
        """Refuses the checkpoint of another run, and says what differs."""
        ours = {f"state/{name}": _spec(value) for name, value in _named(_raw(self._template))}
        theirs = {f"state/{name}": spec for name, spec in about["specs"].items()}
        # The client table has as many rows as the devices share evenly: another number of devices is no other run.
        axis = len(ours["state/round"][1])
        same_rows = [_without_rows(specs, axis) for specs in (theirs, ours)]
        lines = list(differences(dict(_flat(about["description"])), dict(_flat(self._description))))
        lines += differences(*same_rows)
        if lines:
            shown = "\n".join(f"  {line}" for line in lines[:20])
            more = f"\n  and {len(lines) - 20} more" if len(lines) > 20 else ""
            raise CheckpointError(
                f"the checkpoint {self._folder / str(rounds)} belongs to a run with other settings:\n{shown}{more}\n"
                "Go on with the settings of the checkpoint, or start anew in another folder."
            )


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[str]:
    """One line per key in which a checkpoint and a run differ."""
    for name in dict.fromkeys([*theirs, *ours]):
        if name not in ours:
            yield f"{name}: {_shown(theirs[name])} in the checkpoint, nothing now"
        elif name not in theirs:
            yield f"{name}: nothing in the checkpoint, {_shown(ours[name])} now"
        elif theirs[name] != ours[name]:
            yield f"{name}: {_shown(theirs[name])} in the checkpoint, {_shown(ours[name])} now"


# --- plain forms ---------------------------------------------------------------------------------------------


def _raw(state: SimState) -> SimState:
    """The key as its words: arrays alone."""
    key = state.key
    if isinstance(key, jax.ShapeDtypeStruct):
        return dataclasses.replace(state, key=jax.eval_shape(jax.random.key_data, key))
    return dataclasses.replace(state, key=jax.random.key_data(key))


def _typed(state: SimState) -> SimState:
    """The key as a key, and the rest on the device but for the client table: a run brings that to where it belongs."""
    key = jax.random.wrap_key_data(jax.numpy.asarray(state.key), impl="threefry2x32")
    placed = jax.tree.map(jax.numpy.asarray, dataclasses.replace(state, key=key, clients=()))
    clients = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, state.clients)
    return dataclasses.replace(placed, clients=clients)


def _named(state: SimState | ClientTable) -> list[tuple[str, Any]]:
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return [(jax.tree_util.keystr(path, simple=True, separator="/"), leaf) for path, leaf in leaves]


def _spec(value: Any) -> list:
    return [str(value.dtype), list(value.shape)]


def _without_rows(specs: Mapping[str, list], axis: int) -> dict[str, list]:
    """Specs with the axis of the rows taken out of the client table's; the axis of replicas stands before it."""
    return {
        name: [dtype, shape[:axis] + shape[axis + 1 :] if name.startswith("state/clients/") else shape]
        for name, (dtype, shape) in specs.items()
    }


def _rounds(state: SimState) -> int:
    return int(np.ravel(jax.device_get(state.round))[0])


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, Mapping) and content:
        for name, value in content.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, content


def _shown(value: Any) -> str:
    if (
        isinstance(value, list)
        and len(value) == 2
        and isinstance(value[0], str)
        and isinstance(value[1], list)
    ):
        return f"{value[0]}{value[1]}"
    return json.dumps(value)


def _pack(history: History) -> dict[str, Any]:
    """A history without its arrays, in JSON's types; results of single clients are kept for the last evaluation."""
    last = max(history.evaluations, default=None)
    return {
        "first_round": history.first_round,
        "metrics": list(history.metrics),
        "evaluations": {
            str(done): {name: _pack_evaluation(value, done == last) for name, value in sets.items()}
            for done, sets in history.evaluations.items()
        },
        "costs": dataclasses.asdict(history.costs),
        "stopped": history.stopped,
    }


def _pack_evaluation(evaluation: Evaluation, per_client: bool) -> dict[str, Any]:
    packed = dataclasses.asdict(evaluation)
    kept = evaluation.per_client if per_client else {}
    return packed | {"per_client": {name: values.tolist() for name, values in kept.items()}}


def _unpack(packed: Mapping[str, Any], metrics: Mapping[str, np.ndarray]) -> History:
    evaluations = {
        int(done): {name: _unpack_evaluation(value) for name, value in sets.items()}
        for done, sets in packed["evaluations"].items()
    }
    costs = Costs(**packed["costs"])
    # Older checkpoints do not say whether a run had stopped.
    return History(packed["first_round"], dict(metrics), evaluations, costs, packed.get("stopped"))


def _unpack_evaluation(packed: Mapping[str, Any]) -> Evaluation:
    per_client = {name: np.array(values, np.float64) for name, values in packed["per_client"].items()}
    return Evaluation(**{**packed, "per_client": per_client})
