"""Which client has how much of which class."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedjax_sim.plots import _style
from fedjax_sim.plots._read import RunData, read_run

BUBBLES = 40
"""Up to so many clients have a bubble per class; more make a map, whose columns can be as thin as a pixel."""


@_style.styled
def partition(run: RunData | str) -> Figure:
    """The labels that every client has.

    Few clients: a bubble per client and class, its area the number of examples. Many: a map of every client's shares,
    clients in the order of their commonest class, with their sizes above.

    Args:
      run: a run folder with ``labels`` (``int[clients, classes]``) in ``clients.npz``.

    Raises:
      ValueError: the folder has no such array, or it is no table with clients and classes.

    Example:
      ``partition("runs/a").savefig("partition.png")``
    """
    data = read_run(run)
    labels = np.asarray(data.client_array("labels"))
    if labels.ndim != 2 or not labels.size:
        raise ValueError(
            f"labels of {data.path} has the shape {list(labels.shape)}, expected [clients, classes], both at least 1."
        )
    if len(labels) <= BUBBLES and labels.shape[1] <= BUBBLES:
        ids = [str(name) for name in data.clients.get("ids", np.arange(len(labels)))]
        return _bubbles(labels, ids)
    return _map(labels)


def _bubbles(labels: np.ndarray, ids: list[str]) -> Figure:
    clients, classes = labels.shape
    step = min(0.34, (_style.WIDE - 1.2) / clients)  # inches between two bubbles
    width = max(_style.NARROW, step * clients + 1.2)
    # The cell is a square, so that the largest bubble fills it both ways.
    height = max(2.4, 0.34 * classes + 1.3)
    figure, (axes,) = _style.panels(1)
    figure.set_size_inches(width, height)
    x, y = np.nonzero(labels)
    largest = max(1, int(labels.max()))
    diameter = 72 * min(step, 0.34) * 0.98  # points
    axes.scatter(x, y, s=(diameter**2) * labels[x, y] / largest, color=_style.BLUE, alpha=0.85, linewidth=0)
    axes.set_xlim(-0.7, clients - 0.3)
    axes.set_ylim(-0.7, classes - 0.3)
    short = len(ids) == clients and max(map(len, ids)) <= 3
    if short:
        axes.set_xticks(range(clients), ids)
    elif len(ids) == clients and clients <= 12:
        cut = [name if len(name) <= 12 else f"{name[:11]}…" for name in ids]
        axes.set_xticks(range(clients), cut, rotation=30, ha="right", rotation_mode="anchor")
    else:
        axes.xaxis.set_major_locator(_style.ticks(integer=True))
    _class_ticks(axes, classes)
    axes.tick_params(length=0)
    axes.grid(axis="both", color="#F0F0F0")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("client")
    axes.set_ylabel("class")
    axes.set_title(f"Training examples by client and class; the largest bubble is {largest:,}")
    return figure


def _map(labels: np.ndarray) -> Figure:
    clients, classes = labels.shape
    sizes = labels.sum(axis=1)
    shares = labels / np.maximum(sizes, 1)[:, None]
    # By commonest class, then by how common; clients without examples come last.
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1), sizes == 0))
    figure = Figure(figsize=(_style.WIDE, min(6.5, max(3.6, 0.2 * classes + 1.9))), layout="constrained")
    above, axes = figure.subplots(2, 1, sharex=True, height_ratios=[1, 4])
    edges = np.arange(clients + 1) - 0.5
    above.stairs(sizes[order], edges, fill=True, color=_style.GREY, linewidth=0.4)
    above.set_ylabel("examples")
    above.yaxis.set_major_locator(_style.ticks(integer=True, nbins=3))
    above.tick_params(bottom=False, labelbottom=False)
    above.set_title(f"{clients:,} clients, {int(sizes.sum()):,} training examples")
    image = axes.imshow(
        shares[order].T, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=max(1e-9, float(shares.max())),
        interpolation_stage="data", extent=(-0.5, clients - 0.5, -0.5, classes - 0.5),
    )  # fmt: skip
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=30, fraction=0.03)
    bar.set_label("share of the client")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    _class_ticks(axes, classes)
    axes.set_xlim(-0.5, clients - 0.5)
    axes.set_xlabel("clients, by their commonest class")
    axes.set_ylabel("class")
    return figure


def _class_ticks(axes: Axes, classes: int) -> None:
    axes.set_yticks(range(0, classes, max(1, -(-classes // 20))))
