"""``evaluate``, ``plot`` and ``report``: what is done with run folders."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer

from fedjax_sim import experiment
from fedjax_sim.cli import _screen
from fedjax_sim.cli._setup import BAD_USAGE, ERRORS, Folder, Json, prepare_jax

Folders = Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)]


def evaluate(
    folder: Folder,
    personalised: Annotated[
        bool,
        typer.Option(
            "--personalised", help="Also every client's own model, before and after local training."
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Evaluate the newest model of a run: over all examples, over clients, and how evenly it serves them."""
    try:
        prepare_jax(experiment.load(folder).devices)
        found, simulation, outcome = experiment.load_states(folder)
        results: list[dict[str, Any]] = []
        for label, state in zip(outcome.labels, outcome.states, strict=True):
            sets = {name: simulation.evaluate(state, data) for name, data in found.evaluation_sets().items()}
            result: dict[str, Any] = dict(sets)
            if personalised:
                own = found.simulation(label["sweep"]) if "sweep" in label else simulation
                result["personalised"] = own.personalised(state, found.federated.test)
            results.append({"label": label, "rounds": int(state.round), "results": result})
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    if json:
        _screen.print_json(
            [
                {**item["label"], "rounds": item["rounds"]}
                | {name: dataclasses.asdict(value) for name, value in item["results"].items()}
                for item in results
            ]
        )
        return
    for item in results:
        label = ", ".join(f"{key} {value}" for key, value in item["label"].items())
        for name, value in item["results"].items():
            _screen.show(f"{name}, {label}, after {item['rounds']} rounds\n{value}\n", False)


def plot(
    folders: Folders,
    y: Annotated[
        list[str] | None,
        typer.Option("-y", help="Metric, as in metrics.jsonl: loss, eval/accuracy. May be repeated."),
    ] = None,
    x: Annotated[str, typer.Option("-x", help="rounds, bytes or time.")] = "rounds",
    out: Annotated[Path | None, typer.Option(help="Picture to write; .png, .svg or .pdf.")] = None,
) -> None:
    """Draw learning curves of one run or several; without -y, all pictures of each run into its folder plots/.

    The line is the mean over seeds, the band one standard deviation.
    """
    from fedjax_sim import plots  # matplotlib is slow to import, and other commands do not need it

    try:
        if y is None:
            for folder in folders:
                for path in plots.save_all(folder):
                    typer.echo(path)
            return
        figure = plots.learning_curves(folders, y, x=x)
        name = "-".join(item.replace("/", "_") for item in y)
        path = out or (folders[0] / "plots" / f"{name}.png" if len(folders) == 1 else Path(f"{name}.png"))
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        typer.echo(path)
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)


def write_report(
    folders: Folders,
    out: Annotated[
        Path | None, typer.Option(help="HTML file; report.html in the first run folder if not given.")
    ] = None,
) -> None:
    """Write one self-contained HTML page about one run, or several compared."""
    from fedjax_sim import report  # as above

    try:
        typer.echo(report.write_report(folders, out or folders[0] / "report.html"))
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
