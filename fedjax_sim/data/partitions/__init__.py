"""Partitions: which client owns which example of a set that has no clients, or others than are wanted.

A partitioner is made of its settings and deals out the examples of any set: ``dirichlet(50, alpha=0.3)(columns, seed=0)``
is a ``Partition``, and ``fs.data.repartition(data, dirichlet(50, alpha=0.3))`` the set with its clients. Every one ends,
gives each example to one client or says that nobody has it, moves examples where its law leaves a client too few instead
of drawing again, and depends on the seed alone.
"""

from fedjax_sim.data.partitions._groups import grouped, hierarchical, natural
from fedjax_sim.data.partitions._labels import client_dirichlet, dirichlet, labels_per_client, shards
from fedjax_sim.data.partitions._partition import Columns, Partition, Partitioner
from fedjax_sim.data.partitions._sizes import iid, mixture, quantity

__all__ = [
    "Columns",
    "Partition",
    "Partitioner",
    "client_dirichlet",
    "dirichlet",
    "grouped",
    "hierarchical",
    "iid",
    "labels_per_client",
    "mixture",
    "natural",
    "quantity",
    "shards",
]
