"""What the command line shows: progress, tables, errors. Results go to stdout, everything else to stderr."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jax
import numpy as np
import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from fedjax_sim.experiment import Experiment, Outcome
from fedjax_sim.history import History
from fedjax_sim.personalisation import Personalised
from fedjax_sim.privacy import Ledger
from fedjax_sim.simulate import Progress
from fedjax_sim.tracking import as_json


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
        self._twentieths, self._measured = 0, ""
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
        text = self._status(progress.chunks)
        self._bar.update(self._task, completed=progress.done, description=text)
        twentieths = progress.done * 20 // progress.rounds
        if not self._console.is_terminal and twentieths > self._twentieths:
            self._console.print(f"{progress.done}/{progress.rounds}  {text}", soft_wrap=True)
            self._twentieths = twentieths

    def _status(self, chunks: Sequence[History]) -> str:
        for where in list(chunks[0].evaluations.get(max(chunks[0].evaluations, default=0), {}))[:1]:
            metric = _main_metric(chunks[0], where)
            values = [chunk.last(metric, on=where).value for chunk in chunks]
            shown = f"{np.mean(values):.1%}" if metric == "accuracy" else f"{np.mean(values):#.4g}"
            self._measured = f"  test {metric} {shown}"
        return f"loss {_loss(chunks)}{self._measured}  {chunks[0].costs.examples_per_second:,.0f} examples/s"


_PATIENCE = 3.0
"""Seconds without a word before a run begins."""


class Watch:
    """Shows the programs of a command one after the other: what is trained, then how far it is.

    Args:
      quiet: shows nothing.
      before: what goes on before the first program begins, which is said where it takes long.
    """

    def __init__(self, quiet: bool, before: str = ""):
        self._quiet, self._view = quiet, None
        self._timer = threading.Timer(_PATIENCE, self._say, [before])
        self._timer.daemon = True
        self._waits = bool(before) and not quiet

    def __enter__(self) -> Watch:
        if self._waits:
            self._timer.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._end()

    def _say(self, text: str) -> None:
        Console(stderr=True, highlight=False).print(text, markup=False, soft_wrap=True)

    def begin(self, program: Experiment) -> ProgressView:
        """The callback that shows a program, which begins now."""
        self._end()
        if not self._quiet:
            show(headline(program), False)
        self._view = ProgressView(program.rounds, self._quiet)
        return self._view.__enter__()

    def _end(self) -> None:
        self._timer.cancel()
        if self._view is not None:
            self._view.__exit__()
        self._view = None


def headline(program: Experiment) -> str:
    """What is trained on what, in three lines and what there is to note."""
    settings, data = program.settings, program.federated
    cohort = ", ".join(f"{name} {value}" for name, value in settings["cohort"].items() if value is not False)
    devices = jax.devices()
    replicas = program.replicas()
    times = f", {len(replicas)} times at once" if len(replicas) > 1 else ""
    notes = "".join(f"\n{note}" for note in data.notes)
    return (
        f"{settings['algorithm']['name']} trains {settings['model']['name']} ({program.parameters():,} parameters) on "
        f"{data.name}{times}\n"
        f"{data.train.num_clients:,} clients, cohort: {cohort.removeprefix('name ')}; {data.train.num_examples:,} examples to "
        f"train on, {data.test.num_examples:,} to test on\n"
        f"{program.devices} x {devices[0].device_kind}, jax {jax.__version__}{notes}"
    )


def table(outcome: Outcome) -> Table:
    """How good the models are at the end, and what they cost; means and standard deviations over several seeds."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="cyan")
    table.add_column(justify="right", style="bold")
    table.add_column()
    for name, members in _by_setting(outcome).items():
        histories = [outcome.histories[index] for index in members]
        if name:
            table.add_row(name, "", "")
        losses = [history["loss"][-1] for history in histories]
        table.add_row("training loss", _spread(losses, "#.4g", 1), _seeds(histories, "last round"))
        for where in histories[0].evaluations.get(max(histories[0].evaluations, default=0), {}):
            metric = _main_metric(histories[0], where)
            what = f"{'test' if where == 'eval' else where} {metric}"
            for over, words in _OVER.items():
                values = [history.last(metric, on=where, over=over).value for history in histories]
                shown = _value(metric, values)
                table.add_row(what if over == "examples" else "", shown, words)
        _add_privacy(table, outcome.summary["replicas"][members[0]].get("privacy", []))
        if outcome.personalised:
            _add_personalised(table, [outcome.personalised[index] for index in members])
        table.add_section()
    costs = outcome.histories[0].costs
    table.add_row("time", _seconds(costs.compile_seconds), "to compile")
    table.add_row("", _seconds(costs.run_seconds), "to train")
    table.add_row("throughput", f"{costs.examples_per_second:,.0f}", "examples/s")
    amount, _, prefix = _scaled(costs.flops_per_second).partition(" ")
    table.add_row("", amount, f"{prefix}FLOP/s")
    for index, part in enumerate(costs.precision.split(", ")):
        dtype, _, what = part.partition(" ")
        table.add_row("" if index else "precision", dtype, what)
    lanes = f"of steps, at {costs.lanes} lane{'s' * (costs.lanes > 1)}"
    table.add_row("occupancy", f"{costs.step_occupancy:.1%}", lanes)
    table.add_row("", f"{costs.example_occupancy:.1%}", "of their rows")
    table.add_row("traffic", f"{_scaled(costs.bytes_up)}B", "up, from clients")
    table.add_row("", f"{_scaled(costs.bytes_down)}B", "down, to clients")
    return table


def _add_privacy(table: Table, statements: Sequence[Mapping[str, Any]]) -> None:
    """What the rounds cost, for every unit that noise hides."""
    for index, found in enumerate(statements):
        label = "" if index else "privacy"
        if "no_price" in found:
            table.add_row(label, "no price", f"for one {found['unit']}: {found['no_price']}")
            continue
        simulated = ", simulated" if found["simulated"] else ""
        whose = f"at delta {found['delta']:.2g}, for one {found['unit']} ({found['neighbour']}){simulated}"
        table.add_row(label, f"ε {found['epsilon']:.3g}", whose)
        if remark := Ledger.from_json(found["ledger"]).remark(found["delta"]):
            table.add_row("", "", remark)


def prices(found: Sequence[Mapping[str, Any]]) -> Table:
    """What experiments would cost, as the end of a run has it, and how many rounds their budgets pay for."""
    table = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    table.add_column(style="cyan")
    table.add_column(justify="right", style="bold")
    table.add_column()
    for price in found:
        if cell := price.get("sweep"):
            table.add_row(", ".join(f"{key} = {value}" for key, value in cell.items()), "", "")
        _add_privacy(table, [price])
        if "rounds_paid" in price:
            table.add_row(
                "", f"{price['rounds_paid']:,}", "rounds are within the budget; their price is above"
            )
    return table


def _add_personalised(table: Table, results: Sequence[Personalised]) -> None:
    clients = results[0].after.clients
    metric = "accuracy" if "accuracy" in clients else next(iter(clients))
    for label, when in (("personalised", "before"), ("", "after")):
        means = [getattr(result, when).clients[metric]["mean"] for result in results]
        table.add_row(label, _value(metric, means), f"{metric}, mean over clients, {when} local work")


def _seconds(value: float) -> str:
    """Milliseconds where tenths of seconds would say nothing."""
    return f"{value:.1f} s" if value >= 0.1 else f"{1e3 * value:.3g} ms"


def _scaled(value: float) -> str:
    """A number and the prefix of its unit, up to giga: ``"220.8 M"``, ``"1,234.5 G"``."""
    for factor, prefix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:,.1f} {prefix}"
    return f"{value:,.0f} "


_OVER = {
    "examples": "all examples",
    "mean": "mean over clients",
    "worst_decile": "worst tenth of the clients",
}


def _main_metric(history: History, where: str) -> str:
    last = history.evaluations[max(history.evaluations)][where]
    return "accuracy" if "accuracy" in last.examples else next(iter(last.examples))


def _by_setting(outcome: Outcome) -> dict[str, list[int]]:
    """The replicas of every swept setting, one per seed; one group without a name where nothing is swept."""
    found: dict[str, list[int]] = {}
    for index, label in enumerate(outcome.labels):
        name = ", ".join(f"{key} = {value}" for key, value in label.get("sweep", {}).items())
        found.setdefault(name, []).append(index)
    return found


def _seeds(histories: Sequence[History], text: str) -> str:
    return text if len(histories) == 1 else f"{text}, mean ± std over {len(histories)} seeds"


def _value(metric: str, values: Sequence[float]) -> str:
    return _spread(values, ".1f", 100) if metric == "accuracy" else _spread(values, "#.4g", 1)


def _spread(values: Sequence[float], form: str, scale: float) -> str:
    """One value, or mean and sample standard deviation; a percentage where the scale is 100."""
    percent = "%" if scale == 100 else ""
    mean = f"{scale * float(np.mean(values)):{form}}"
    if len(values) == 1:
        return mean + percent
    return f"{mean} ± {scale * float(np.std(values, ddof=1)):{form}}{percent and ' %'}"


def _loss(histories: Sequence[History]) -> str:
    return f"{np.mean([history['loss'][-1] for history in histories]):#.4g}"


def print_json(content: Any) -> None:
    """Prints a result for scripts."""
    typer.echo(json.dumps(as_json(content), indent=2, allow_nan=False))


def fail(message: str, code: int) -> NoReturn:
    """Ends the program with one message in red on stderr."""
    # No markup: messages hold brackets.
    Console(stderr=True, highlight=False).print(message, style="red", markup=False, soft_wrap=True)
    raise typer.Exit(code)
