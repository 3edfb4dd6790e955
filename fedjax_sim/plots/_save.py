"""All pictures that the data of a run gives, and writing them into its folder."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

from fedjax_sim.plots import _style
from fedjax_sim.plots._clients import client_results, client_sizes
from fedjax_sim.plots._curves import learning_curves
from fedjax_sim.plots._groups import Runs, read_runs
from fedjax_sim.plots._participation import participation
from fedjax_sim.plots._partition import partition
from fedjax_sim.plots._read import RunData, read_run

Draw = Callable[[], Figure]


def figures(runs: Runs) -> Iterator[tuple[str, str, Figure]]:
    """Every picture that the folders have the data for: file name without ending, caption, figure.

    Args:
      runs: one folder, or several to compare; the data and who took part are shown for the first.

    Raises:
      ValueError: a run without a row, or a broken file.

    Example:
      ``for name, caption, figure in figures("runs/a"): figure.savefig(f"{name}.png")``
    """
    listed = read_runs(runs)
    for name, caption, draw in [*_curves(listed), *_clients(listed)]:
        yield name, caption, draw()


def save_all(folder: str | Path | RunData) -> list[Path]:
    """Writes the pictures of a run into its folder ``plots``, as PNG of 150 dots per inch; older ones are replaced.

    Args:
      folder: a run folder.

    Returns:
      The files that were written.

    Raises:
      FileNotFoundError: not a run folder.
      ValueError: a run without a row, or a broken file.

    Example:
      ``save_all("runs/a")``
    """
    run = read_run(folder)
    written = []
    for name, _, figure in figures(run):
        path = run.path / "plots" / f"{name}.png"
        path.parent.mkdir(exist_ok=True)
        _replace(path, encode(figure, "png"))
        written.append(path)
    return written


def _replace(path: Path, content: bytes) -> None:
    """Writes a file at once: where the disk is full, the old one stays and no half of a new one."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def encode(figure: Figure, kind: str) -> bytes:
    """The picture as ``"png"`` or ``"svg"``; the same picture is the same bytes."""
    out = io.BytesIO()
    layout = figure.get_layout_engine()
    with mpl.rc_context(_style.RC):
        figure.set_layout_engine(
            None
        )  # `styled` gave everything its place; finding it again takes as long as drawing
        metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
        figure.savefig(out, format=kind, dpi=_style.DPI, metadata=metadata)
    figure.set_layout_engine(layout)
    return out.getvalue()


def evaluated_sets(run: RunData) -> list[str]:
    """``eval``, ``unseen``, ...: what the model was evaluated on, in the order of the rows."""
    return list(dict.fromkeys(name.partition("/")[0] for name in run.metrics if "/" in name))


def _shared(runs: list[RunData]) -> list[str]:
    """Metrics that all runs have, in the first one's order."""
    return [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]


def main_metrics(runs: list[RunData]) -> list[str]:
    """What one wants to see first: the training loss, and what was evaluated, over all examples."""
    shared = _shared(runs)
    training = [name for name in ("loss", "accuracy") if name in shared]
    # The loss beside the evaluated one, the accuracy beside the evaluated one: two columns of the same height.
    evaluated = [name for name in shared if name.count("/") == 1]
    ordered = sorted(evaluated, key=lambda name: (name.partition("/")[0] != "eval", "loss" not in name))
    return [*training[:1], *ordered] if ordered else training


def _curves(runs: list[RunData]) -> Iterator[tuple[str, str, Draw]]:
    names = main_metrics(runs)
    if names:
        yield "learning_curves", "Learning curves.", functools.partial(learning_curves, runs, names)
    shared = _shared(runs)
    for where in evaluated_sets(runs[0]):
        worst = [name for name in shared if name.startswith(f"{where}/") and name.endswith("/worst_decile")]
        if worst:
            yield (
                f"worst_clients_{where}", "The worst tenth of the clients.",
                functools.partial(learning_curves, runs, worst),
            )  # fmt: skip
    best = next((name for name in names if name.endswith("accuracy")), names[-1] if names else None)
    if best is None:
        return
    for x, what, needed in (
        ("bytes", "traffic", {"bytes_up", "bytes_down"}),
        ("time", "time", {"simulated_seconds"}),
    ):
        if all(needed & set(run.metrics) for run in runs):
            yield (
                f"against_{what}",
                f"Against {what}: {_style.describe(best)}.",
                functools.partial(learning_curves, runs, best, x=x),
            )


def _clients(runs: list[RunData]) -> Iterator[tuple[str, str, Draw]]:
    first = runs[0].clients
    names = [name for name in first if "/" in name and all(name in run.clients for run in runs)]
    for name in names:
        where, _, metric = name.partition("/")
        yield (
            f"clients_{where}_{metric}".replace("/", "_"), f"Clients by {metric} ({where}), after the last evaluation.",
            functools.partial(client_results, runs, metric, where=where),
        )  # fmt: skip
    if first.get("train_examples") is not None and len(first["train_examples"]):
        yield "client_sizes", "Training examples of the clients.", functools.partial(client_sizes, runs[0])
    if "labels" in first:
        yield "partition", "How the classes are spread over clients.", functools.partial(partition, runs[0])
    if "participation" in first:
        yield "participation", "Who took part.", functools.partial(participation, runs[0])
