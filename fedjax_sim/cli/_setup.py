"""What has to be set before JAX starts, how commands end, and options that several of them have."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import jax
import typer

from fedjax_sim import experiment
from fedjax_sim._src import machine
from fedjax_sim.cli import _screen

FAILED, BAD_USAGE = 1, 2
ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError)
"""What the library raises for bad input or a missing extra, and JAX where memory or a device is missing."""

Config = Annotated[
    Path | None,
    typer.Argument(help="TOML file, or a run folder; the embedded digits if not given.", show_default=False),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change a setting, for example algorithm.client.learning_rate=0.05.",
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but the run folder's path.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
Folder = Annotated[Path, typer.Argument(help="Run folder.", show_default=False)]


def load(config: Path | None, changes: Sequence[str]) -> experiment.Experiment:
    """The experiment, or the end of the program with a message."""
    try:
        return experiment.load(config, changes)
    except ERRORS as error:
        _screen.fail(f"error: {error}", BAD_USAGE)


def prepare_jax(devices: int) -> None:
    """Everything that JAX has to know before it starts."""
    if devices > 1:
        try:
            jax.config.update("jax_num_cpu_devices", devices)
        except RuntimeError as error:  # JAX runs already, in a program that calls the command
            _screen.fail(f"error: {error}", BAD_USAGE)
    keep_programs()


def keep_programs() -> None:
    """Keeps compiled programs in the user's cache folder, unless JAX was told of another one.

    Compiling takes longer than a short run; the second run of a configuration need not wait for it.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = machine.cache_folder() / "jax"
        cache.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return  # no home, or one that cannot be written to: that costs time, not the run
    if os.access(cache, os.W_OK):
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
