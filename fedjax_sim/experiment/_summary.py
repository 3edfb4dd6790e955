"""What ``summary.json`` says of a run: last and best values, personalised results, costs."""

from __future__ import annotations

import dataclasses
import resource
import sys
from typing import Any

import jax
import numpy as np

from fedjax_sim.evaluation import higher_is_better
from fedjax_sim.history import History
from fedjax_sim.personalisation import Personalised
from fedjax_sim.tracking import evaluation_row, round_rows


def last_row(history: History) -> dict[str, Any]:
    """Metrics of the last round, and of the last evaluation, with the rounds after which it was made."""
    *_, row = round_rows(history, history.rounds - 1)
    done = max(history.evaluations, default=None)
    return (
        row if done is None else row | evaluation_row(history.evaluations[done]) | {"evaluated_after": done}
    )


def best_values(history: History) -> dict[str, Any]:
    """Of every evaluated metric its best value and after how many rounds it was reached."""
    found: dict[str, Any] = {}
    for done, sets in sorted(history.evaluations.items()):
        for where, evaluation in sets.items():
            for metric, value in evaluation.examples.items():
                best = found.get(f"{where}/{metric}")
                sign = 1 if higher_is_better(metric) else -1
                if np.isfinite(value) and (best is None or sign * value > sign * best["value"]):
                    found[f"{where}/{metric}"] = {"value": value, "rounds": done}
    return found


def personalised_values(result: Personalised) -> dict[str, Any]:
    """Over clients with test examples, before and after local work."""
    return {
        metric: {"before": dict(result.before.clients[metric]), "after": dict(over)}
        for metric, over in result.after.clients.items()
    }


def costs(history: History) -> dict[str, Any]:
    """What the program cost, all replicas together."""
    derived = ("step_occupancy", "example_occupancy", "examples_per_second", "flops_per_second")
    found = dataclasses.asdict(history.costs) | {name: getattr(history.costs, name) for name in derived}
    return found | {"peak_memory_bytes": peak_memory()}


def peak_memory() -> int:
    """Most memory in use so far: the device's where it counts, else the process's."""
    stats = jax.devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return int(stats["peak_bytes_in_use"])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
