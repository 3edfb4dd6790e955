"""``bench`` and ``tune``: how fast it is on this machine, and how it is the fastest."""

from __future__ import annotations

from typing import Annotated

import typer

from fedjax_sim.bench import BENCHMARKS
from fedjax_sim.cli import _screen
from fedjax_sim.cli._setup import BAD_USAGE, ERRORS, Config, Set, keep_programs, load, prepare_jax

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
    if name != "rounds":  # which reports how long compiling takes
        keep_programs()
    try:
        BENCHMARKS[name](arguments or [])
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)


def tune(
    config: Config = None,
    changes: Set = None,
    repeats: Annotated[int, typer.Option(help="Repetitions of layouts close to the best.", min=1)] = 5,
) -> None:
    """Measure which number of lanes is the fastest for an experiment, and keep it for later runs.

    Runs with engine.lanes = "auto", which is the default, take it from the cache folder: it is kept by hardware and shapes.
    Every layout is a program that has to be compiled first.
    """
    found = load(config, list(changes or []))
    prepare_jax(found.devices)
    try:
        simulation = found.simulation()
        state = simulation.init(found.seeds[0])
        tuning = simulation.tune(state, repeats=repeats)
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)
    typer.echo(tuning)
    if tuning.file is not None:
        kept = f'later runs of one seed with these shapes and engine.lanes = "auto" train with {tuning.best}'
        typer.echo(f"\nkept in {tuning.file}: {kept}")
