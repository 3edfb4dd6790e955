"""Partitions by what is known of the examples already, and partitions inside partitions."""

from __future__ import annotations

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

    return Partitioner(assign, described("natural", by=by))


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

    return Partitioner(assign, described("grouped", by=by, clients=clients))


def hierarchical(edges: Partitioner, clients: Partitioner) -> Partitioner:
    """Clients inside edges: one partition deals the examples to edges, another each edge's examples to its clients.

    ``hierarchical(natural("domain"), iid(10))`` makes ten clients of each domain. Clients are numbered through, edge by
    edge, and ``Partition.edges`` says whose each is.

    Args:
      edges: deals to the edge servers.
      clients: deals inside each edge.

    Raises:
      ValueError: an edge is left without an example; as the two partitions.

    Source: Liu et al. 2020 (arXiv 1905.06641): client, edge, cloud.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> columns = {"y": np.repeat(np.arange(4), 50)}
      >>> tree = fs.partitions.hierarchical(fs.partitions.shards(2, 2), fs.partitions.iid(3))
      >>> tree(columns, seed=0).edges
      array([0, 0, 0, 1, 1, 1])
    """

    def assign(generator: np.random.Generator, columns: Columns) -> Partition:
        outer = edges.assign(generator, columns)
        owner = np.full(count_examples(columns), -1)
        repaired, of, made = [], [], 0
        for edge, name in enumerate(outer.ids):
            rows = np.flatnonzero(outer.owner == edge)
            if not len(rows):
                raise ValueError(f"edge {name} was dealt no example ({edges.says}), expected at least one.")
            inner = clients.assign(generator, {key: np.asarray(x)[rows] for key, x in columns.items()})
            owner[rows] = np.where(inner.owner < 0, -1, inner.owner + made)
            made += inner.num_clients
            repaired.append(inner.repaired)
            of.append(np.full(inner.num_clients, edge))
        return Partition(
            owner,
            np.arange(made),
            np.concatenate(repaired),
            np.concatenate(of),
            repaired_edges=outer.repaired,
        )

    return Partitioner(assign, f"hierarchical, edges: {edges.says}; clients: {clients.says}")
