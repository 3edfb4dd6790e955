"""Tables of who holds what: a row for each client, and one for each edge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from rich import box
from rich.table import Table

from fedjax_sim.data._label_counts import divergences

WIDTH = 78
"""Characters of a line that every terminal has room for; classes that do not fit are listed, the commonest first."""
_LISTED = 4


def holdings(clients: Mapping[str, np.ndarray], shown: int) -> list[Table]:
    """Tables of the first clients, and of the first edges where there are any.

    Args:
      clients: arrays as ``experiment.about_clients`` has them.
      shown: clients, and edges, that have a row; no table for 0.
    """
    if shown < 1:
        return []
    ids, sizes = clients["ids"], np.asarray(clients["train_examples"])
    labels, edges = clients.get("labels"), clients.get("edges")
    if edges is None:
        return [_table("client", ids.tolist(), [], sizes, labels, shown)]
    names = np.unique(edges)
    place = np.searchsorted(names, edges)
    sums = np.zeros((len(names), 0 if labels is None else labels.shape[1]), np.int64)
    if labels is not None:
        np.add.at(sums, place, labels)
    about = [("clients", np.bincount(place).tolist())]
    of_edges = np.bincount(place, sizes).astype(np.int64)
    return [
        _table("edge", names.tolist(), about, of_edges, None if labels is None else sums, shown),
        _table("client", ids.tolist(), [("edge", edges.tolist())], sizes, labels, shown),
    ]


def _table(
    what: str,
    names: Sequence[int | str],
    about: list[tuple[str, list]],
    sizes: np.ndarray,
    labels: np.ndarray | None,
    shown: int,
) -> Table:
    """One kind of row: its name, what is said about it, examples, examples of each class, and the divergence of its labels."""
    rows = range(min(shown, len(names)))
    columns = [(what, [_short(str(names[row])) for row in rows])]
    columns += [(title, [str(values[row]) for row in rows]) for title, values in about]
    columns.append(("examples", [f"{sizes[row]}" for row in rows]))
    classes = []
    if labels is not None:
        columns.append(("divergence", [f"{value:.2f}" for value in divergences(labels)[: len(rows)]]))
        classes = [(str(c), [f"{labels[row, c] or '·'}" for row in rows]) for c in range(labels.shape[1])]
        if sum(_width(title, cells) for title, cells in columns + classes) > WIDTH:
            classes = [("class: examples", [_commonest(labels[row]) for row in rows])]
    more = len(names) - len(rows)
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=f"and {more:,} more: --clients-shown" if more else None,
        caption_justify="left",
    )
    for place, (title, _) in enumerate([*columns, *classes]):
        listed = title == "class: examples"
        table.add_column(
            title,
            style="cyan" if place == 0 else None,
            justify="left" if listed or place == 0 else "right",
            no_wrap=not listed,
        )
    for row in rows:
        table.add_row(*(cells[row] for _, cells in [*columns, *classes]))
    return table


def _commonest(counts: np.ndarray) -> str:
    order = np.argsort(-counts, kind="stable")
    there = int(np.count_nonzero(counts))
    said = ", ".join(f"{c}: {counts[c]}" for c in order[: min(there, _LISTED)])
    return said + (f", {there - _LISTED} more" if there > _LISTED else "")


def _short(name: str) -> str:
    return name if len(name) <= 16 else f"{name[:15]}…"


def _width(title: str, cells: list[str]) -> int:
    return max(len(title), *map(len, cells)) + 2
