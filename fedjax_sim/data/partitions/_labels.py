"""Partitions by label: each client has some labels more often than others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data.partitions._laws import (
    counts_within,
    dirichlet_proportions,
    systematic_counts,
    wanted_sizes,
)
from fedjax_sim.data.partitions._partition import (
    NOBODY,
    Columns,
    Partition,
    Partitioner,
    check_enough,
    described,
    labels_of,
    numbered,
    repair,
    with_minimum,
)


def dirichlet(
    clients: int = 50,
    alpha: float = 0.3,
    sizes: Literal["free", "equal"] | Sequence[int] = "free",
    min_examples: int = 1,
    label: str = "y",
) -> Partitioner:
    """Each label's examples divided over the clients by proportions from a symmetric Dirichlet law.

    Small ``alpha`` gives each label to few clients, large ``alpha`` to all alike. With free sizes the proportions alone
    decide, and a client below ``min_examples`` is given random examples of the then largest client, one at a time; it
    never draws again until a draw suits, which for many settings would not end. With given sizes, what a client has no
    room for goes to the others by their proportions, and examples beyond the sum of the sizes are left out at random.

    Args:
      clients: how many.
      alpha: concentration, any finite number above 0.
      sizes: of the clients: ``"free"``, ``"equal"`` (they differ by at most one), or ``[clients]`` integers.
      min_examples: what every client holds at least where sizes are free; 0 or more.
      label: the column of labels, integers ``[examples]``.

    Raises:
      TypeError: the labels are not integers ``[examples]``.
      ValueError: too few examples for what was asked, a column is missing, or a number is out of range.

    Source: Yurochkin et al. 2019 (arXiv 1905.12022), section 4. ``client_dirichlet`` draws each client's labels instead.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> columns = {"y": np.repeat([0, 1, 2], 30)}
      >>> partition = fs.partitions.dirichlet(5, alpha=0.1, min_examples=4)(columns, seed=0)
      >>> bool((partition.sizes >= 4).all()), partition.repaired
      (True, array([3, 0, 0, 0, 0]))
      >>> fs.partitions.dirichlet(4, alpha=0.1, sizes="equal")(columns, seed=0).sizes
      array([23, 22, 22, 23])
    """
    checks.positive_int("clients", clients)
    checks.positive("alpha", alpha)
    checks.not_negative_int("min_examples", min_examples)
    _check_sizes(sizes, "free", "equal")
    concentration = np.full(clients, alpha, np.float64)

    def assign(generator: np.random.Generator, columns: Columns, least: int = min_examples) -> Partition:
        labels = labels_of(columns, label)
        if isinstance(sizes, str) and sizes == "free":
            check_enough(len(labels), clients, least)
            owner = np.empty(len(labels), np.int64)
            for value in np.unique(labels):
                rows = generator.permutation(np.flatnonzero(labels == value))
                proportions = dirichlet_proportions(generator, concentration)
                counts = systematic_counts(proportions, len(rows), generator)
                owner[rows] = np.repeat(generator.permutation(clients), counts)
            return numbered(owner, clients, repair(owner, clients, least, generator))
        owner, room = np.full(len(labels), NOBODY), wanted_sizes(sizes, clients, len(labels), generator)
        kept = _kept(generator, len(labels), room.sum())
        for value in generator.permutation(np.unique(labels[kept])):
            rows = generator.permutation(kept[labels[kept] == value])
            counts = counts_within(
                dirichlet_proportions(generator, concentration), len(rows), room, generator
            )
            owner[rows] = np.repeat(np.arange(clients), counts)
            room -= counts
        return numbered(owner, clients)

    said = sizes if isinstance(sizes, str) else "given"
    says = described("dirichlet", clients=clients, alpha=alpha, sizes=said, min_examples=min_examples)
    if said == "free":
        return with_minimum(assign, says, clients, min_examples)
    return Partitioner(assign, says, _needs(sizes))


def client_dirichlet(
    clients: int = 50,
    alpha: float = 0.3,
    sizes: Literal["equal"] | Sequence[int] = "equal",
    label: str = "y",
) -> Partitioner:
    """Each client's mixture of labels drawn from a Dirichlet law around that of the whole set.

    One client after the other, in random order, draws its examples by its mixture, without replacement. A label that has
    run out leaves the mixture; who is left with none of its labels takes what there is.

    Args:
      clients: how many.
      alpha: concentration; each label's parameter is ``alpha`` times its share of all examples.
      sizes: of the clients: ``"equal"`` (they differ by at most one) or ``[clients]`` integers; examples beyond
        their sum are left out.
      label: the column of labels, integers ``[examples]``.

    Raises:
      TypeError: the labels are not integers ``[examples]``.
      ValueError: the sizes sum to more than there is, a column is missing, or a number is out of range.

    Source: Hsu, Qi, Brown 2019 (arXiv 1909.06335), section 3.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> columns = {"y": np.repeat(np.arange(10), 60)}
      >>> partition = fs.partitions.client_dirichlet(6, alpha=1e9)(columns, seed=0)
      >>> partition.sizes, np.bincount(partition.deal(columns).client(0)["y"]).min() > 2
      (array([100, 100, 100, 100, 100, 100]), np.True_)
    """
    checks.positive_int("clients", clients)
    checks.positive("alpha", alpha)
    _check_sizes(sizes, "equal")

    def assign(generator: np.random.Generator, columns: Columns) -> Partition:
        labels = labels_of(columns, label)
        values, stock = np.unique(labels, return_counts=True)
        room = wanted_sizes(sizes, clients, len(labels), generator)
        counts = np.zeros((clients, len(values)), np.int64)
        concentration = np.maximum(alpha * (stock / len(labels)), np.finfo(np.float64).tiny)
        for client in generator.permutation(clients):
            mixture = dirichlet_proportions(generator, concentration)
            counts[client] = _drawn(mixture, int(room[client]), stock, generator)
            stock = stock - counts[client]
        owner = np.full(len(labels), NOBODY)
        for index, value in enumerate(values):
            rows = generator.permutation(np.flatnonzero(labels == value))
            owner[rows[: counts[:, index].sum()]] = np.repeat(np.arange(clients), counts[:, index])
        return numbered(owner, clients)

    said = sizes if isinstance(sizes, str) else "given"
    says = described("client_dirichlet", clients=clients, alpha=alpha, sizes=said)
    return Partitioner(assign, says, _needs(sizes))


def shards(clients: int = 50, shards_per_client: int = 2, label: str = "y") -> Partitioner:
    """Examples sorted by label, cut into ``clients * shards_per_client`` shards, and these dealt out at random.

    Args:
      clients: how many.
      shards_per_client: shards that each client is dealt; so many labels, about, it has.
      label: the column of labels, integers ``[examples]``.

    Raises:
      TypeError: the labels are not integers ``[examples]``.
      ValueError: there are fewer examples than shards, a column is missing, or a number is out of range.

    Source: McMahan et al. 2017 (arXiv 1602.05629), section 3: 200 shards of 300 MNIST digits, two for each client.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> columns = {"y": np.repeat(np.arange(10), 60)}
      >>> clients = fs.partitions.shards(30, shards_per_client=2)(columns, seed=0).deal(columns)
      >>> np.unique(clients.sizes), max(len(set(clients.client(i)["y"])) for i in range(30))
      (array([20]), 2)
    """
    checks.positive_int("clients", clients)
    checks.positive_int("shards_per_client", shards_per_client)
    count = clients * shards_per_client

    def assign(generator: np.random.Generator, columns: Columns) -> Partition:
        labels = labels_of(columns, label)
        if count > len(labels):
            raise ValueError(
                f"clients * shards_per_client is {clients} * {shards_per_client} = {count}, but there are "
                f"{len(labels)} examples. Use fewer clients or shards."
            )
        order = generator.permutation(len(labels))
        order = order[np.argsort(labels[order], kind="stable")]
        shard = np.arange(len(labels)) * count // len(labels)  # count <= examples: no shard is empty
        owner = np.empty(len(labels), np.int64)
        owner[order] = generator.permutation(np.arange(count) % clients)[shard]
        return numbered(owner, clients)

    return Partitioner(
        assign, described("shards", clients=clients, shards_per_client=shards_per_client), count
    )


def labels_per_client(
    clients: int = 50, labels_per_client: int = 2, min_examples: int = 1, label: str = "y"
) -> Partitioner:
    """Each client has so many labels, and a label's examples are divided evenly over those who have it.

    Each client takes labels that the fewest clients have, at random among them: every label ends with the same
    number of clients, give or take one. A client that gets fewer examples than ``min_examples``, as a label may have
    fewer examples than clients, is given some of the largest client's. A label that nobody takes, as there are
    fewer places than labels, is left out.

    Args:
      clients: how many.
      labels_per_client: how many different labels each client has.
      min_examples: what every client holds at least; 0 or more.
      label: the column of labels, integers ``[examples]``.

    Raises:
      TypeError: the labels are not integers ``[examples]``.
      ValueError: there are fewer labels than a client is to have, too few examples, a column is missing, or a number
        is out of range.

    Source: Li et al. 2022 (arXiv 2102.02079), section 3.1, quantity-based label imbalance.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> columns = {"y": np.repeat(np.arange(10), 60)}
      >>> clients = fs.partitions.labels_per_client(20, 3)(columns, seed=0).deal(columns)
      >>> {len(set(clients.client(i)["y"])) for i in range(20)}, np.unique(clients.sizes)
      ({3}, array([30]))
    """
    checks.positive_int("clients", clients)
    checks.positive_int("labels_per_client", labels_per_client)
    checks.not_negative_int("min_examples", min_examples)

    def assign(generator: np.random.Generator, columns: Columns, least: int = min_examples) -> Partition:
        labels = labels_of(columns, label)
        values = np.unique(labels)
        if labels_per_client > len(values):
            raise ValueError(
                f"labels_per_client is {labels_per_client}, but column {label!r} has {len(values)} labels."
            )
        has = _even_sets(clients, labels_per_client, len(values), generator)
        owner = np.full(len(labels), NOBODY)
        for index, value in enumerate(values):
            holders = generator.permutation(np.flatnonzero(has[:, index]))
            if len(holders):
                rows = generator.permutation(np.flatnonzero(labels == value))
                owner[rows] = holders[np.arange(len(rows)) % len(holders)]
        check_enough(int(np.count_nonzero(owner >= 0)), clients, least)
        return numbered(owner, clients, repair(owner, clients, least, generator))

    says = described(
        "labels_per_client", clients=clients, labels_per_client=labels_per_client, min_examples=min_examples
    )
    return with_minimum(assign, says, clients, min_examples)


def _even_sets(clients: int, size: int, labels: int, generator: np.random.Generator) -> np.ndarray:
    """``bool[clients, labels]``: sets of ``size`` labels, each label in as many of them, give or take one."""
    has = np.zeros((clients, labels), bool)
    used = np.zeros(labels, np.int64)
    for mine in has:
        mine[np.lexsort((generator.random(labels), used))[:size]] = True
        used += mine
    return has


def _drawn(mixture: np.ndarray, count: int, stock: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """How many examples of each label: ``count`` draws by the mixture from the stock, which holds enough."""
    counts = np.zeros(len(stock), np.int64)
    while (left := count - counts.sum()) > 0:
        free = stock - counts
        weights = np.where(free > 0, mixture, 0.0)
        if weights.sum() <= 0:
            weights = free.astype(np.float64)
        counts += np.minimum(generator.multinomial(left, weights / weights.sum()), free)
    return counts


def _needs(sizes: str | Sequence[int]) -> int:
    """Examples that sizes call for; words divide what there is."""
    return (
        1
        if isinstance(sizes, str)
        else max(1, sum(int(size) for size in sizes if isinstance(size, int | np.integer)))
    )


def _check_sizes(sizes, *words: str) -> None:
    if isinstance(sizes, str):
        checks.one_of("sizes", sizes, words)


def _kept(generator: np.random.Generator, examples: int, count: int) -> np.ndarray:
    """Rows that stay, at random where not all do."""
    return np.arange(examples) if count == examples else np.sort(generator.permutation(examples)[:count])
