"""Who took part, how often, when."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedjax_sim.plots import _style
from fedjax_sim.plots._read import RunData, read_run

RASTER_CLIENTS, RASTER_ROUNDS = 200, 600
"""The largest raster of rounds by clients whose marks can be told apart."""


@_style.styled
def participation(run: RunData | str) -> Figure:
    """How often the clients took part; up to 200 clients and 600 rounds, also when.

    The raster shows the first replica. Without it, clients stand in the order of their counts, of every replica by
    itself, and the line is the mean over replicas.

    Args:
      run: a run folder with ``participation``, or ``cohort_rounds`` and ``cohort_clients``, in ``clients.npz``.

    Raises:
      ValueError: the folder has neither, or they name clients or rounds below 0.

    Example:
      ``participation("runs/a").savefig("participation.png")``
    """
    data = read_run(run)
    raster = _raster(data)
    if raster is None:
        counts = np.atleast_2d(np.asarray(data.client_array("participation")))
        figure, (axes,) = _style.panels(1)
        figure.set_size_inches(_style.WIDE, _style.ROW)
        _ordered(axes, counts)
        return figure
    clients = len(raster)
    figure = Figure(
        figsize=(_style.WIDE, float(np.clip(0.06 * clients + 1.6, 3.0, 7.0))), layout="constrained"
    )
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=[3.2, 1])
    rounds = raster.shape[1]
    left.imshow(
        raster, aspect="auto", origin="upper", cmap="Blues", vmin=0, vmax=1.25, interpolation_stage="data",
        extent=(0.5, rounds + 0.5, clients - 0.5, -0.5),
    )  # fmt: skip
    left.set_xlabel("round")
    left.set_ylabel("client")
    left.set_title("When clients took part" + (" (first replica)" if len(data.replicas) > 1 else ""))
    left.xaxis.set_major_locator(_style.ticks(integer=True))
    left.yaxis.set_major_locator(_style.ticks(integer=True))
    ids = np.asarray(data.clients.get("ids", np.arange(clients))).tolist()
    left.yaxis.set_major_formatter(
        lambda at, _: _style.shortened(str(ids[int(at)])) if 0 <= at < len(ids) else ""
    )
    counts = raster.sum(axis=1)
    right.barh(np.arange(clients), counts, height=0.8 if clients <= 100 else 1.0, color=_style.BLUE)
    right.axvline(counts.mean(), color=_style.RED, linewidth=1.4)
    right.set_title(f"How often; mean {counts.mean():.3g}")
    right.set_xlabel("rounds")
    right.tick_params(left=False, labelleft=False)
    right.spines["left"].set_visible(False)
    right.xaxis.set_major_locator(_style.ticks(integer=True, nbins=5))
    return figure


def _raster(data: RunData) -> np.ndarray | None:
    """``f64[clients, rounds]`` of zeros and ones; ``None`` without cohorts or where it would be too fine to see."""
    if "cohort_rounds" not in data.clients or "cohort_clients" not in data.clients:
        return None
    rounds, clients = (np.asarray(data.clients[name]) for name in ("cohort_rounds", "cohort_clients"))
    if rounds.shape != clients.shape or min(rounds.min(initial=0), clients.min(initial=0)) < 0:
        raise ValueError(
            f"cohort_rounds {list(rounds.shape)} and cohort_clients {list(clients.shape)} of {data.path} are not lists "
            "of one length with numbers of at least 0."
        )
    population = max(len(data.clients.get("ids", ())), int(clients.max(initial=0)) + 1)
    done = max(data.rounds, int(rounds.max(initial=0)) + 1)
    if population > RASTER_CLIENTS or done > RASTER_ROUNDS:
        if "participation" in data.clients:
            return None
        raise ValueError(
            f"{data.path} has {population} clients and {done} rounds, too many for a raster, and no participation in "
            "clients.npz to show instead."
        )
    raster = np.zeros((population, done))
    raster[clients, rounds] = 1.0
    return raster


def _ordered(axes: Axes, counts: np.ndarray) -> None:
    ordered = -np.sort(-counts, axis=1)
    mean = ordered.mean(axis=0)
    axes.stairs(mean, np.arange(len(mean) + 1), fill=True, color=_style.BLUE, alpha=0.85, linewidth=0)
    axes.axhline(counts.mean(), color=_style.RED, linewidth=1.4)
    axes.annotate(
        f"mean {counts.mean():.3g}", (len(mean), counts.mean()), xytext=(-2, 4), textcoords="offset points",
        ha="right", color=_style.RED, fontsize=9,
    )  # fmt: skip
    never = float((counts == 0).mean(axis=1).mean())
    over = f"mean over {len(counts)} replicas; " if len(counts) > 1 else ""
    axes.set_title(f"How often clients took part; {over}{100 * never:.3g} % never did")
    axes.set_xlim(0, len(mean))
    axes.set_ylim(0, max(1.0, float(mean.max())) * 1.08)
    axes.set_xlabel("clients, most frequent first")
    axes.set_ylabel("rounds of a client")
    axes.yaxis.set_major_locator(_style.ticks(integer=True))
    _style.horizontal_grid(axes)
