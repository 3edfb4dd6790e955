"""Which client has how much of which class, and how far that is from the whole."""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fedjax_sim.data._label_counts import divergences, mean_divergence
from fedjax_sim.plots import _style
from fedjax_sim.plots._read import RunData, read_run

BUBBLES = 40
"""Up to so many clients have a bubble per class; more make a map, whose columns can be as thin as a pixel."""
COLUMNS = 1200
"""Of a map, in which a column is then a pixel wide; more clients share theirs with their neighbours."""

EDGES = 20
"""Up to so many edge servers have their names in the picture."""


@_style.styled
def partition(run: RunData | str, *, population: int | None = None) -> Figure:
    """The labels that every client has, how many examples, and how far its labels are from all labels.

    Few clients: a bubble per client and class, its area the number of examples, up to the size that the title names: a client
    that has far more than the others would make specks of theirs. Many: a map of every client's shares, clients in the
    order of their commonest class, those without examples left out. Above stand the clients' sizes, and the total variation distance between
    the client's labels and those of all clients together: 0 where they are alike, towards 1 where nobody else has them.
    Clients of edge servers stand edge by edge, with a line between two edges.

    Args:
      run: a run folder with ``labels`` (``int[clients, classes]``) in ``clients.npz``, and ``edges`` (``int[clients]``)
        where there are any.
      population: of how many clients these are a sample, where they are one: the picture then says so.

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
    sample = population if population is not None and population > len(labels) else None
    edges = data.clients.get("edges")
    if edges is not None and edges.shape != (len(labels),):
        raise ValueError(
            f"edges of {data.path} has the shape {list(edges.shape)}, expected [{len(labels)}], one for each row of labels."
        )
    if len(labels) <= BUBBLES and labels.shape[1] <= BUBBLES:
        ids = np.asarray([str(name) for name in data.clients.get("ids", np.arange(len(labels)))])
        if edges is not None:
            order = np.argsort(edges, kind="stable")
            labels, edges = labels[order], edges[order]
            ids = ids[order] if len(ids) == len(order) else ids
        return _bubbles(labels, ids.tolist(), sample, edges)
    return _map(labels, sample, edges)


def _bubbles(labels: np.ndarray, ids: list[str], sample: int | None, edges: np.ndarray | None) -> Figure:
    clients, classes = labels.shape
    step = min(0.34, (_style.WIDE - 1.2) / clients)  # inches between two bubbles
    # The cell is a square, so that the largest bubble fills it both ways.
    width, height = max(_style.NARROW, step * clients + 1.2), max(2.4, 0.34 * classes + 1.3)
    figure, axes = _panels(labels, np.arange(clients), sample, width, height, edges)
    x, y = np.nonzero(labels)
    largest = max(1, int(labels.max()))
    cap = _cap(labels[x, y])
    diameter = 72 * min(step, 0.34) * 0.98  # points
    beyond = labels[x, y] > cap
    axes.scatter(
        x, y, s=diameter**2 * np.minimum(labels[x, y] / cap, 1), facecolor=_style.BLUE, alpha=0.85,
        edgecolor=_style.INK, linewidth=np.where(beyond, 1.2, 0),
    )  # fmt: skip
    axes.set_xlim(-0.7, clients - 0.3)
    axes.set_ylim(-0.7, classes - 0.3)
    short = len(ids) == clients and max(map(len, ids)) <= 3
    if short:
        axes.set_xticks(range(clients), ids)
    elif len(ids) == clients and clients <= 12:
        cut = [_style.shortened(name) for name in ids]
        axes.set_xticks(range(clients), cut, rotation=30, ha="right", rotation_mode="anchor")
    else:
        axes.xaxis.set_major_locator(_style.ticks(integer=True))
    axes.tick_params(length=0)
    axes.grid(axis="both", color="#F0F0F0")
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.set_xlabel("client")
    rim = f" or more, up to {largest:,} where it has a rim" if beyond.any() else ""
    axes.set_title(f"Examples of each class; the largest bubble is {cap:,}{rim}")
    return figure


def _cap(counts: np.ndarray) -> int:
    """Examples of the largest bubble: all there are, or fewer where a handful of counts would make specks of the others."""
    largest = int(counts.max(initial=1))
    usual = 4 * float(np.quantile(counts, 0.9)) if counts.size else 1.0
    return largest if largest <= 2 * usual else max(1, round(usual))


def _map(labels: np.ndarray, sample: int | None, edges: np.ndarray | None) -> Figure:
    sizes = labels.sum(axis=1)
    empty = 0
    if sizes.any():  # clients without examples would only leave the panels blank
        empty = int((sizes == 0).sum())
        edges = None if edges is None else edges[sizes > 0]
        labels, sizes = labels[sizes > 0], sizes[sizes > 0]
    clients, classes = labels.shape
    shares = labels / np.maximum(sizes, 1)[:, None]
    # By edge, by commonest class, then by how common.
    edge = np.zeros(clients, np.int64) if edges is None else edges
    order = np.lexsort((-shares.max(axis=1), shares.argmax(axis=1), edge))
    # A few small clients have shares that nobody else comes near: they would leave the rest pale.
    largest = float(shares.max())
    ceiling = max(1e-9, min(largest, 1.25 * float(np.quantile(shares, 0.995))))
    height = min(5.2, max(2.8, 0.2 * classes + 1.1))
    ordered = None if edges is None else edges[order]
    figure, axes = _panels(labels, order, sample, _style.WIDE, height, ordered, empty)
    image = axes.imshow(
        _columns(shares[order]).T, aspect="auto", origin="lower", cmap="Blues", vmin=0, vmax=ceiling,
        interpolation="nearest", extent=(-0.5, clients - 0.5, -0.5, classes - 0.5),
    )  # fmt: skip
    bar = figure.colorbar(
        image, ax=axes, pad=0.01, aspect=30, fraction=0.03, extend="max" if largest > ceiling else "neither"
    )
    bar.set_label("share of the client")
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    axes.set_xlim(-0.5, clients - 0.5)
    axes.set_xlabel(f"clients, by {'' if edges is None else 'edge and '}their commonest class")
    axes.set_title("Share of each class")
    return figure


def _columns(shares: np.ndarray) -> np.ndarray:
    """Shares ``[clients, classes]`` as columns that a picture has room for: the mean of neighbours where they are too many."""
    if len(shares) <= COLUMNS:
        return shares
    starts = np.arange(COLUMNS) * len(shares) // COLUMNS
    return np.add.reduceat(shares, starts) / np.diff(starts, append=len(shares))[:, None]


def _panels(
    labels: np.ndarray,
    order: np.ndarray,
    sample: int | None,
    width: float,
    height: float,
    edges: np.ndarray | None,
    empty: int = 0,
) -> tuple[Figure, Axes]:
    """Sizes and divergences of clients in an order, and below them the axes for their classes, ``height`` inches high.

    ``edges`` are those of the clients in this order; ``empty`` clients without examples are left out.
    """
    sizes, clients = labels.sum(axis=1), len(labels)
    above = 1.0  # inches
    figure = Figure(figsize=(width, height + 2 * above), layout="constrained")
    rows = figure.subplots(3, 1, sharex=True, height_ratios=[above, above, height])
    whole = "all labels" if sample is None else "the sample's labels"
    mean = f", weighted mean {mean_divergence(labels):.2f}" if sizes.any() else ""
    for axes, values, title in (
        (rows[0], sizes, f"{_clients(clients, sample, empty)}, {int(sizes.sum()):,} training examples"),
        (rows[1], divergences(labels), f"Divergence of clients from {whole}{mean}"),
    ):
        if clients <= BUBBLES:
            axes.bar(np.arange(clients), values[order], width=0.6, color=_style.GREY)
        else:
            axes.stairs(
                values[order], np.arange(clients + 1) - 0.5, fill=True, color=_style.GREY, linewidth=0.4
            )
        axes.set_title(title)
        axes.tick_params(bottom=False, labelbottom=False)
    rows[0].set_ylabel("examples")
    rows[0].set_ylim(0, max(1.0, 1.05 * sizes.max()))
    rows[0].yaxis.set_major_locator(_style.ticks(integer=True, nbins=4))
    rows[1].set_ylabel("divergence")
    rows[1].set_ylim(0, 1)
    rows[1].set_yticks([0, 0.5, 1])
    rows[2].set_ylabel("class")
    _class_ticks(rows[2], labels.shape[1])
    if edges is not None:
        _draw_edges(list(rows), edges)
    return figure, rows[2]


def _draw_edges(rows: list[Axes], edges: np.ndarray) -> None:
    """Lines between the clients of two edges, and the edges' names above their clients where there is room."""
    starts = np.flatnonzero(np.diff(edges, prepend=edges[0] - 1))
    ends = np.append(starts[1:], len(edges))
    for axes in rows:
        for start in starts[1:] if len(starts) <= COLUMNS // 10 else ():
            axes.axvline(start - 0.5, color=_style.INK, linewidth=0.8)
    if len(starts) <= EDGES:
        rows[0].set_ylim(0, 1.35 * rows[0].get_ylim()[1])
        for place, (start, end) in enumerate(zip(starts, ends, strict=True)):
            rows[0].text(
                (start + end - 1) / 2, 0.97, f"{'edge ' if place == 0 else ''}{edges[start]}", fontsize=8,
                transform=rows[0].get_xaxis_transform(), ha="center", va="top", color=_style.INK,
            )  # fmt: skip


def _clients(shown: int, sample: int | None, empty: int) -> str:
    count = shown + empty
    left_out = f" ({empty:,} without examples are left out)" if empty else ""
    if sample is None and count == 1:
        return "1 client"
    text = f"{count:,} clients" if sample is None else f"A sample: {count:,} of {sample:,} clients"
    return text + left_out


def _class_ticks(axes: Axes, classes: int) -> None:
    axes.set_yticks(range(0, classes, max(1, -(-classes // 20))))
