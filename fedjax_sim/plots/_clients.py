"""Histograms over clients: how much data they have, how well the model serves them."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter

from fedjax_sim.plots import _style
from fedjax_sim.plots._groups import Group, Runs, groups, read_runs
from fedjax_sim.plots._read import RunData, read_run


@_style.styled
def client_sizes(run: RunData | str) -> Figure:
    """How many examples the clients have: a histogram, and the share of the data that the largest clients hold.

    Args:
      run: a run folder with ``train_examples`` in ``clients.npz``.

    Raises:
      ValueError: the folder has no such array, or it is empty.

    Example:
      ``client_sizes("runs/a").savefig("sizes.png")``
    """
    data = read_run(run)
    sizes = np.asarray(data.client_array("train_examples"))
    if not sizes.size:
        raise ValueError(f"train_examples of {data.path} is empty: there are no clients to show.")
    figure, (left, right) = _style.panels(2)
    positive = sizes[sizes > 0]
    wide = positive.size > 0 and positive.max() > 100 * positive.min()
    if wide:
        left.hist(
            positive, bins=_log_edges(positive).tolist(), color=_style.BLUE, edgecolor="white", linewidth=0.6
        )
        _log_axis(left)
    else:
        left.hist(
            sizes, bins=_integer_edges(sizes).tolist(), color=_style.BLUE, edgecolor="white", linewidth=0.6
        )
        left.set_xlim(left=0)
    middle = float(np.median(sizes))
    _mark(left, middle, f"median {middle:,.0f}")
    empty = int((sizes == 0).sum())
    note = f", {empty:,} of them empty" if empty else ""
    left.set_title(f"{len(sizes):,} clients{note}, {int(sizes.sum()):,} examples")
    left.margins(y=0.12)
    left.set_xlabel("training examples of a client")
    left.set_ylabel("clients")
    left.yaxis.set_major_locator(_style.ticks(integer=True))
    _style.horizontal_grid(left)
    _lorenz(right, sizes)
    return figure


@_style.styled
def client_results(runs: Runs, metric: str = "accuracy", *, where: str = "eval") -> Figure:
    """A metric over clients, after the last evaluation.

    One run without a sweep: a histogram with the mean and the worst tenth of the clients, and the metric against the
    client's training examples where the clients that were evaluated are those that trained. Several: the share of
    clients at or below every value, one line each. Seeds count equally; clients without examples are left out.

    Args:
      runs: run folders with ``eval/<metric>`` in ``clients.npz``.
      metric: a metric of the task.
      where: the evaluated set: ``"eval"``, ``"unseen"``.

    Raises:
      ValueError: a folder has no such array, or no client with a value.

    Example:
      ``client_results(["runs/fedavg", "runs/scaffold"], "accuracy")``
    """
    listed = read_runs(runs)
    name = f"{where}/{metric}"
    lines = groups(listed)
    values = [_values(group, name) for group in lines]
    label = f"{metric.replace('_', ' ')} of a client ({where})"
    if len(lines) > 1:
        figure, (axes,) = _style.panels(1, height=4.2)
        _shares(axes, lines, values, label)
        _style.legend_below(
            figure, [Line2D([], [], **group.style) for group in lines], [group.label for group in lines]
        )
        return figure
    (found,), run = values, listed[0]
    sizes = run.clients.get("train_examples")
    beside = sizes is not None and f"{where}_ids" not in run.clients and len(sizes) == found.shape[1]
    figure, axes = _style.panels(2 if beside else 1)
    _histogram(axes[0], found, label, high_is_worse(metric))
    if beside:
        _against_size(axes[1], np.asarray(sizes), found, label)
    return figure


def high_is_worse(metric: str) -> bool:
    """Whether a metric is worse when it is high, by the last part of its name, as ``Evaluation`` has it."""
    return metric == "loss" or metric.endswith(("error", "perplexity"))


def _values(group: Group, name: str) -> np.ndarray:
    """``f64[seeds, clients]`` of a group."""
    array = np.atleast_2d(np.asarray(group.run.client_array(name), dtype=np.float64))
    if len(array) != len(group.run.replicas):
        raise ValueError(
            f"{name} in clients.npz of {group.run.path} has {len(array)} rows, expected one for each of the "
            f"{len(group.run.replicas)} replicas in metrics.jsonl; the files are of different runs."
        )
    array = array[group.places]
    if not np.isfinite(array).any():
        raise ValueError(f"{name} of {group.run.path} has no finite value: no client was evaluated.")
    return array


def _mark(axes: Axes, x: float, text: str, colour: str = _style.RED, height: float = 1.0) -> None:
    """A vertical line with words beside its upper end, on the side where there is more room."""
    axes.axvline(x, color=colour, linewidth=1.4)
    room_left = axes.transLimits.transform((x, 0))[0] > 0.45 if axes.get_xscale() == "linear" else False
    side, shift = ("right", -4) if room_left else ("left", 4)
    axes.annotate(
        text, (x, height), xycoords=("data", "axes fraction"), xytext=(shift, -2), textcoords="offset points",
        ha=side, va="top", color=colour, fontsize=9,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
    )  # fmt: skip


def _integer_edges(sizes: np.ndarray) -> np.ndarray:
    """Bin edges between whole numbers, all bins of one whole width: no bin can hold more numbers than another."""
    width = max(1, int(np.ceil((int(sizes.max()) + 1) / 30)))
    return np.arange(0, int(sizes.max()) + width + 1, width) - 0.5


def _log_edges(sizes: np.ndarray) -> np.ndarray:
    """Bin edges in equal ratios, so that all bars are equally wide on a logarithmic axis.

    Small whole numbers lie far apart there: a bin for 1 alone is as wide as one for 2 and 3. So the ratio is at most 30 to
    the range, and such that the first bin holds a few whole numbers, or else is from 1 to 2.
    """
    low, high = int(sizes.min()), int(sizes.max())
    ratio = max((high / low) ** (1 / 30), 1 + min(1, 3 / low))
    bins = int(np.log(high / low) / np.log(ratio)) + 1
    # Rounded: 5 * 1.6 is 8, and an 8 belongs to the bin that begins there.
    edges = np.round(low * ratio ** np.arange(bins + 1), 9)
    return edges if edges[-1] > high else np.append(edges, edges[-1] * ratio)


def _log_axis(axes: Axes) -> None:
    """A logarithmic axis of numbers of examples, which are whole."""
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _lorenz(axes: Axes, sizes: np.ndarray) -> None:
    """The share of all examples that the largest clients hold."""
    ordered = np.sort(sizes)[::-1]
    total = max(1, int(ordered.sum()))
    x = np.linspace(0, 100, len(ordered) + 1)
    y = 100 * np.concatenate([[0], np.cumsum(ordered)]) / total
    axes.plot([0, 100], [0, 100], color=_style.GREY, linewidth=1, linestyle=(0, (4, 3)))
    axes.annotate("all equal", (62, 60), color=_style.GREY, fontsize=9, ha="left", va="top")
    axes.plot(x, y, color=_style.BLUE)
    tenth = float(np.interp(10, x, y))
    axes.plot([10], [tenth], "o", color=_style.RED, markersize=5)
    # Below the diagonal, where no line runs.
    axes.annotate(
        f"the largest tenth holds {tenth:.0f} %", (10, tenth), xytext=(30, 9), textcoords="data", color=_style.RED,
        fontsize=9, va="center", arrowprops={"arrowstyle": "-", "color": _style.RED, "linewidth": 0.8, "shrinkB": 4},
    )  # fmt: skip
    axes.set_xlabel("clients, largest first (%)")
    axes.set_ylabel("share of the examples (%)")
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 102)
    axes.set_title("How unequal")
    _style.horizontal_grid(axes)


def _histogram(axes: Axes, values: np.ndarray, label: str, high_is_bad: bool) -> None:
    finite = values[np.isfinite(values)]
    low, high = (0.0, 1.0) if finite.min() >= 0 and finite.max() <= 1 else (finite.min(), finite.max())
    high = high if high > low else low + 1.0
    axes.hist(
        finite, bins=np.linspace(low, high, 26).tolist(), weights=np.full(finite.shape, 1 / len(values)),
        color=_style.BLUE, edgecolor="white", linewidth=0.6,
    )  # fmt: skip
    means, worst = zip(*(_summary(row, high_is_bad) for row in values if np.isfinite(row).any()), strict=True)
    axes.margins(y=0.25)
    _mark(axes, float(np.mean(means)), f"mean {np.mean(means):.3g}")
    _mark(axes, float(np.mean(worst)), f"worst tenth {np.mean(worst):.3g}", _style.PURPLE, height=0.9)
    clients = int(np.isfinite(values).any(axis=0).sum())
    seeds = f", mean over {len(values)} seeds" if len(values) > 1 else ""
    axes.set_title(f"{clients:,} clients{seeds}")
    axes.set_xlabel(label)
    axes.set_ylabel("clients")
    _style.horizontal_grid(axes)


def _summary(row: np.ndarray, high_is_bad: bool) -> tuple[float, float]:
    """Mean, and mean of the worst tenth (at least one client), as ``Evaluation`` computes them."""
    ordered = np.sort(row[np.isfinite(row)])
    ordered = ordered[::-1] if high_is_bad else ordered
    return float(ordered.mean()), float(ordered[: max(1, -(-len(ordered) // 10))].mean())


def _against_size(axes: Axes, sizes: np.ndarray, values: np.ndarray, label: str) -> None:
    x = np.broadcast_to(sizes, values.shape)
    many = values.size > 400
    axes.plot(
        x.ravel(), values.ravel(), "o", color=_style.BLUE, markersize=2.5 if many else 4, alpha=0.25 if many else 0.5,
        markeredgewidth=0,
    )  # fmt: skip
    positive = sizes[sizes > 0]
    if positive.size and positive.max() > 100 * positive.min():
        _log_axis(axes)
    axes.set_title("Against the client's data")
    axes.set_xlabel("training examples of a client")
    axes.set_ylabel(label)
    _style.horizontal_grid(axes)


def _shares(axes: Axes, lines: list[Group], values: list[np.ndarray], label: str) -> None:
    """Empirical distribution functions: they can lie over one another where histograms cannot."""
    for group, found in zip(lines, values, strict=True):
        finite = np.sort(found[np.isfinite(found)])
        shares = 100 * np.arange(1, len(finite) + 1) / len(finite)
        axes.step(
            np.concatenate([finite[:1], finite]), np.concatenate([[0], shares]), where="post", **group.style
        )
    axes.set_xlabel(label)
    axes.set_ylabel("clients at or below (%)")
    axes.set_ylim(0, 102)
    _style.horizontal_grid(axes)
