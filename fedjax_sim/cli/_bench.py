"""``bench``: how fast it is on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from fedjax_sim.bench import BENCHMARKS
from fedjax_sim.cli import _screen
from fedjax_sim.cli._setup import BAD_USAGE, ERRORS

_NAMES = ", ".join(BENCHMARKS)


def bench(
    name: Annotated[str, typer.Argument(help=f"One of {_NAMES}.", show_default=False)],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(help="Arguments of the benchmark, after --; its own help: -- --help."),
    ] = None,
) -> None:
    """Measure speed on this machine: medians of interleaved repetitions, compilation apart."""
    if name not in BENCHMARKS:
        _screen.fail(f"error: there is no benchmark {name!r}, expected one of {_NAMES}.", BAD_USAGE)
    try:
        BENCHMARKS[name](arguments or [])
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
