"""What a run keeps of its rounds: arrays per chunk, so that a long run neither grows fast nor is copied often."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fedjax_sim.data.plans import Plan, Planner, Queue
from fedjax_sim.engines import RoundReport
from fedjax_sim.engines._costs import TurnCosts


class MetricRows:
    """Metrics of all rounds and replicas."""

    def __init__(self):
        self._chunks: list[Mapping[str, np.ndarray]] = []
        self._ends = [0]

    @property
    def rounds(self) -> int:
        return self._ends[-1]

    def add(self, values: Mapping[str, np.ndarray]) -> None:
        """Adds a chunk, ``{name: f64[rounds, replicas]}``."""
        self._chunks.append(values)
        self._ends.append(self._ends[-1] + len(next(iter(values.values()))))

    def of(self, replica: int, start: int = 0, stop: int | None = None) -> dict[str, np.ndarray]:
        """``{name: f64[rounds]}`` of a replica; NaN in rounds of a chunk that lacks the metric."""
        stop = self._ends[-1] if stop is None else stop
        parts, index = [], len(self._chunks)
        # From the end: what is asked for most often is the last chunk alone.
        while index and self._ends[index] > start:
            index -= 1
            first, last = self._ends[index], self._ends[index + 1]
            if first < stop:
                rows = slice(max(start - first, 0), min(stop, last) - first)
                parts.append({name: values[rows, replica] for name, values in self._chunks[index].items()})
        parts.reverse()
        # A round in which nobody took a step may lack a metric, also the first one.
        names = dict.fromkeys(name for part in parts for name in part)
        lengths = [len(next(iter(part.values()))) for part in parts]
        return {
            name: np.concatenate(
                [part.get(name, np.full(n, np.nan)) for part, n in zip(parts, lengths, strict=True)]
            )
            for name in names
        }


def round_metrics(
    report: RoundReport, plan: Plan, turn_costs: Sequence[TurnCosts], replicas: int
) -> dict[str, np.ndarray]:
    """Metrics of a chunk's rounds and what they took, ``{name: f64[rounds, replicas]}``."""
    rounds = int(plan.rounds)
    found = {}
    for name, metric in report.metrics.items():
        total, weight = (
            np.asarray(x, np.float64)[:rounds].reshape(rounds, replicas)
            for x in (metric.total, metric.weight)
        )
        # NaN where nothing was measured.
        found[name] = np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)
    clients, slowest = cohorts(plan, replicas)
    costs = np.array([[c.bytes_up, c.bytes_down] for c in turn_costs], np.float64)
    up, down = np.einsum("grn,gb->brn", clients, costs)
    return found | {
        "clients": np.asarray(plan.clients[:rounds], np.float64),
        "slowest_steps": slowest.astype(np.float64),
        "bytes_up": up,
        "bytes_down": down,
    }


def cohorts(plan: Plan, replicas: int) -> tuple[np.ndarray, np.ndarray]:
    """Clients of each group that take part, ``int64[groups, rounds, replicas]``, and most local steps that a client takes."""
    rounds = int(plan.rounds)
    clients = np.zeros((len(plan.queues), rounds, replicas), np.int64)
    slowest = np.zeros((rounds, replicas), np.int64)
    for group, queue in enumerate(plan.queues):
        replica = queue.entries.replica[:rounds]
        here = np.arange(replica.shape[-1]) < queue.count[:rounds, ..., None]
        steps = np.where(here, queue.entries.steps[:rounds].sum(axis=-1), 0)
        for index in range(replicas):
            own = here & (replica == index)
            clients[group, :, index] = own.reshape(rounds, -1).sum(axis=1)
            most = np.where(own, steps, 0).reshape(rounds, -1).max(axis=1, initial=0)
            slowest[:, index] = np.maximum(slowest[:, index], most)
    return clients, slowest


def examples(planner: Planner, queue: Queue, rounds: int) -> int:
    """Examples that the planned steps really look at, every pass counted."""
    total = 0
    for stage, work in enumerate(planner.works):
        if work.explicit_rows is not None:
            total += int((queue.rows[stage][:rounds] >= 0).sum())
            continue
        sizes = queue.entries.examples[:rounds].astype(np.int64)
        steps = queue.entries.steps[:rounds, ..., stage].astype(np.int64)
        per_epoch = np.maximum(work.steps_per_epoch(sizes), 1)
        whole = np.minimum(sizes, per_epoch * work.rows_per_step)
        rest = np.minimum(steps % per_epoch * work.rows_per_step, sizes)
        total += int(np.sum(steps // per_epoch * whole + rest))
    return total
