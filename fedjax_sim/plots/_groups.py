"""What becomes one line of a picture: a run, or one setting of a swept run, with its seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedjax_sim.plots import _labels, _style
from fedjax_sim.plots._read import Replica, RunData, read_run

Runs = RunData | str | Path | Sequence[RunData | str | Path]


@dataclasses.dataclass(frozen=True)
class Group:
    """The replicas of one line.

    Attributes:
      label: what the legend says.
      run: where they come from.
      setting: of the sweep.
      replicas: one per seed.
      style: colour and dashes.
    """

    label: str
    run: RunData
    setting: Mapping[str, Any]
    replicas: tuple[Replica, ...]
    style: Mapping[str, Any]

    @property
    def places(self) -> list[int]:
        """Where its replicas stand among those of the run, as in the arrays of ``clients.npz``."""
        return [index for index, replica in enumerate(self.run.replicas) if replica in self.replicas]


def read_runs(runs: Runs) -> list[RunData]:
    """One or several runs, as they are or as folders.

    Raises:
      ValueError: none is given, or one without a row.
    """
    listed = [runs] if isinstance(runs, RunData | str | Path) else list(runs)
    if not listed:
        raise ValueError("no run folder is given, expected at least one.")
    read = [read_run(run) for run in listed]
    for run in read:
        if not run.replicas:
            raise ValueError(f"{run.path} has no complete round yet: metrics.jsonl is empty.")
    return read


def groups(runs: Sequence[RunData]) -> list[Group]:
    """The lines of a picture, in the order of its legend."""
    found: list[tuple[str, RunData, Mapping[str, Any]]] = []
    for run, name in zip(runs, _labels.run_labels(runs), strict=True):
        for setting in run.settings:
            parts = [name] if len(runs) > 1 or not setting else []
            found.append(
                (", ".join([*parts, *([_labels.setting_label(setting)] if setting else [])]), run, setting)
            )
    order = _labels.numbers_in_order([setting or _one_difference(run, runs) for _, run, setting in found])
    styles = _style.line_styles(len(found))
    if order is not None:
        found, styles = [found[i] for i in order], _style.ordered_styles(len(found))
    return [
        Group(label, run, setting, run.of_setting(setting), style)
        for (label, run, setting), style in zip(found, styles, strict=True)
    ]


def _one_difference(run: RunData, runs: Sequence[RunData]) -> Mapping[str, Any]:
    """The one key of the configurations that differs, if one does."""
    keys = _labels.differences([other.config for other in runs])
    flat = _labels.flatten(run.config)
    return {keys[0]: flat[keys[0]]} if len(keys) == 1 and keys[0] in flat else {}
