"""The run folder: what a run leaves on disk, and nothing of which is ever overwritten by another run."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tomli_w

from fedjax_sim._src import keys
from fedjax_sim.data import Federated
from fedjax_sim.experiment._about import about_clients
from fedjax_sim.experiment._forms import ConfigError
from fedjax_sim.experiment._settings import Settings
from fedjax_sim.history import History
from fedjax_sim.personalisation import Personalised
from fedjax_sim.simulate import Simulation
from fedjax_sim.tracking import write_json

CONFIG, ENVIRONMENT, METRICS, SUMMARY, CLIENTS = (
    "config.toml", "environment.json", "metrics.jsonl", "summary.json", "clients.npz",
)  # fmt: skip
HEADER = "# The complete settings of this run; `fedjax-sim run` takes this file as it is.\n"


def new_folder(name: str, out: Path | None = None) -> Path:
    """A folder for a new run, which does not exist yet: ``out``, or ``runs/<time>-<name>``.

    Raises:
      ConfigError: ``out`` is there already; runs are never mixed or overwritten.
    """
    if out is not None:
        if out.exists():
            raise ConfigError(
                f"the run folder {out} exists already; name a new one, or go on with the run in it: fedjax-sim resume {out}"
            )
        return out
    folder = first = Path("runs") / f"{time.strftime('%Y%m%d-%H%M%S')}-{name}"
    number = 2
    while folder.exists():
        folder, number = first.with_name(f"{first.name}-{number}"), number + 1
    return folder


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one run.

    Attributes:
      path: the folder.
    """

    path: Path

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def create(self, settings: Settings) -> None:
        """Makes the folder and writes what was asked for, and on what.

        Raises:
          OSError: the folder cannot be made or written.
        """
        self.path.mkdir(parents=True)
        self.rewrite(settings)
        write_json(self / ENVIRONMENT, environment())

    def remove(self) -> None:
        """Takes the folder away, with everything in it."""
        shutil.rmtree(self.path)

    def settings(self) -> Settings:
        """The settings of the run in this folder.

        Raises:
          ConfigError: this is no run folder.
        """
        try:
            tables = tomllib.loads((self / CONFIG).read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise ConfigError(
                f"{self.path} is no run folder: {CONFIG} cannot be read ({error}). A run folder is what `fedjax-sim run` makes."
            ) from error
        if "algorithm" not in tables:
            raise ConfigError(
                f"{self / CONFIG} is not the complete settings of a run: it has no table algorithm. Start a new run."
            )
        return tables

    def rewrite(self, settings: Settings) -> None:
        """Writes the settings at once, also over those of a run that goes on for more rounds."""
        partial = self / f"{CONFIG}.partial"
        partial.write_text(HEADER + tomli_w.dumps(settings), encoding="utf-8")
        partial.replace(self / CONFIG)

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps a second process out. The lock goes with the process that holds it, however that ends.

        Raises:
          ConfigError: another process runs in this folder.
        """
        import fcntl  # not on Windows, where JAX's wheels exist but nobody was seen to use two processes

        with (self / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another process runs in {self.path}: wait until it ends, or start a run of its own folder."
                ) from None
            yield

    def name_latest(self) -> None:
        """``runs/latest`` is the newest run; without symbolic links there is none.

        Elsewhere a file called latest may be somebody's, and nothing is done.
        """
        link = self.path.absolute().parent / "latest"
        if link.parent.name != "runs":
            return
        with contextlib.suppress(OSError):
            if link.is_symlink():
                link.unlink()
            if not link.exists():
                link.symlink_to(self.path.name)


def environment() -> dict[str, Any]:
    """Versions, hardware, and the state of the repository that the command was run in."""
    import flax
    import jaxlib
    import optax

    devices = jax.devices()
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {
            "fedjax_sim": sys.modules["fedjax_sim"].__version__,
            "python": platform.python_version(),
            "jax": jax.__version__,
            "jaxlib": jaxlib.version.__version__,
            "flax": flax.__version__,
            "optax": optax.__version__,
            "numpy": np.__version__,
        },
        "hardware": {
            "platform": platform.platform(),
            "cores": os.cpu_count(),
            "backend": devices[0].platform,
            "devices": [device.device_kind for device in devices],
        },
        "git": git_state(),
    }


def git_state() -> dict[str, Any] | None:
    """Commit and whether files differ from it; ``None`` outside of a repository."""

    def ask(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
            stdin=subprocess.DEVNULL,
        ).stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def write_clients(
    path: Path,
    simulation: Simulation,
    federated: Federated,
    seeds: Sequence[int],
    histories: Sequence[History],
    personalised: Sequence[Personalised] = (),
) -> None:
    """Writes ``clients.npz``: who the clients are, who took part when, and their results.

    Who took part follows from the seed alone, so it is drawn again here instead of being kept through every kill.
    """
    rounds = histories[0].first_round + histories[0].rounds
    arrays = about_clients(federated)
    planner = simulation.planner()
    counts = np.zeros((len(seeds), federated.train.num_clients), np.int64)
    for replica, seed in enumerate(seeds):
        roots = root_words_of(seed)
        turns = planner.turns(roots, 0, rounds)
        counts[replica] = np.bincount(turns.client, minlength=federated.train.num_clients)
        if replica == 0:
            arrays["cohort_rounds"], arrays["cohort_clients"] = turns.round, turns.client
    arrays["participation"] = counts
    last = max(histories[0].evaluations, default=None)
    if last is not None:
        for where, evaluation in histories[0].evaluations[last].items():
            for metric in evaluation.per_client:
                arrays[f"{where}/{metric}"] = np.stack(
                    [history.evaluations[last][where].per_client[metric] for history in histories]
                )
    if personalised:
        for when in ("before", "after"):
            results = [getattr(result, when).per_client for result in personalised]
            arrays |= {f"{when}/{metric}": np.stack([r[metric] for r in results]) for metric in results[0]}
    save_npz(path, arrays)


def save_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes the file at once: a reader sees the whole of it or none."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    partial.replace(path)


def root_words_of(seed: int) -> list[tuple[int, ...]]:
    """What the cohorts of a run with this seed are keyed by."""
    words = np.asarray(jax.random.key_data(keys.root_key(seed)))
    return [tuple(int(word) for word in words)]
