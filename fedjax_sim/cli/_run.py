"""``fedjax-sim run``: trains on one data set and keeps what happened in a run folder."""

from __future__ import annotations

import dataclasses
import difflib
import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any

import jax
import optax
import typer

from fedjax_sim import algorithms, engines, models, tasks
from fedjax_sim._src.types import Algorithm, Task
from fedjax_sim.cli import _screen
from fedjax_sim.cli._signals import StopOnSignal
from fedjax_sim.data import Federated, cohorts, load
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.engines import SimState
from fedjax_sim.history import History
from fedjax_sim.simulate import NonFiniteModelError, Simulation
from fedjax_sim.tracking import JsonLines, Recorder, evaluation_row, round_rows, write_json

BAD_USAGE, FAILED, INTERRUPTED = 2, 1, 130
ERRORS = (ValueError, TypeError, OSError, RuntimeError)
"""What the library raises for bad input, and JAX where memory or a device is missing."""

ALGORITHMS: dict[str, Callable[[Task, float], Algorithm]] = {
    "fedavg": lambda task, lr: algorithms.fedavg(task, optax.sgd(lr)),
    "fedavgm": lambda task, lr: algorithms.fedavgm(task, optax.sgd(lr)),
    "fedadam": lambda task, lr: algorithms.fedadam(task, optax.sgd(lr)),
    "fedyogi": lambda task, lr: algorithms.fedyogi(task, optax.sgd(lr)),
    "fedadagrad": lambda task, lr: algorithms.fedadagrad(task, optax.sgd(lr)),
    "fedprox": lambda task, lr: algorithms.fedprox(task, optax.sgd(lr), mu=0.01),
    "scaffold": lambda task, lr: algorithms.scaffold(task, lr),
    "fedsgd": lambda task, lr: algorithms.fedsgd(task, lr),
    "mime": lambda task, lr: algorithms.mime(task, optax.sgd(lr, momentum=0.9)),
    "ifca": lambda task, lr: algorithms.ifca(task, optax.sgd(lr), models=2),
}
MODELS = {"mlp": models.mlp, "linear": models.linear, "cnn": models.cnn}


def _one_of(names: Iterable[str]) -> Callable[[str], str]:
    """Checks an option that is one of a few names."""
    known = list(names)

    def check(value: str) -> str:
        if value not in known:
            close = difflib.get_close_matches(value, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise typer.BadParameter(f"{value!r} is not known, expected one of {', '.join(known)}.{hint}")
        return value

    return check


def _lanes(value: str) -> str:
    if value != "auto" and not (value.isascii() and value.isdigit() and int(value) > 0):
        raise typer.BadParameter(f"{value!r} is not a lane count, expected 'auto' or a number above 0.")
    return value


def _option(help: str, panel: str, name: str | None = None, **more: Any) -> Any:
    return typer.Option(*([name] if name else []), help=help, rich_help_panel=panel, **more)


def run(
    context: typer.Context,
    data: Annotated[str, _option("digits, npz:FILE or mnist_by_writer:FOLDER.", "Data")] = "digits",
    clients: Annotated[
        int | None, _option("Clients to make of digits; 50 if not given.", "Data", min=1)
    ] = None,
    alpha: Annotated[
        float | None, _option("Dirichlet parameter of digits, small is skewed; 0.3 if not given.", "Data")
    ] = None,
    algorithm: Annotated[
        str, _option(f"One of {', '.join(ALGORITHMS)}.", "Training", callback=_one_of(ALGORITHMS))
    ] = "fedavg",
    model: Annotated[
        str, _option(f"One of {', '.join(MODELS)}.", "Training", callback=_one_of(MODELS))
    ] = "mlp",
    rounds: Annotated[int, _option("Rounds of training.", "Training", min=1)] = 100,
    cohort: Annotated[int, _option("Clients that train in a round.", "Training", min=1)] = 10,
    epochs: Annotated[int, _option("Passes of a client over its examples.", "Training", min=1)] = 1,
    batch_size: Annotated[int, _option("Examples in a local step.", "Training", min=1)] = 20,
    lr: Annotated[float, _option("Step size of the clients.", "Training", min=0.0)] = 0.1,
    seed: Annotated[
        int, _option("Of the model, the cohorts and the order of examples.", "Training", min=0)
    ] = 0,
    out: Annotated[
        Path | None, _option("Run folder, a new one; runs/TIME-ALGORITHM-DATA if not given.", "Output")
    ] = None,
    evaluate_every: Annotated[int, _option("Rounds between two evaluations.", "Output", min=1)] = 10,
    quiet: Annotated[
        bool, _option("Print the run folder's path and nothing else.", "Output", "--quiet")
    ] = False,
    devices: Annotated[
        int, _option("Devices to train on; without accelerators, CPU cores.", "Hardware", min=1)
    ] = 1,
    lanes: Annotated[
        str,
        _option("Clients that train at a time on a device: auto or a number.", "Hardware", callback=_lanes),
    ] = "auto",
) -> None:
    """Train a model by federated learning. Every option has a default: plain `fedjax-sim run` works.

    The run folder gets metrics.jsonl, one line per round, and summary.json.
    """
    settings = dict(context.params)
    try:
        _prepare_jax(devices)
        folder = _new_folder(out, f"{algorithm}-{data.partition(':')[0]}")
        made = {"clients": clients, "alpha": alpha}
        federated = load(data, **{name: value for name, value in made.items() if value is not None})
        task = tasks.classification(MODELS[model](classes=_classes(federated)))
        simulation = Simulation(
            ALGORITHMS[algorithm](task, lr),
            federated.train,
            cohort=cohorts.uniform(cohort),
            local=LocalWork(epochs=epochs, batch_size=batch_size),
            engine=_engine(devices, lanes),
            rounds_per_chunk=min(10, rounds),
        )
        state = simulation.init(seed)
        folder.mkdir(parents=True)
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    _train(simulation, state, federated, settings | {"out": str(folder)}, folder)


def _prepare_jax(devices: int) -> None:
    """Everything that JAX has to know before it starts."""
    if devices > 1:
        jax.config.update("jax_num_cpu_devices", devices)
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    # Compiling takes longer than a short run; the second run of a configuration need not wait for it.
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedjax-sim" / "jax"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # no home, or one that cannot be written to: that costs time, not the run
    if os.access(cache, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _new_folder(out: Path | None, name: str) -> Path:
    """The folder to make; runs are never mixed or overwritten."""
    if out is not None:
        if out.exists():
            raise FileExistsError(
                f"the run folder {out} exists already; name a new one with --out, or leave --out out."
            )
        return out
    folder = first = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    number = 2
    while folder.exists():
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    return folder


def _classes(federated: Federated) -> int:
    if federated.classes is None:
        raise ValueError(
            f"{federated.name} has no classes: run trains classifiers, on integer labels y from 0."
        )
    return federated.classes


def _engine(devices: int, lanes: str) -> engines.Engine:
    count = "auto" if lanes == "auto" else int(lanes)
    if devices == 1:
        return engines.lanes(count)
    return engines.sharded(engines.client_mesh(devices), lanes=count)


def _train(
    simulation: Simulation, state: SimState, federated: Federated, settings: dict[str, Any], folder: Path
) -> None:
    """Runs, shows, and writes the run folder; a run that ends early leaves the rounds that it did."""
    quiet, rounds = settings["quiet"], settings["rounds"]
    about = _about(simulation, state, federated, settings)
    _screen.show(_screen.headline(about), quiet)
    test = federated.test if federated.test.num_examples else None
    every = None if test is None else settings["evaluate_every"]
    done, history, status, reason, code = 0, None, "completed", "", 0
    try:
        with (
            JsonLines(folder / "metrics.jsonl") as tracker,
            Recorder(tracker) as recorder,
            _screen.ProgressView(rounds, quiet) as view,
            StopOnSignal() as stop,
        ):
            try:
                callbacks = [recorder, view, stop]
                _, history = simulation.run(state, rounds, evaluate_on=test, every=every, callbacks=callbacks)
            finally:
                done = recorder.recorded
        if stop.received is not None and done < rounds:
            status, reason, code = "interrupted", f"stopped by {stop.name}", INTERRUPTED
    except KeyboardInterrupt:
        status, reason, code = "interrupted", "stopped by Ctrl-C", INTERRUPTED
    except NonFiniteModelError as error:
        done, history = error.history.rounds, error.history
        status, reason, code = "failed", f"error: {error}", FAILED
    except ERRORS as error:
        status, reason, code = "failed", f"error: {error}", FAILED
    results = {"rounds": done} | _results(history)
    try:
        write_json(folder / "summary.json", about | {"status": status, "reason": reason} | results)
    except OSError as error:
        reason, code = reason or f"error: {error}", code or FAILED
    if code or history is None:
        _screen.fail(f"{reason}\n{done} of {rounds} rounds are in {folder}", code)
    _screen.show(_screen.table(history), quiet)
    typer.echo(folder if quiet else f"run folder  {folder}")


def _about(
    simulation: Simulation, state: SimState, federated: Federated, settings: dict[str, Any]
) -> dict[str, Any]:
    """What was run on what; known before the first round."""
    device = jax.devices()[0]
    return {
        "settings": settings,
        "data": {
            "name": federated.name,
            "clients": federated.train.num_clients,
            "train_examples": federated.train.num_examples,
            "test_examples": federated.test.num_examples,
            "classes": federated.classes,
            "notes": federated.notes,
        },
        "parameters": models.count_parameters(simulation.algorithm.params(state.server).params),
        "environment": {
            "fedjax_sim": _screen.version(),
            "jax": jax.__version__,
            "python": platform.python_version(),
            "device": device.device_kind,
            "devices": simulation.engine.devices,
        },
    }


def _results(history: History | None) -> dict[str, Any]:
    if history is None or history.rounds == 0:
        return {}
    *_, row = round_rows(history, history.rounds - 1)
    last = max(history.evaluations, default=None)
    evaluation = {} if last is None else evaluation_row(history.evaluations[last])
    derived = ("step_occupancy", "example_occupancy", "examples_per_second", "flops_per_second")
    costs = dataclasses.asdict(history.costs) | {name: getattr(history.costs, name) for name in derived}
    return {"final": row | evaluation, "evaluated_after": last, "costs": costs}
