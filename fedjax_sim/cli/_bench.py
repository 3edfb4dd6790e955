"""``bench`` and ``tune``: how fast it is on this machine, and how it is the fastest."""

from __future__ import annotations

from typing import Annotated

import typer

from fedjax_sim.bench import BENCHMARKS
from fedjax_sim.cli import _screen
from fedjax_sim.cli._setup import BAD_USAGE, ERRORS, Config, Set, keep_programs, load, prepare_jax
from fedjax_sim.experiment import Experiment

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
    if name not in ("rounds", "published"):  # which report how long compiling takes
        keep_programs()
    try:
        BENCHMARKS[name](arguments or [])
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)


def tune(
    config: Config = None,
    changes: Set = None,
    repeats: Annotated[int, typer.Option(help="Repetitions of layouts close to the best.", min=1)] = 5,
    devices: Annotated[
        list[int] | None,
        typer.Option(
            help="Measure on so many devices, too; may be given several times. On CPU, cores are devices.",
            min=1,
        ),
    ] = None,
) -> None:
    """Measure which layout is the fastest for an experiment, on how many devices and lanes, and keep it for later runs.

    Runs with engine.lanes = "auto", which is the default, take the lanes from the cache folder, where they are kept by
    hardware and shapes. Measured is one seed: several seeds in one program are another shape, and are not looked up. Every
    layout is a program that has to be compiled first.
    """
    changes = list(changes or [])
    asked = load(config, changes)
    counts: list[int] = sorted({asked.devices, *(devices or [])})
    on_devices = {count: _on_devices(count, asked) for count in counts}
    found = {count: load(config, changes + more) for count, more in on_devices.items()}
    prepare_jax(counts[-1])
    tunings = {}
    for count, variant in found.items():
        try:
            simulation = variant.simulation()
            tunings[count] = simulation.tune(simulation.init(variant.seeds[0]), repeats=repeats)
        except ERRORS as error:
            _screen.fail(f"error: {error}", BAD_USAGE)
        if len(counts) > 1:
            typer.echo(f"{count} device{'s' * (count > 1)}")
        typer.echo(f"{tunings[count]}\n")
    seconds = {count: tuning.timings[0].median for count, tuning in tunings.items()}
    for count in counts[1:]:
        typer.echo(f"{count} devices are worth {seconds[counts[0]] / seconds[count]:.2f} times {counts[0]}")
    fastest = min(counts, key=seconds.__getitem__)
    if on_devices[fastest]:
        setting = " ".join(f"--set {change}" for change in on_devices[fastest])
        typer.echo(f"the fastest is not what the experiment says: {setting}")
    if file := tunings[fastest].file:
        kept = f'later runs of one seed with these shapes and engine.lanes = "auto" train with {tunings[fastest].best}'
        typer.echo(f"kept in {file}: {kept}")


def _on_devices(count: int, asked: Experiment) -> list[str]:
    """Changes of an experiment's settings so that so many devices share a cohort."""
    if count == asked.devices:
        return []
    sharded = asked.settings["engine"]["name"] == "sharded"
    return [*([] if sharded else ["engine.name=sharded"]), f"engine.devices={count}"]
