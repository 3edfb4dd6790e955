"""The command line, ``fedjax-sim``. No other package imports typer and rich."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from fedjax_sim.cli._bench import bench, tune
from fedjax_sim.cli._lists import data, list_, new
from fedjax_sim.cli._privacy import privacy
from fedjax_sim.cli._results import evaluate, plot, write_report
from fedjax_sim.cli._run import resume, run, sweep
from fedjax_sim.cli._screen import version
from fedjax_sim.cli._signals import EXIT_CODES

__all__ = ["app", "main"]

app = typer.Typer(
    help="Federated-learning simulation on JAX: whole rounds of many clients as one compiled program.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
"""The typer application; ``main`` runs it."""
_PANELS = {
    "Train": {"run": run, "resume": resume, "sweep": sweep},
    "Look at results": {"evaluate": evaluate, "plot": plot, "report": write_report},
    "Begin": {"new": new, "list": list_, "privacy": privacy},
    "Measure": {"bench": bench, "tune": tune},
}
for _panel, _commands in _PANELS.items():
    for _name, _command in _commands.items():
        app.command(_name, rich_help_panel=_panel)(_command)
app.add_typer(data, name="data", rich_help_panel="Begin")


def main() -> None:
    """Entry point of ``fedjax-sim`` and ``python -m fedjax_sim``."""
    try:
        app(prog_name="fedjax-sim")
    except SystemExit as end:
        if not isinstance(end.code, int) or end.code not in EXIT_CODES:
            raise
        # An exception that came in the middle of JAX's tracing can crash the interpreter when it takes itself down
        # (seen with jax 0.10.2). Everything is on disk: leave at once.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fedjax-sim {version()}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    pass
