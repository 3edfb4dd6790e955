"""What the command line shows: progress, tables, errors. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import sys
from typing import Any, NoReturn

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from fedjax_sim.history import History
from fedjax_sim.simulate import Progress


def version() -> str:
    """The package's version."""
    # The package above this module, by way of sys.modules: imports only go down the floors.
    return sys.modules["fedjax_sim"].__version__


def show(text: Any, quiet: bool) -> None:
    """Prints a result."""
    Console(quiet=quiet, highlight=False).print(text, markup=False, soft_wrap=isinstance(text, str))


class ProgressView:
    """Callback that shows how far a run is: a bar on a terminal, at most twenty lines where there is none."""

    def __init__(self, rounds: int, quiet: bool):
        self._console = Console(stderr=True, quiet=quiet, highlight=False)
        self._twentieths, self._accuracy = 0, ""
        self._bar = Bar(
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn("{task.description}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=self._console,
            expand=True,
            disable=quiet or not self._console.is_terminal,
        )
        self._task = self._bar.add_task("compiling ...", total=rounds)

    def __enter__(self) -> ProgressView:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, progress: Progress) -> None:
        text = self._status(progress.chunk)
        self._bar.update(self._task, completed=progress.done, description=text)
        twentieths = progress.done * 20 // progress.rounds
        if not self._console.is_terminal and twentieths > self._twentieths:
            self._console.print(f"{progress.done}/{progress.rounds}  {text}", soft_wrap=True)
            self._twentieths = twentieths

    def _status(self, chunk: History) -> str:
        if chunk.evaluations:
            self._accuracy = f"  test accuracy {_percent(chunk.last('accuracy').value)}"
        return f"loss {_loss(chunk)}{self._accuracy}  {chunk.costs.examples_per_second:,.0f} examples/s"


def headline(about: dict[str, Any]) -> str:
    """What is trained on what, in three lines and what there is to note."""
    settings, data, environment = about["settings"], about["data"], about["environment"]
    notes = "".join(f"\n{note}" for note in data["notes"])
    return (
        f"{settings['algorithm']} trains {settings['model']} ({about['parameters']:,} parameters) on {data['name']}\n"
        f"{data['clients']:,} clients, {settings['cohort']:,} a round; "
        f"{data['train_examples']:,} examples to train on, {data['test_examples']:,} to test on\n"
        f"{environment['devices']} x {environment['device']}, jax {environment['jax']}{notes}"
    )


def table(history: History) -> Table:
    """How good the model is at the end, and what it cost."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="cyan")
    table.add_column(justify="right", style="bold")
    table.add_column()
    table.add_row("training loss", _loss(history), "last round")
    if history.evaluations:
        table.add_row("test accuracy", _percent(history.last("accuracy").value), "all examples")
        table.add_row("", _percent(history.last("accuracy", over="mean").value), "mean over clients")
        worst = history.last("accuracy", over="worst_decile").value
        table.add_row("", _percent(worst), "worst tenth of the clients")
    costs = history.costs
    table.add_section()
    table.add_row("time", f"{costs.compile_seconds:.1f} s", "to compile")
    table.add_row("", f"{costs.run_seconds:.1f} s", "to train")
    table.add_row("throughput", f"{costs.examples_per_second:,.0f}", "examples/s")
    table.add_row("", f"{costs.flops_per_second / 1e9:.1f}", "GFLOP/s")
    table.add_row(
        "occupancy",
        _percent(costs.step_occupancy),
        f"of steps, at {costs.lanes} lane{'s' * (costs.lanes > 1)}",
    )
    table.add_row("", _percent(costs.example_occupancy), "of their rows")
    table.add_row("traffic", f"{costs.bytes_up / 1e6:,.1f} MB", "up, from clients")
    table.add_row("", f"{costs.bytes_down / 1e6:,.1f} MB", "down, to clients")
    return table


def _loss(history: History) -> str:
    return f"{history['loss'][-1]:#.4g}"


def _percent(share: float) -> str:
    return f"{share:.1%}"


def fail(message: str, code: int) -> NoReturn:
    """Ends the program with one message in red on stderr."""
    # No markup: messages hold brackets.
    Console(stderr=True, highlight=False).print(message, style="red", markup=False, soft_wrap=True)
    raise typer.Exit(code)
