"""Dealing the examples of a data set to new clients."""

from __future__ import annotations

import dataclasses

import numpy as np

from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.formats._tables import ONE_CLIENT
from fedjax_sim.data.partitions import Partitioner


def repartition(
    data: Federated, partitioner: Partitioner, *, seed: int = 0, test_fraction: float | None = None
) -> Federated:
    """The same examples with other clients, whoever held them before.

    By default the training examples alone are dealt out, and the test part stays as it is, with its own clients: the
    central test set of a set whose training and test examples were published apart, of which a client that is held out
    later has no part of its own. With ``test_fraction`` the test
    examples are dealt out, too, and then each client's examples are divided, so both parts have the same clients; one
    with a single example has no test part.

    Args:
      data: what to deal out.
      partitioner: one of ``fs.partitions``.
      seed: of the partition, and of the division into training and test.
      test_fraction: share of each client's examples that is its test part, in (0, 1), as in ``split``; by default the test
        part stays as it is.

    Raises:
      TypeError, ValueError: as the partitioner.

    Example:
      >>> import fedjax_sim as fs
      >>> digits = fs.data.digits(clients=1, min_examples=0)
      >>> data = fs.data.repartition(digits, fs.partitions.shards(100, shards_per_client=2))
      >>> data.train.num_clients, data.train.num_examples, data.test.num_clients
      (100, 1438, 1)
    """
    columns = {name: np.asarray(column) for name, column in data.train.in_memory.columns.items()}
    if test_fraction is not None:
        tested = data.test.in_memory.columns
        columns = {name: np.concatenate([x, np.asarray(tested[name])]) for name, x in columns.items()}
    partition = partitioner(columns, seed)
    train, test = partition.deal(columns), data.test
    if test_fraction is not None:
        train, test = split(train, test_fraction, seed)
    part = "training examples" if test_fraction is None else "training and test examples"
    note = f"The {part} were dealt anew to {partition.num_clients} clients: {partitioner.says}, seed {seed}."
    # What a source said of its one client is no longer true.
    before = (old for old in data.notes if not old.startswith(ONE_CLIENT))
    notes = (*before, note, *partition.remarks())
    return dataclasses.replace(data, train=train, test=test, notes=notes, edges=partition.edges)
