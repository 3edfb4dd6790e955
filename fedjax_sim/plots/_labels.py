"""What to call a run or a setting among others: by what differs between their configurations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fedjax_sim.plots._read import RunData

UNTOLD = ("name", "seeds", "seed", "output", "sweep", "rounds", "paths", "plots", "checkpoints", "trackers")
"""Keys at the top of a configuration that do not say what a run does: names, files, and how long it went on."""


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` is ``{"a.b": 1}``."""
    flat = {}
    for name, value in config.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return flat


def differences(configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Dotted keys whose values differ; a key that some configurations lack differs, too."""
    flat = [flatten(config) for config in configs]
    keys = dict.fromkeys(key for config in flat for key in config)
    told = [key for key in keys if key.split(".")[0] not in UNTOLD]
    absent = object()
    return [key for key in told if any(one.get(key, absent) != flat[0].get(key, absent) for one in flat)]


def run_labels(runs: Sequence[RunData]) -> list[str]:
    """One label per run, all of them different.

    ``key = value`` where the configurations differ in one key or a few, else the runs' names, else their folders.
    """
    if len(runs) == 1:
        return [runs[0].name]
    flat = [flatten(run.config) for run in runs]
    keys = differences([run.config for run in runs])
    # An option that only some algorithms have need not be told where the rest tells the runs apart.
    shared = [key for key in keys if all(key in config for config in flat)]
    by_shared = [setting_label({key: config[key] for key in shared}) for config in flat]
    by_key = [setting_label({key: config[key] for key in keys if key in config}) for config in flat]
    names = [run.name for run in runs]
    folders = [str(run.path) for run in runs]
    for labels, told in ((by_shared, shared), (by_key, keys)):
        if 0 < len(told) <= 3 and _tell_apart(labels):
            return labels
    if _tell_apart(names):
        return names
    short = [run.path.resolve().name for run in runs]
    return short if _tell_apart(short) else folders


def setting_label(setting: Mapping[str, Any]) -> str:
    """``key = value`` for every setting; keys by their last part where several are told and those differ.

    Example:
      >>> from fedjax_sim.plots._labels import setting_label
      >>> setting_label({"algorithm.client.learning_rate": 0.1})
      'algorithm.client.learning_rate = 0.1'
      >>> setting_label({"algorithm.client.learning_rate": 0.1, "data.alpha": 0.3})
      'learning_rate = 0.1, alpha = 0.3'
    """
    last = [key.rpartition(".")[2] for key in setting]
    short = len(last) > 1 and len(set(last)) == len(last)
    names = last if short else list(setting)
    return ", ".join(f"{name} = {_value(value)}" for name, value in zip(names, setting.values(), strict=True))


def numbers_in_order(settings: Sequence[Mapping[str, Any]]) -> list[int] | None:
    """The order of settings of one number each, smallest first; ``None`` if they are anything else."""
    if len(settings) < 3 or any(len(setting) != 1 for setting in settings):
        return None
    values = [next(iter(setting.values())) for setting in settings]
    same_key = len({next(iter(setting)) for setting in settings}) == 1
    if not same_key or any(isinstance(v, bool) or not isinstance(v, int | float) for v in values):
        return None
    return sorted(range(len(values)), key=lambda index: values[index])


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _tell_apart(labels: Sequence[str]) -> bool:
    return all(labels) and len(set(labels)) == len(labels)
