"""The numbers of a report: the last and the best value of every metric, over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from fedjax_sim.plots._clients import high_is_worse
from fedjax_sim.plots._groups import Group


@dataclasses.dataclass(frozen=True)
class Spread:
    """A number over seeds.

    Attributes:
      values: ``f64[seeds]``; NaN where a seed has none.
    """

    values: np.ndarray

    def __str__(self) -> str:
        """The mean, and the sample standard deviation where there are several seeds.

        Example:
          >>> import numpy as np
          >>> from fedjax_sim.report._results import Spread
          >>> str(Spread(np.array([0.91, 0.93]))), str(Spread(np.array([0.5]))), str(Spread(np.array([np.nan])))
          ('0.920 ± 0.014', '0.500', 'not finite')
        """
        if not np.isfinite(self.values).all():
            return "not finite"
        mean = float(self.values.mean())
        digits = max(0, 3 - max(0, int(np.floor(np.log10(abs(mean)))))) if mean else 3
        text = f"{mean:,.{digits}f}" if abs(mean) >= 0.001 or not mean else f"{mean:.2e}"
        if len(self.values) == 1:
            return text
        return f"{text} ± {float(self.values.std(ddof=1)):,.{max(digits, 1)}f}"


def last(group: Group, metric: str) -> Spread:
    """Every seed's value in its last row that has the metric."""
    return _of_seeds(group, metric, lambda values: values[-1])


def best(group: Group, metric: str) -> Spread:
    """Every seed's best finite value: chosen by looking, so better than what a run promises."""
    worst_is_high = high_is_worse(metric.split("/")[1] if "/" in metric else metric)
    choose = np.nanmin if worst_is_high else np.nanmax
    return _of_seeds(group, metric, lambda values: choose(values) if np.isfinite(values).any() else np.nan)


def table_metrics(groups: Sequence[Group]) -> list[str]:
    """What the table shows: what was evaluated over all examples, accuracy first, and the training loss."""
    shared = [
        name for name in groups[0].run.metrics if all(name in group.run.metrics for group in groups[1:])
    ]
    evaluated = [name for name in shared if name.count("/") == 1]
    evaluated.sort(key=lambda name: (not name.startswith("eval/"), name.split("/")[0], "loss" in name, name))
    return [*evaluated, *(name for name in ("loss",) if name in shared)]


def _of_seeds(group: Group, metric: str, choose) -> Spread:
    values = []
    for replica in group.replicas:
        there = replica.values(metric)[[metric in row for row in replica.rows]]
        values.append(float(choose(there)) if len(there) else float("nan"))
    return Spread(np.array(values))
