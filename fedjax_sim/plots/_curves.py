"""Learning curves: metrics over rounds, megabytes or simulated time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedjax_sim._src import checks
from fedjax_sim.plots import _style
from fedjax_sim.plots._groups import Group, Runs, groups, read_runs
from fedjax_sim.plots._read import Replica

X_LABELS = {
    "rounds": "rounds",
    "bytes": "traffic, up and down (MB)",
    "time": "simulated time (s)",
}


@dataclasses.dataclass(frozen=True)
class Curve:
    """A metric of one group, at the rounds that all its seeds have.

    Attributes:
      x: ``f64[points]``; the mean over seeds, which differ in bytes and time.
      seeds: ``f64[seeds, points]``; NaN where a value is null.
    """

    x: np.ndarray
    seeds: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """Over seeds; NaN as soon as one seed is: a mean over the others would look better than the run was."""
        return self.seeds.mean(axis=0)

    @property
    def deviation(self) -> np.ndarray:
        """Sample standard deviation over seeds; 0 for a single one."""
        return self.seeds.std(axis=0, ddof=1) if len(self.seeds) > 1 else np.zeros(self.seeds.shape[1])


@_style.styled
def learning_curves(runs: Runs, metrics: str | Sequence[str] = ("loss",), *, x: str = "rounds") -> Figure:
    """Metrics while a run went on, one panel per metric, one line per run or setting of a sweep.

    The line is the mean over seeds, the band one (sample) standard deviation to both sides; a single seed has no band.
    A seed's own line is faint, drawn where there is one group or where a mean is missing because a seed has no finite
    value there. The point of a row stands at its index plus one, the rounds that were done.

    Args:
      runs: a run folder or several.
      metrics: names as in ``metrics.jsonl``: ``loss``, ``eval/accuracy``, ``eval/accuracy/worst_decile``.
      x: ``"rounds"``, ``"bytes"`` (megabytes that clients sent and received so far) or ``"time"`` (simulated, so far).

    Raises:
      ValueError: an unknown metric or ``x``, a run without rows, or whose rows lack bytes or time.

    Example:
      ``learning_curves(["runs/a", "runs/b"], ["loss", "eval/accuracy"], x="bytes").savefig("compared.png")``
    """
    checks.one_of("x", x, tuple(X_LABELS))
    names = [metrics] if isinstance(metrics, str) else list(metrics)
    if not names:
        raise ValueError("no metric is given, expected at least one, such as 'loss'.")
    listed = read_runs(runs)
    for run in listed:
        for name in names:
            run.check_metric(name)
    lines = groups(listed)
    figure, axes = _style.panels(len(names))
    for panel, name in zip(axes, names, strict=True):
        curves = [curve(group.replicas, name, x) for group in lines]
        _draw(panel, lines, curves)
        panel.set_xlabel(X_LABELS[x])
        panel.set_ylabel(_style.describe(name))
    if len(listed) == 1:
        figure.suptitle(_style.plain(listed[0].name), x=0.01, ha="left", fontsize=10.5)
    _legend(figure, lines)
    return figure


def curve(replicas: Sequence[Replica], metric: str, x: str) -> Curve:
    """One metric of the seeds of a group; rounds without the metric are left out, null values are not."""
    there = [
        {int(done): (place, value) for done, place, value, row in zip(r.rounds, _places(r, x), r.values(metric), r.rows, strict=True) if metric in row}
        for r in replicas
    ]  # fmt: skip
    common = sorted(set.intersection(*(set(points) for points in there)))
    if not common:
        return Curve(np.empty(0), np.empty((len(replicas), 0)))
    values = np.array([[points[done] for done in common] for points in there])
    return Curve(values[:, :, 0].mean(axis=0), values[:, :, 1])


def _places(replica: Replica, x: str) -> np.ndarray:
    if x == "rounds":
        return replica.rounds.astype(np.float64)
    names = ("bytes_up", "bytes_down") if x == "bytes" else ("simulated_seconds",)
    present = [name for name in names if any(name in row for row in replica.rows)]
    if not present:
        raise ValueError(
            f"x is {x!r}, but the rows have no {' or '.join(names)}; plot over 'rounds' instead."
        )
    # A row has what its own round took.
    total = np.cumsum(np.nansum([replica.values(name) for name in present], axis=0))
    return total / 1e6 if x == "bytes" else total


def _draw(axes: Axes, lines: Sequence[Group], curves: Sequence[Curve]) -> None:
    for group, points in zip(lines, curves, strict=True):
        marker = {"marker": "o", "markersize": 3.5} if len(points.x) <= 25 else {}
        several = len(points.seeds) > 1
        if several:
            low, high = points.mean - points.deviation, points.mean + points.deviation
            axes.fill_between(points.x, low, high, color=group.style["color"], alpha=0.18, linewidth=0)
        if several and (len(lines) == 1 or np.isnan(points.mean).any()):
            for seed in points.seeds:
                axes.plot(points.x, seed, color=group.style["color"], linewidth=0.7, alpha=0.45)
        axes.plot(points.x, points.mean, **group.style, **marker)
    _style.horizontal_grid(axes)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(_style.ticks(integer=axes.get_xlim()[1] >= 5))
    axes.yaxis.set_major_locator(_style.ticks())
    axes.margins(x=0.02)


def _legend(figure: Figure, lines: Sequence[Group]) -> None:
    handles: list[Artist] = []
    labels: list[str] = []
    if len(lines) > 1:
        handles = [Line2D([], [], **group.style) for group in lines]
        labels = [group.label for group in lines]
    seeds = {len(group.replicas) for group in lines}
    if max(seeds) > 1:
        colour = lines[0].style["color"] if len(lines) == 1 else _style.GREY
        over = f"{max(seeds)} seeds" if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)} seeds"
        handles.append(Patch(color=colour, alpha=0.25, linewidth=0))
        if len(lines) == 1:
            handles = [
                Line2D([], [], color=colour),
                *handles,
                Line2D([], [], color=colour, linewidth=0.7, alpha=0.6),
            ]
            labels = [f"mean over {over}", "mean ± 1 standard deviation", "one seed"]
        else:
            labels.append(f"mean ± 1 standard deviation over {over}")
    _style.legend_below(figure, handles, labels)
