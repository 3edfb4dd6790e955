"""What a partition is, and what deals one."""

from __future__ import annotations

import functools
import heapq
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._src import keys
from fedjax_sim.data._columns import column_of, gather_rows
from fedjax_sim.data.client_data import ClientData

_PARTITION = 100  # purpose of the generator; above those of `keys`, so that no two decisions share a stream
NOBODY = -1
"""Owner of an example that is dropped."""

Columns = Mapping[str, np.ndarray]
"""Name to array ``[examples, ...]``, of all examples."""


class Partition(NamedTuple):
    """Who owns each example.

    Attributes:
      owner: ``int64[examples]``, a client from 0 to ``clients - 1``, or -1 for an example that is dropped.
      ids: ``[clients]``, integers or text.
      repaired: ``int64[clients]``, examples that a client was given because the law left it too few.
      edges: ``int64[clients]``, the edge server of each client, where there are any.
      repaired_edges: ``int64[edges]``, examples that an edge was given likewise, before its clients were made.
    """

    owner: np.ndarray
    ids: np.ndarray
    repaired: np.ndarray
    edges: np.ndarray | None = None
    repaired_edges: np.ndarray | None = None

    @property
    def num_clients(self) -> int:
        return len(self.ids)

    @property
    def sizes(self) -> np.ndarray:
        """Examples of each client, ``int64[clients]``."""
        return np.bincount(self.owner[self.owner >= 0], minlength=self.num_clients)

    @property
    def dropped(self) -> np.ndarray:
        """Rows that no client has, ``int64[dropped]``."""
        return np.flatnonzero(self.owner < 0)

    def deal(self, columns: Columns) -> ClientData:
        """The clients with their examples.

        Args:
          columns: those that were partitioned, or some of them.
        """
        kept = np.flatnonzero(self.owner >= 0)
        rows = gather_rows({name: np.asarray(column) for name, column in columns.items()}, kept)
        return ClientData.from_arrays(rows, self.ids[self.owner[kept]], ids=self.ids)

    def remarks(self) -> tuple[str, ...]:
        """Sentences about what was repaired and dropped; none where nothing was."""
        said = []
        for who, moved in (("edges", self.repaired_edges), ("clients", self.repaired)):
            if moved is not None and moved.any():
                count = int(np.count_nonzero(moved))
                said.append(
                    f"{_counted(int(moved.sum()), 'example was', 'examples were')} moved to "
                    f"{_counted(count, who.removesuffix('s'), who)} below the minimum."
                )
        if len(self.dropped):
            said.append(
                f"{len(self.dropped):,} of {len(self.owner):,} examples belong to nobody and are left out."
            )
        return tuple(said)


class Partitioner(NamedTuple):
    """A way to deal examples out to clients.

    Attributes:
      assign: ``(generator, columns)`` to a ``Partition``: a pure function, which draws from the generator alone.
      says: its name and settings, for notes.
      needs: examples without which it raises.
      least: that each client then has.
      freely: ``assign`` without this minimum, for who repairs afterwards; ``None`` where there is none to leave out.
      by: columns whose values become clients or edges, so that one whose examples are taken away is lost.
    """

    assign: Callable[[np.random.Generator, Columns], Partition]
    says: str
    needs: int = 1
    least: int = 0
    freely: Callable[[np.random.Generator, Columns], Partition] | None = None
    by: tuple[str, ...] = ()

    def __call__(self, columns: Columns, seed: int) -> Partition:
        """The partition of these examples.

        Args:
          columns: arrays ``[examples, ...]``; a partition reads the one that it is about, such as ``"y"``.
          seed: a non-negative integer.

        Raises:
          TypeError: the column that it reads is of a type that cannot serve.
          ValueError: a column is missing, or there are no examples, or too few for what was asked.
        """
        count_examples(columns)
        return self.assign(keys.host_generator((seed,), _PARTITION), columns)


def _counted(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"


def numbered(owner: np.ndarray, clients: int, repaired: np.ndarray | None = None) -> Partition:
    """A partition whose clients are called 0 to ``clients - 1``."""
    nothing = np.zeros(clients, np.int64)
    return Partition(owner, np.arange(clients), nothing if repaired is None else repaired)


def described(name: str, **settings: Any) -> str:
    """``"dirichlet, clients 50, alpha 0.3"``."""
    return ", ".join([name, *(f"{key} {value}" for key, value in settings.items())])


def with_minimum(assign: Callable[..., Partition], says: str, clients: int, min_examples: int) -> Partitioner:
    """A partitioner of an ``assign`` whose argument ``least`` is by default ``min_examples``, for each client."""
    needs = max(1, clients * min_examples)
    return Partitioner(assign, says, needs, min_examples, functools.partial(assign, least=0))


def labels_of(columns: Columns, name: str) -> np.ndarray:
    """The label column: one integer for each example."""
    labels = column_of(columns, name, "label")
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise TypeError(
            f"column {name!r} is {labels.dtype}{list(labels.shape)}, expected one integer label per example."
        )
    count_examples({name: labels})
    return labels


def count_examples(columns: Columns) -> int:
    examples = len(next(iter(columns.values()))) if columns else 0
    if examples == 0:
        raise ValueError("there are no examples to deal out, expected at least one.")
    return examples


def check_enough(examples: int, clients: int, min_examples: int) -> None:
    if clients * min_examples > examples:
        raise ValueError(
            f"clients * min_examples is {clients} * {min_examples} = {clients * min_examples}, but there are "
            f"{examples} examples. Use fewer clients or a smaller min_examples."
        )


def dealt_evenly(generator: np.random.Generator, examples: int, clients: int) -> np.ndarray:
    """An owner for each example, at random; sizes differ by at most one."""
    return generator.permutation(np.arange(examples) % clients)


def repair(owner: np.ndarray, clients: int, min_examples: int, generator: np.random.Generator) -> np.ndarray:
    """Moves examples from the largest clients to those below ``min_examples``, in place; returns the moves.

    Ends: while a client is below the minimum, the largest is above it (the examples suffice for all), and every move
    takes one from what is missing. No client falls below the minimum by giving.
    """
    sizes = np.bincount(owner[owner >= 0], minlength=clients)
    repaired = np.maximum(min_examples - sizes, 0)
    largest = [(-size, client) for client, size in enumerate(sizes.tolist())]
    heapq.heapify(largest)
    stock: dict[int, list[int]] = {}
    for client in np.repeat(np.arange(clients), repaired):
        negative_size, giver = largest[0]
        if giver not in stock:
            stock[giver] = generator.permutation(np.flatnonzero(owner == giver)).tolist()
        owner[stock[giver].pop()] = client
        heapq.heapreplace(largest, (negative_size + 1, giver))
    return repaired
