"""Partitions by what is known of the examples already, and partitions inside partitions."""

from __future__ import annotations

import functools

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._columns import column_of
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data.partitions._partition import (
    Columns,
    Partition,
    Partitioner,
    count_examples,
    dealt_evenly,
    described,
    numbered,
    repair,
)


def natural(by: str) -> Partitioner:
    """Each value of a column is a client, with the value as its id: a writer, a user, a hospital, a domain.

    Args:
      by: the column, integers or text ``[examples]``.

    Raises:
      TypeError: the column holds neither integers nor text.
      ValueError: there is no such column.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> fs.partitions.natural("writer")({"writer": np.array([7, 3, 7])}, seed=0).ids
      array([3, 7])
    """

    def assign(generator: np.random.Generator, columns: Columns) -> Partition:
        del generator
        ids, owner = np.unique(as_ids(by, column_of(columns, by, "by")), return_inverse=True)
        return Partition(owner.astype(np.int64), ids, np.zeros(len(ids), np.int64))

    return Partitioner(assign, described("natural", by=by), by=(by,))


def grouped(by: str, clients: int = 50) -> Partitioner:
    """The values of a column dealt out evenly at random: a client holds all examples of several writers.

    Args:
      by: the column, integers or text ``[examples]``.
      clients: how many; each has as many values as the others, give or take one.

    Raises:
      TypeError: the column holds neither integers nor text.
      ValueError: there is no such column, or it has fewer values than there are to be clients.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> columns = {"writer": np.arange(30) // 5}
      >>> fs.partitions.grouped("writer", clients=3)(columns, seed=0).sizes
      array([10, 10, 10])
    """
    checks.positive_int("clients", clients)

    def assign(generator: np.random.Generator, columns: Columns) -> Partition:
        values, index = np.unique(as_ids(by, column_of(columns, by, "by")), return_inverse=True)
        if clients > len(values):
            raise ValueError(f"clients is {clients}, but column {by!r} has {len(values)} different values.")
        return numbered(dealt_evenly(generator, len(values), clients)[index], clients)

    return Partitioner(assign, described("grouped", by=by, clients=clients), by=(by,))


def hierarchical(edges: Partitioner, clients: Partitioner) -> Partitioner:
    """Clients inside edges: one partition deals the examples to edges, another each edge's examples to its clients.

    ``hierarchical(natural("domain"), iid(10))`` makes ten clients of each domain. Clients are numbered through, edge by
    edge, and ``Partition.edges`` says whose each is. An edge that is dealt fewer examples than its clients need, such as
    ``min_examples`` for each, is given random examples of the then largest edge; ``Partition.repaired_edges`` counts them.

    Args:
      edges: deals to the edge servers.
      clients: deals inside each edge.

    Raises:
      ValueError: there are too few examples for all edges; as the two partitions.

    Source: Liu et al. 2020 (arXiv 1905.06641): client, edge, cloud.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> columns = {"y": np.repeat(np.arange(4), 50)}
      >>> tree = fs.partitions.hierarchical(fs.partitions.shards(2, 2), fs.partitions.iid(3))
      >>> tree(columns, seed=0).edges
      array([0, 0, 0, 1, 1, 1])
    """

    def assign(generator: np.random.Generator, columns: Columns, least: bool = True) -> Partition:
        outer = edges.assign(generator, columns)
        deal, needs = clients.assign, clients.needs
        if clients.freely is not None and not least:
            deal, needs = clients.freely, 1
        owner, edge_of = np.full(count_examples(columns), -1), outer.owner.copy()
        kept, count = int(np.count_nonzero(edge_of >= 0)), len(outer.ids)
        if count * needs > kept:
            raise ValueError(
                f"{count} edges ({edges.says}) with at least {needs} examples for their clients ({clients.says}) make "
                f"{count * needs}, but there are {kept} examples. Use fewer edges or clients."
            )
        moved = repair(edge_of, count, needs, generator)
        repaired, of, made = [], [], 0
        for edge in range(count):
            rows = np.flatnonzero(edge_of == edge)
            inner = deal(generator, {key: np.asarray(x)[rows] for key, x in columns.items()})
            owner[rows] = np.where(inner.owner < 0, -1, inner.owner + made)
            made += inner.num_clients
            repaired.append(inner.repaired)
            of.append(np.full(inner.num_clients, edge))
        return Partition(
            owner,
            np.arange(made),
            np.concatenate(repaired),
            np.concatenate(of),
            repaired_edges=outer.repaired + moved,
        )

    return Partitioner(
        assign,
        f"hierarchical, edges: {edges.says}; clients: {clients.says}",
        least=clients.least,
        freely=None if clients.freely is None else functools.partial(assign, least=False),
        by=edges.by + clients.by,
    )
