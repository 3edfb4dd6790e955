"""Rows in Weights & Biases."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedjax_sim.tracking._rows import as_json
from fedjax_sim.tracking._tensorboard import replica_name


class WeightsAndBiases:
    """Rows in Weights & Biases. Needs the extra ``[wandb]``.

    Every replica (seed, setting of a sweep) is a run of its own in a group with the given name, from which the site
    draws means and bands. The step is the number of rounds done, ``round + 1``. Runs begin with their first row.

    Args:
      project: to log to.
      name: of the group, and the start of the runs' names.
      folder: for the package's local files.
      mode: ``"online"``, ``"offline"`` (files in the folder, uploaded later with ``wandb sync``) or ``"disabled"``.
      config: the run's configuration.
      run_id: the same text after a crash continues the same runs; their server drops steps that it has.

    Raises:
      ModuleNotFoundError: the package is not installed.
      ValueError: an unknown mode.

    Example:
      ``with Lenient(WeightsAndBiases("digits", name="fedavg", mode="offline")) as tracker: ...``
    """

    MODES = ("online", "offline", "disabled")

    def __init__(
        self,
        project: str,
        name: str,
        *,
        folder: str | Path | None = None,
        mode: str = "online",
        config: Mapping[str, Any] | None = None,
        run_id: str | None = None,
    ):
        if mode not in self.MODES:
            raise ValueError(f"mode is {mode!r}, expected one of {', '.join(map(repr, self.MODES))}.")
        try:
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ModuleNotFoundError(
                f"logging to Weights & Biases needs the package wandb, which does not import ({error}); install it with "
                "pip install 'fedjax-sim[wandb]'.",
                name="wandb",
            ) from error
        self._wandb = wandb
        self._name, self._run_id = name, run_id
        self._config = as_json(config or {})
        self._options = {"project": project, "group": name, "mode": mode}
        if folder is not None:
            self._options["dir"] = str(folder)
        self._runs: dict[str, Any] = {}
        self._closed = False

    def write(self, row: Mapping[str, Any]) -> None:
        """Logs the metrics of one row.

        Raises:
          KeyError: the row has no ``round``.
          ValueError: the tracker is closed.
        """
        if self._closed:
            raise ValueError(f"the runs of {self._name!r} are closed: they take no more rows.")
        metrics = {
            name: value for name, value in as_json(row).items() if name not in ("round", "seed", "sweep")
        }
        self._run(row).log(metrics, step=int(row["round"]) + 1)

    def close(self) -> None:
        """Finishes the runs; closing again does nothing."""
        if not self._closed:
            self._closed = True
            for run in self._runs.values():
                run.finish()

    def __enter__(self) -> WeightsAndBiases:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, row: Mapping[str, Any]):
        replica = replica_name(row)
        if replica not in self._runs:
            options = dict(self._options)
            if self._run_id is not None:
                # Theirs must be short and plain; the replica's name may be neither.
                identity = hashlib.sha256(f"{self._run_id}/{replica}".encode()).hexdigest()[:16]
                options |= {"id": identity, "resume": "allow"}
            settings = {name: as_json(row[name]) for name in ("seed", "sweep") if name in row}
            self._runs[replica] = self._wandb.init(
                name=", ".join(part for part in (self._name, replica) if part),
                config={**self._config, **settings},
                reinit="create_new",  # several at a time, one per replica
                **options,
            )
        return self._runs[replica]
