"""Runs an experiment in a run folder, from the start or from where it stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from fedjax_sim.checkpoint import Checkpoints
from fedjax_sim.engines import SimState
from fedjax_sim.experiment import _folder, _settings, _summary
from fedjax_sim.experiment._experiment import Experiment, blame, from_tables
from fedjax_sim.experiment._folder import RunFolder
from fedjax_sim.experiment._forms import ConfigError
from fedjax_sim.experiment._registry import build_part
from fedjax_sim.history import History
from fedjax_sim.personalisation import Personalised
from fedjax_sim.privacy._ledger import too_small
from fedjax_sim.simulate import Callback, NonFiniteModelError, Simulation
from fedjax_sim.tracking import JsonLines, Lenient, Recorder, write_json

Status = Literal["completed", "interrupted", "failed"]
Made = Callable[[Experiment], Sequence[Callback]]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
      status: ``"interrupted"`` when a callback ended it.
      folder: the run folder.
      labels: ``{"seed": ...}`` of each replica, and ``"sweep"`` with its swept settings.
      histories: one per replica, of all rounds, those before a resume included.
      states: final state of each replica.
      personalised: of each replica, where the settings ask for it.
      summary: what ``summary.json`` holds.
    """

    status: Status
    folder: Path
    labels: tuple[Mapping[str, Any], ...]
    histories: tuple[History, ...]
    states: tuple[SimState, ...]
    personalised: tuple[Personalised, ...]
    summary: Mapping[str, Any]


def run(
    experiment: Experiment, out: Path | str | None = None, *, callbacks: Sequence[Callback] = ()
) -> Outcome:
    """Runs an experiment in a new folder.

    Args:
      experiment: from ``load``.
      out: the folder, which must not exist; ``runs/<time>-<name>`` by default.
      callbacks: called after every chunk of rounds; one that returns True ends the run, with a checkpoint.

    Raises:
      ConfigError: the folder exists, or the settings cannot be built; nothing is written then.
      NonFiniteModelError, OSError: the run failed; its folder says so, and holds the rounds before.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> from fedjax_sim import experiment
      >>> small = experiment.load(changes=["data.clients=20", "cohort.size=5", "model.name=linear", "rounds=2"])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     outcome = experiment.run(small, Path(folder) / "mine")
      ...     sorted(path.name for path in outcome.folder.iterdir() if path.suffix)
      ['clients.npz', 'config.toml', 'environment.json', 'metrics.jsonl', 'summary.json']
      >>> outcome.histories[0].rounds
      2
    """
    return _run(experiment, out, lambda program: callbacks)


def _run(experiment: Experiment, out: Path | str | None, callbacks: Made) -> Outcome:
    """As ``run``; the callbacks are made once nothing but training is left to go wrong."""
    if len(experiment.programs()) > 1:
        raise ConfigError(
            f"the swept settings {', '.join(experiment.settings['sweep'])} need several programs: use sweep, which makes a "
            "run folder for each."
        )
    folder = RunFolder(_folder.new_folder(experiment.name, None if out is None else Path(out)))
    job = _Job(experiment, folder)
    job.pay()
    folder.create(experiment.settings)
    with folder.lock(), contextlib.ExitStack() as files:
        try:
            job.open(files)
        except BaseException:
            folder.remove()  # made a moment ago, and nothing has run in it
            raise
        folder.name_latest()
        return job.go(callbacks(experiment))


def sweep(
    experiment: Experiment,
    out: Path | str | None = None,
    *,
    callbacks: Callable[[Experiment], Sequence[Callback]] | None = None,
) -> list[Outcome]:
    """Runs every combination of the swept settings with every seed, in as few programs as there can be.

    Args:
      experiment: with a table ``sweep``.
      out: a new folder: the run folder where one program is enough, else a folder with a run folder per program.
      callbacks: made anew for every program; a program that a callback ends is the last one.

    Raises:
      ConfigError, NonFiniteModelError, OSError: as for ``run``.
    """
    place = _folder.new_folder(experiment.name, None if out is None else Path(out))
    programs = experiment.programs()
    if len(programs) == 1:
        return [_run(experiment, place, callbacks or _none)]
    RunFolder(place).create(experiment.settings)
    RunFolder(place).name_latest()
    return _all(programs, place, callbacks)


def _all(programs: Sequence[Experiment], place: Path, callbacks) -> list[Outcome]:
    """The programs of a sweep that are not complete, one after the other."""
    outcomes = []
    for program in programs:
        folder = place / program.name
        if folder.is_dir() and not (folder / _folder.CONFIG).exists():
            _unmake(folder)
        if folder.exists():
            outcomes += resume(folder, callbacks=callbacks)
        else:
            outcomes.append(_run(program, folder, callbacks or _none))
        if outcomes[-1].status != "completed":
            break
    return outcomes


def _none(program: Experiment) -> Sequence[Callback]:
    return ()


def _unmake(folder: Path) -> None:
    """Takes away a folder whose making was killed; one that holds anything else is left, which is an error."""
    (folder / f"{_folder.CONFIG}.partial").unlink(missing_ok=True)
    folder.rmdir()


def resume(
    folder: Path | str,
    changes: Sequence[str] = (),
    *,
    callbacks: Callable[[Experiment], Sequence[Callback]] | None = None,
) -> list[Outcome]:
    """Goes on with the run in a folder, from its newest checkpoint, with the same result as without the stop.

    Args:
      folder: of a run, or of a sweep, that stopped, was killed, or is to have more rounds.
      changes: ``key=value`` each, such as ``rounds=200``; settings that change the model are refused.
      callbacks: as for ``sweep``.

    Returns:
      One outcome per program: one, except for a sweep of several.

    Raises:
      ConfigError: no run folder, another process runs in it, or settings differ that must not.
      CheckpointError: its checkpoints are of another run.
    """
    place = RunFolder(Path(folder))
    before = place.settings()
    experiment = from_tables(before, [_settings.assignment(change) for change in changes], place.path)
    lines = _settings.differences(_settings.resolve(before), experiment.settings)
    if lines:
        shown = "\n".join(f"  {line}" for line in lines)
        raise ConfigError(
            f"{place.path} cannot go on with other settings:\n{shown}\nStart a new run with them instead."
        )
    programs = experiment.programs()
    if len(programs) > 1:
        if changes:
            raise ConfigError(
                f"{place.path} holds a sweep of several programs: change the run folders in it one by one."
            )
        return _all(programs, place.path, callbacks)
    newest = max(Checkpoints(place.checkpoints).rounds(), default=0)
    if experiment.rounds < newest:
        raise ConfigError(
            f"{place.path} has {newest} rounds already, and {experiment.rounds} were asked for: ask for at least as many."
        )
    with place.lock(), contextlib.ExitStack() as files:
        job = _Job(experiment, place, goes_on=True)
        job.pay(newest)
        job.open(files)
        if changes:
            place.rewrite(experiment.settings)
        return [job.go((callbacks or _none)(experiment))]


def load_states(folder: Path | str) -> tuple[Experiment, Simulation, Outcome]:
    """What a run has trained so far: its newest checkpoint, without training on; nothing in the folder changes.

    The run may be going on meanwhile.

    Raises:
      ConfigError: no run folder, one without a checkpoint, or a sweep of several programs.
      CheckpointError: none of its checkpoints can be read.
    """
    place = RunFolder(Path(folder))
    experiment = from_tables(place.settings(), [], place.path)
    programs = experiment.programs()
    if len(programs) > 1:
        inside = ", ".join(str(place.path / program.name) for program in programs)
        raise ConfigError(
            f"{place.path} holds a sweep of several programs: name one of its run folders, {inside}."
        )
    if not Checkpoints(place.checkpoints).rounds():
        raise ConfigError(f"{place.path} holds no checkpoint: the run did not get that far.")
    job = _Job(experiment, place, goes_on=True)
    states, histories = job.restored()
    outcome = Outcome("completed", place.path, job.labels, tuple(histories), tuple(states), (), {})
    return experiment, job.simulation, outcome


class _Job:
    """One program: an experiment's replicas, in a folder."""

    def __init__(self, experiment: Experiment, folder: RunFolder, goes_on: bool = False):
        self.experiment, self.folder, self.goes_on = experiment, folder, goes_on
        self.labels = tuple(experiment.replicas())
        self.simulation = experiment.simulation()
        self.sets = experiment.evaluation_sets()
        keep = experiment.checkpoints
        self.checkpoints = Checkpoints(
            folder.checkpoints, keep.every, keep.keep, keep.keep_every, settings=experiment.same_run()
        )
        self._begun, self._recorded, self._personalised = 0, 0, ()
        self._rounds = experiment.rounds
        self._variants: dict[str, Simulation] = {}

    def pay(self, done: int = 0) -> None:
        """Looks how many rounds the privacy budget pays for; every replica runs as many.

        Raises:
          ConfigError: not for the rounds that are ``done``, or for none; or a budget for what has no price.
        """
        privacy = self.experiment.privacy
        with blame("privacy"):
            self._rounds = privacy.rounds(map(self._simulation, self.labels), self.experiment.rounds)
        if not self._rounds or self._rounds < done:
            pays = (
                f"pays for {self._rounds} rounds, and {done} are done"
                if done
                else "does not pay for the first round"
            )
            why = "" if privacy.delta is None else too_small(privacy.delta)
            raise ConfigError(
                f"privacy.epsilon is {privacy.epsilon}, which {pays}: raise it, or start a run with more noise. "
                f"`fedjax-sim privacy` finds the noise for an epsilon.{why and f' But {why}.'}"
            )

    def _simulation(self, label: Mapping[str, Any]) -> Simulation:
        """Of a replica; those that differ in the seed alone share one."""
        cell = label.get("sweep")
        if not cell:
            return self.simulation
        key = repr(cell)
        if key not in self._variants:
            self._variants[key] = self.experiment.simulation(cell)
        return self._variants[key]

    def open(self, files: contextlib.ExitStack) -> None:
        """Opens the trackers, which go on behind the last round that both a checkpoint and the metrics have.

        Raises:
          ConfigError: one of them cannot be made; nothing has been trained then.
        """
        path, keep = self.folder / _folder.METRICS, None
        if self.goes_on:
            rows = path.read_bytes().count(b"\n") if path.exists() else 0
            newest = max(self.checkpoints.rounds(), default=0)
            keep = self._begun = self._recorded = min(newest, rows // len(self.labels))
        self._trackers: list[Any] = [files.enter_context(JsonLines(path, keep))]
        for index, item in enumerate(self.experiment.settings["trackers"]):
            with blame(f"trackers[{index}]"):
                made = build_part("trackers", item, folder=self.folder.path, keep_rounds=keep)
            self._trackers.append(files.enter_context(Lenient(made, item["name"])))

    def go(self, callbacks: Sequence[Callback]) -> Outcome:
        """Trains, and writes the folder's files whatever happens."""
        try:
            states, histories = self._train(callbacks)
        except KeyboardInterrupt:
            self._stopped("interrupted", "stopped at once; the rounds since the last checkpoint run again")
            raise
        except NonFiniteModelError as error:
            self._write("failed", f"error: {error}", error.histories)
            raise
        except BaseException as error:
            # What is wrong with the disk should not hide what was wrong first.
            with contextlib.suppress(OSError):
                self._stopped("failed", f"error: {error}")
            raise
        stopped = histories[0].stopped
        # What its budget pays for is all that a run was to have.
        status: Status = "interrupted" if stopped == "callback" else "completed"
        reason = "stopped by a callback" if stopped == "callback" else ""
        if stopped == "budget":
            reason = (
                f"the privacy budget, epsilon {self.experiment.privacy.epsilon:g}, pays for no more rounds"
            )
        if status == "completed" and self.experiment.evaluation.personalised:
            self._personalised = tuple(self._personalise(index, state) for index, state in enumerate(states))
        summary = self._write(status, reason, histories)
        _folder.write_clients(
            self.folder / _folder.CLIENTS, self.simulation, self.experiment.federated,
            [label["seed"] for label in self.labels], histories, self._personalised,
        )  # fmt: skip
        if self.experiment.settings["plots"]:
            self._draw()
        return Outcome(
            status,
            self.folder.path,
            self.labels,
            tuple(histories),
            tuple(states),
            self._personalised,
            summary,
        )

    def _draw(self) -> None:
        """Pictures are for people: a run without them is whole."""
        try:
            from fedjax_sim import plots  # slow to import, and accelerator images may lack matplotlib

            plots.save_all(self.folder.path)
        except ModuleNotFoundError:
            pass
        except Exception as error:
            warnings.warn(
                f"the pictures of {self.folder.path} could not be drawn: {type(error).__name__}: {error}",
                RuntimeWarning,
                stacklevel=4,
            )

    # --- training ---

    def _train(self, callbacks: Sequence[Callback]) -> tuple[list[SimState], list[History]]:
        recorder = Recorder(
            *self._trackers, labels=self.labels, more=self._simulated, recorded=self._recorded
        )
        with recorder:
            options: dict[str, Any] = {
                "callbacks": [recorder, self._count(recorder), *callbacks],
                "checkpoints": self.checkpoints,
            }
            if self.sets:
                options |= {"evaluate_on": self.sets, "every": self.experiment.evaluation.every}
            states, histories = self._start(self._rounds, options)
            if self._rounds < self.experiment.rounds:
                # The run was asked for what is paid, and to its end is to the budget's.
                histories = [dataclasses.replace(h, stopped=h.stopped or "budget") for h in histories]
            # Where no round was left to run, rows that the disk had lost are still to be written.
            recorder.record(histories)
            return states, histories

    def restored(self) -> tuple[list[SimState], list[History]]:
        """What the newest checkpoint holds."""
        return self._start(None, {"checkpoints": self.checkpoints})

    def _start(self, rounds: int | None, options: Mapping[str, Any]) -> tuple[list[SimState], list[History]]:
        sim, seeds = self.simulation, [label["seed"] for label in self.labels]
        if len(self.labels) == 1 and "sweep" not in self.labels[0]:
            state, history = sim.run(sim.init(seeds[0]), rounds, **options)
            return [state], [history]
        histories = sim.sweep(seeds, rounds, **self.experiment.traced(self.labels), **options)
        return list(histories.states), list(histories.members)

    def _count(self, recorder: Recorder) -> Callback:
        def count(progress) -> None:
            self._recorded = recorder.recorded or 0

        return count

    def _simulated(self, row: Mapping[str, Any]) -> dict[str, float]:
        """How long the round would have taken, by the law of the table ``clock``."""
        clock, clients = self.experiment.clock, max(row["clients"], 1.0)
        up = row["bytes_up"] / clients / 1e6 / clock.up_megabytes_per_second
        down = row["bytes_down"] / clients / 1e6 / clock.down_megabytes_per_second
        return {"simulated_seconds": row["slowest_steps"] * clock.seconds_per_step + up + down}

    def _personalise(self, index: int, state: SimState) -> Personalised:
        return self._simulation(self.labels[index]).personalised(state, self.experiment.federated.test)

    # --- the summary ---

    def _stopped(self, status: Status, reason: str) -> None:
        """A run that came no further than it was keeps the summary that it had."""
        if self._recorded > self._begun or not (self.folder / _folder.SUMMARY).exists():
            self._write(status, reason, ())

    def _write(self, status: Status, reason: str, histories: Sequence[History]) -> dict[str, Any]:
        data = self.experiment.federated
        summary: dict[str, Any] = {
            "status": status,
            "reason": reason,
            "stopped": histories[0].stopped if histories else None,
            "rounds": histories[0].first_round + histories[0].rounds if histories else self._recorded,
            "rounds_asked": self.experiment.rounds,
            "data": {
                "name": data.name,
                "clients": data.train.num_clients,
                "train_examples": data.train.num_examples,
                "test_examples": data.test.num_examples,
                "classes": data.classes,
                "notes": data.notes,
            },
            "parameters": self.experiment.parameters(),
        }
        if histories and histories[0].rounds:
            replicas = [
                {**label, "last": _summary.last_row(history), "best": _summary.best_values(history)}
                for label, history in zip(self.labels, histories, strict=True)
            ]
            self._price(replicas, histories[0].first_round + histories[0].rounds)
            for replica, result in zip(replicas, self._personalised, strict=False):
                replica["personalised"] = _summary.personalised_values(result)
            summary |= {"replicas": replicas, "costs": _summary.costs(histories[0])}
        write_json(self.folder / _folder.SUMMARY, summary)
        return summary

    def _price(self, replicas: Sequence[dict[str, Any]], rounds: int) -> None:
        """Writes to each replica what its rounds cost; nothing where there is no noise."""
        known: dict[int, list[dict[str, Any]]] = {}
        for label, replica in zip(self.labels, replicas, strict=True):
            simulation = self._simulation(label)
            if id(simulation) not in known:
                known[id(simulation)] = self.experiment.privacy.statements(simulation, rounds)
            if known[id(simulation)]:
                replica["privacy"] = known[id(simulation)]
