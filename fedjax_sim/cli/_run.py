"""``run``, ``resume`` and ``sweep``: they train, show how it goes, and leave a run folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from fedjax_sim import experiment
from fedjax_sim.checkpoint import CheckpointError
from fedjax_sim.cli import _screen
from fedjax_sim.cli._setup import (
    BAD_USAGE,
    ERRORS,
    FAILED,
    Config,
    Folder,
    Json,
    Quiet,
    Set,
    load,
    prepare_jax,
)  # fmt: skip
from fedjax_sim.cli._signals import StopOnSignal
from fedjax_sim.simulate import Callback, NonFiniteModelError

Watch = Callable[[experiment.Experiment], Sequence[Callback]]


def run(
    config: Config = None,
    changes: Set = None,
    rounds: Annotated[
        int | None, typer.Option(help="Rounds of training; --set rounds=... is the same.", min=1)
    ] = None,
    seeds: Annotated[
        str | None,
        typer.Option(help="One replica each, in one program: 0:5 for five, or 3,7,11.", metavar="A:B"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Run folder, a new one; runs/TIME-NAME if not given.")
    ] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train a model by federated learning. Every setting has a default: plain `fedjax-sim run` works.

    CONFIG describes the experiment; `fedjax-sim new` writes one to begin with, and `fedjax-sim list algorithms` says
    what there is. The run folder gets the settings, the metrics of every round, checkpoints and a summary.
    """
    made = _with_options(changes, rounds, seeds)
    _train(load(config, made), out, quiet, json)


def sweep(
    config: Config = None,
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid", metavar="KEY=[VALUES]", help="Values to try: algorithm.client.learning_rate=[0.01,0.1]."
        ),
    ] = None,
    changes: Set = None,
    rounds: Annotated[int | None, typer.Option(help="Rounds of training.", min=1)] = None,
    seeds: Annotated[
        str | None, typer.Option(help="Replicas of every combination: 0:5, or 3,7,11.", metavar="A:B")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder, a new one.")] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Train with every combination of some settings, with every seed.

    The grid stands in the table 'sweep' of CONFIG, in --grid, or in both. Numbers of the algorithm are traced: all
    their values and all seeds train at once, as replicas of one program. What changes shapes gets a program, and a run
    folder, for each value.
    """
    made = [*_with_options(changes, rounds, seeds), *(f"sweep.{item}" for item in grid or [])]
    found = load(config, made)
    if not found.settings.get("sweep"):
        _screen.fail(
            "error: there is nothing to sweep: give --grid key=[values], or a table [sweep] in the file.",
            BAD_USAGE,
        )
    _train(found, out, quiet, json)


def resume(
    folder: Folder,
    changes: Set = None,
    rounds: Annotated[int | None, typer.Option(help="More rounds than before.", min=1)] = None,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Go on with a run that stopped or was killed, or give it more rounds.

    The result is the same, to the last bit, as that of a run that never stopped. Settings that change the model cannot
    be changed on the way.
    """
    made = _with_options(changes, rounds, None)
    before = load(folder, made)
    prepare_jax(before.devices)
    _finish(before, lambda watch: experiment.resume(folder, made, callbacks=watch), folder, quiet, json)


def _with_options(changes: Sequence[str] | None, rounds: int | None, seeds: str | None) -> list[str]:
    made = list(changes or [])
    if rounds is not None:
        made.append(f"rounds={rounds}")
    if seeds is not None:
        made.append(f"seeds={_seeds(seeds)}")
    return made


def _seeds(text: str) -> list[int]:
    """``0:5`` or ``3,7,11``."""
    if match := re.fullmatch(r"(\d+):(\d+)", text):
        found = list(range(int(match.group(1)), int(match.group(2))))
    elif re.fullmatch(r"\d+(,\d+)*", text):
        found = [int(item) for item in text.split(",")]
    else:
        found = []
    if not found:
        raise typer.BadParameter(
            f"{text!r} names no seed, expected a:b with a < b, or a list such as 3,7,11.",
            param_hint="--seeds",
        )
    return found


def _train(found: experiment.Experiment, out: Path | None, quiet: bool, json: bool) -> None:
    prepare_jax(found.devices)
    try:
        folder = experiment.new_folder(found.name, out)
        found.federated  # noqa: B018  what is wrong with the data is known before anything is written
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    _finish(found, lambda watch: experiment.sweep(found, folder, callbacks=watch), folder, quiet, json)


def _finish(
    found: experiment.Experiment,
    work: Callable[[Watch], list[experiment.Outcome]],
    folder: Path,
    quiet: bool,
    json: bool,
) -> None:
    """Trains and shows; a run that ends early says how to go on with it."""
    budget = found.privacy.epsilon
    before = (
        "preparing the run ..."
        if budget is None
        else (f"finding how many rounds the privacy budget, epsilon {budget:g}, pays for ...")
    )
    go_on = f"go on with it: fedjax-sim resume {folder}"
    with StopOnSignal(go_on) as stop, _screen.Watch(quiet or json, before) as watch:

        def callbacks(program: experiment.Experiment) -> list[Callback]:
            return [watch.begin(program), stop]

        try:
            outcomes = work(callbacks)
            _show(outcomes, quiet, json)
        except (experiment.ConfigError, CheckpointError) as error:
            _screen.fail(f"error: {error}", BAD_USAGE)
        except KeyboardInterrupt:
            _screen.fail(f"stopped at once; the run folder is {folder}\n{go_on}", stop.exit_code)
        except (*ERRORS, NonFiniteModelError) as error:
            if not folder.is_dir():
                _screen.fail(f"error: {error}\nthere is no run folder", BAD_USAGE)
            _screen.fail(f"error: {error}\nthe rounds before are in {folder}", FAILED)
        last = outcomes[-1]
        if last.status == "interrupted":
            done = f"{last.summary['rounds']} of {last.summary['rounds_asked']} rounds are in {last.folder}"
            _screen.fail(f"stopped by {stop.name}; {done}\n{go_on}", stop.exit_code)


def _show(outcomes: Sequence[experiment.Outcome], quiet: bool, json: bool) -> None:
    """The results of what ran; of a run that was stopped, for scripts alone."""
    interrupted = outcomes[-1].status == "interrupted"
    for outcome in outcomes:
        if not interrupted or outcome.status == "completed":
            _screen.show(_screen.table(outcome), quiet or json)
    if json:
        summaries = [{"folder": str(outcome.folder), **outcome.summary} for outcome in outcomes]
        _screen.print_json(summaries if len(summaries) > 1 else summaries[0])
    elif not interrupted:
        for outcome in outcomes:
            if outcome.summary["stopped"] and not quiet:
                done, asked = (outcome.summary[name] for name in ("rounds", "rounds_asked"))
                typer.echo(f"ended       after {done} of {asked} rounds: {outcome.summary['reason']}")
            typer.echo(outcome.folder if quiet else f"run folder  {outcome.folder}")
