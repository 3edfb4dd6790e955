"""The command line, ``fedjax-sim``. No other package imports typer and rich."""

from __future__ import annotations

from typing import Annotated

import typer

from fedjax_sim.cli._run import run
from fedjax_sim.cli._screen import version

__all__ = ["app", "main"]

app = typer.Typer(
    help="Federated-learning simulation on JAX: whole rounds of many clients as one compiled program.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(run)


def main() -> None:
    """Entry point of ``fedjax-sim`` and ``python -m fedjax_sim``."""
    app(prog_name="fedjax-sim")


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
