"""Many runs side by side: a panel each, where one picture would be a tangle of lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from fedjax_sim.plots import _style
from fedjax_sim.plots._curves import Curve, curve
from fedjax_sim.plots._groups import groups, read_runs
from fedjax_sim.plots._read import RunData

COLUMNS, HEIGHT = 4, 1.9
"""Panels in a row, and inches of a row."""


@_style.styled
def run_panels(runs: Sequence[RunData | str | Path], metric: str = "eval/accuracy") -> Figure:
    """One metric of several runs, each in a panel of its own, with the first run's curve in grey behind it.

    All panels share the vertical axis; each is as wide as its run is long. The number at the end of a curve is the
    last mean over seeds, the band one sample standard deviation to both sides.

    Args:
      runs: run folders, the one that the others are compared with first.
      metric: as in ``metrics.jsonl``.

    Raises:
      ValueError: no run, one without rows, or without the metric.

    Example:
      ``run_panels(["runs/original", "runs/adam"], "loss").savefig("compared.png")``
    """
    listed = read_runs(list(runs))
    for run in listed:
        run.check_metric(metric)
    # In the order given: legends sort settings that are numbers, but here the first run has a part of its own.
    lines = sorted(groups(listed), key=lambda group: [run is group.run for run in listed].index(True))
    curves = [curve(group.replicas, metric, "rounds") for group in lines]
    columns = min(COLUMNS, len(lines))
    rows = -(-len(lines) // columns)
    figure = Figure(figsize=(_style.WIDE, HEIGHT * rows + 0.7), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, sharey=True).ravel()
    for panel, group, points in zip(axes, lines, curves, strict=False):
        _draw(panel, points, curves[0], behind=group is not lines[0])
        panel.set_title(_style.plain(group.label))
    for panel in axes[len(lines) :]:
        panel.remove()
    axes[0].yaxis.set_major_locator(_style.ticks(nbins=4))
    for panel in axes[max(0, len(lines) - columns) : len(lines)]:
        panel.set_xlabel("rounds")
    figure.supylabel(_style.describe(metric), fontsize=10)
    _legend(figure, lines[0].label, [len(group.replicas) for group in lines])
    return figure


def _draw(axes: Axes, points: Curve, first: Curve, behind: bool) -> None:
    if behind:
        axes.plot(first.x, first.mean, color=_style.GREY, linewidth=1.2, linestyle=(0, (3, 1.5)))
    if len(points.seeds) > 1:
        low, high = points.mean - points.deviation, points.mean + points.deviation
        axes.fill_between(points.x, low, high, color=_style.BLUE, alpha=0.2, linewidth=0)
    marker = {"marker": "o", "markersize": 3.5} if len(points.x) <= 25 else {}
    axes.plot(points.x, points.mean, color=_style.BLUE, **marker, clip_on=False)
    last = points.mean[-1] if len(points.x) else np.nan
    if np.isfinite(last):
        axes.annotate(
            f"{last:.3f}", (points.x[-1], last), xytext=(6, 0), textcoords="offset points", va="center",
            fontsize=9, color=_style.BLUE, annotation_clip=False,
        )  # fmt: skip
    _style.horizontal_grid(axes)
    # The first run may be longer; what lies to the right of this run's end is not shown.
    if len(points.x):
        axes.set_xlim(0, points.x[-1])
    axes.xaxis.set_major_locator(_style.ticks(nbins=4, integer=True))


def _legend(figure: Figure, first: str, seeds: Sequence[int]) -> None:
    handles: list[Artist] = [
        Line2D([], [], color=_style.BLUE),
        Line2D([], [], color=_style.GREY, linewidth=1.2, linestyle=(0, (3, 1.5))),
    ]
    labels = ["the run named above", first]
    if max(seeds) > 1:
        over = str(max(seeds)) if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)}"
        handles.append(Patch(color=_style.BLUE, alpha=0.25, linewidth=0))
        labels.append(f"mean ± 1 standard deviation over {over} seeds")
    _style.legend_below(figure, handles, labels)
