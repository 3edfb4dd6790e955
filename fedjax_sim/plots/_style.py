"""One look for all pictures: colours that colour-blind readers can tell apart, quiet axes, nothing global."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

P = ParamSpec("P")

BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
INK, GREY, LIGHT = "#222222", "#6E6E6E", "#D9D9D9"
COLOURS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, "#000000")
"""Okabe and Ito's palette without its yellow, which is lost on white; vermilion second, the strongest contrast."""
DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (5, 2, 1, 2)))

WIDE, NARROW, ROW, DPI = 9.6, 6.4, 3.5, 150
"""Widths of a figure with several panels and with one, height of a row of panels, all in inches; dots per inch."""

RC: dict[Any, Any] = {  # matplotlib types the keys as literals
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same picture everywhere
    "font.size": 10,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.labelsize": 10,
    "axes.labelcolor": INK,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": False,
    "axes.axisbelow": True,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "text.color": INK,
    "text.parse_math": False,  # a dollar sign in the name of a run is a dollar sign
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "grid.color": "#EAEAEA",
    "grid.linewidth": 0.8,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handlelength": 1.8,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "white",
    "figure.dpi": DPI,
    "figure.autolayout": False,
    "figure.constrained_layout.use": False,  # `panels` asks for it
    "savefig.dpi": DPI,
    "svg.fonttype": "path",
    "svg.hashsalt": "fedjax_sim",  # the same picture is the same file
}


def styled(function: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draws with the style; the caller's own settings come back afterwards."""

    @functools.wraps(function)
    def draw(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with mpl.rc_context():
            mpl.rcdefaults()  # a user's matplotlibrc must not mix with ours
            mpl.rcParams.update(RC)  # type: ignore[arg-type]
            figure = function(*args, **kwargs)
            figure.draw_without_rendering()  # ticks are made by the first drawing, in the style of that moment
            return figure

    return draw


def panels(count: int, *, height: float = ROW) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, left to right and down: three to a row where that leaves no hole, else two."""
    columns = 3 if count % 3 == 0 else min(count, 2)
    rows = -(-count // columns)
    figure = Figure(figsize=(WIDE if columns > 1 else NARROW, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.remove()
    return figure, axes[:count]


def ticks(**options: Any) -> MaxNLocator:
    """Ticks at round numbers: steps of 1, 2, 2.5 and 5 and their decades."""
    return MaxNLocator(**{"nbins": 6, "steps": [1, 2, 2.5, 5, 10], **options})


def horizontal_grid(axes: Axes) -> None:
    axes.grid(axis="y")


def line_styles(count: int) -> list[dict[str, Any]]:
    """Colour and dashes of every line; they stay different beyond the palette's end."""
    return [
        {"color": COLOURS[i % len(COLOURS)], "linestyle": DASHES[(i // len(COLOURS)) % len(DASHES)]}
        for i in range(count)
    ]


def ordered_styles(count: int) -> list[dict[str, Any]]:
    """Colours from dark to light, for lines whose labels are numbers in order."""
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.82, count))
    return [{"color": tuple(colour), "linestyle": "-"} for colour in colours]


def shortened(name: str) -> str:
    """A client's name, where ticks have little room."""
    return name if len(name) <= 12 else f"{name[:11]}…"


def plain(label: str) -> str:
    """A label that legends do not hide: matplotlib leaves out those that begin with an underscore."""
    label = label if len(label) <= 60 else f"{label[:57]}..."
    return f" {label}" if label.startswith("_") else label


def legend_below(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """One legend for all panels, below them, in as many columns as fit."""
    if not handles:
        return
    # Inches of an entry: its handle, and its letters at the legend's size.
    widths = [0.5 + 0.065 * len(label) for label in labels]
    space = figure.get_size_inches()[0]
    columns = len(labels) if sum(widths) < space else max(1, int(space / max(widths)))
    figure.legend(handles, [plain(label) for label in labels], loc="outside lower center", ncols=columns)


def describe(metric: str) -> str:
    """An axis label for a metric.

    Example:
      >>> from fedjax_sim.plots._style import describe
      >>> describe("loss"), describe("eval/accuracy"), describe("eval/accuracy/worst_decile")
      ('loss (training)', 'accuracy (eval)', 'accuracy (eval)\\nworst tenth of clients')
    """
    over = {
        "worst_decile": "worst tenth of clients",
        "mean": "mean over clients",
        "weighted": "weighted over clients",
    }
    units = {
        "bytes_up": "sent by clients in a round (bytes)",
        "bytes_down": "sent to clients in a round (bytes)",
        "simulated_seconds": "simulated time of a round (s)",
    }
    if metric in units:
        return units[metric]
    where, _, rest = metric.partition("/")
    if not rest:
        return f"{metric.replace('_', ' ')} (training)"
    name, _, kind = rest.partition("/")
    label = f"{name.replace('_', ' ')} ({where})"
    return f"{label}\n{over.get(kind, kind.replace('_', ' '))}" if kind else label
