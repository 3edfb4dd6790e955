"""Virtual environments of the peers, each made once and kept."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from fedjax_sim._src import machine

_STAMP = "installed.json"


class EnvironmentFailed(Exception):
    """An environment could not be made; the message says which command failed, and how."""


def default_folder() -> Path:
    """Where environments are kept: ``fedjax-sim/peers`` in the user's cache."""
    return machine.cache_folder() / "peers"


def python_of(name: str, steps: Sequence[Sequence[str]], folder: Path) -> Path:
    """The interpreter of a peer's environment, which is made if it is not there as asked for.

    Args:
      name: of the peer, and of the environment's folder.
      steps: requirements to install, one call of pip after the other. pip's own settings (an index, a proxy) hold.
      folder: where environments are kept.

    Raises:
      EnvironmentFailed: the environment cannot be made, or a package cannot be installed.
    """
    environment = folder.expanduser().absolute() / name
    python, stamp = environment / "bin" / "python", environment / _STAMP
    wanted = json.dumps([list(step) for step in steps])
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making the environment of {name} in {environment}", flush=True)
    try:
        environment.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EnvironmentFailed(f"{environment} cannot be made: {error}") from error
    # From nothing: what other requirements brought would stay, and be part of what is measured.
    _run([sys.executable, "-m", "venv", "--clear", str(environment)])
    for step in steps:
        _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *step])
    stamp.write_text(wanted)
    return python


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
        said = next(
            (line for line in reversed(lines) if "error" in line.lower()), lines[-1] if lines else "nothing"
        )
        raise EnvironmentFailed(f"{' '.join(command[1:])} said: {said.strip()}")
