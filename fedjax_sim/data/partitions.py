"""Partitions: which client owns which example of a set that has no clients of its own."""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from fedjax_sim._src import checks, keys

_PARTITION = 100  # purpose of the generator; above those of `keys`, so that no two decisions share a stream


class Partition(NamedTuple):
    """Who owns each example; ``ClientData.from_arrays(columns, owner, ids=range(clients))`` makes the clients.

    Attributes:
      owner: ``int64[examples]``, from 0 to ``clients - 1``.
      repaired: ``int64[clients]``, examples that a client was given because the law left it too few.
    """

    owner: np.ndarray
    repaired: np.ndarray


def iid(num_examples: int, clients: int, seed: int) -> Partition:
    """Deals the examples out evenly at random; sizes differ by at most one.

    Raises:
      ValueError: ``num_examples`` or ``clients`` is below 1.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> np.bincount(fs.data.iid(10, clients=4, seed=0).owner)
      array([3, 3, 2, 2])
    """
    checks.positive_int("num_examples", num_examples)
    checks.positive_int("clients", clients)
    rng = keys.host_generator((seed,), _PARTITION)
    return Partition(rng.permutation(np.arange(num_examples) % clients), np.zeros(clients, np.int64))


def dirichlet(labels: np.ndarray, clients: int, alpha: float, seed: int, min_examples: int = 1) -> Partition:
    """Divides each label's examples over the clients by proportions drawn from a symmetric Dirichlet law.

    Small ``alpha`` gives each label to few clients, large ``alpha`` to all alike. A client that the draw leaves below
    ``min_examples`` is given random examples of the then largest client, one at a time, and the partition says so;
    it never draws again until a draw suits, which for many settings would not end.

    Args:
      labels: integers ``[examples]``.
      clients: number of clients.
      alpha: concentration, any finite number above 0.
      seed: a non-negative integer.
      min_examples: what every client holds at least; 0 or more.

    Raises:
      TypeError: ``labels`` are not integers ``[examples]``.
      ValueError: there are too few examples for ``clients * min_examples``, or a number is out of range.

    Source: Yurochkin et al. 2019 (arXiv 1905.12022), section 4. Hsu, Qi, Brown 2019 (arXiv 1909.06335) draw each
    client's labels instead.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> labels = np.repeat([0, 1, 2], 30)
      >>> partition = fs.data.dirichlet(labels, clients=5, alpha=0.1, seed=0, min_examples=4)
      >>> bool((np.bincount(partition.owner, minlength=5) >= 4).all()), partition.repaired
      (True, array([3, 0, 0, 0, 0]))
    """
    labels = _check_labels(labels)
    checks.positive_int("clients", clients)
    checks.positive("alpha", alpha)
    if min_examples != 0:
        checks.positive_int("min_examples", min_examples)
    if clients * min_examples > len(labels):
        raise ValueError(
            f"clients * min_examples is {clients} * {min_examples} = {clients * min_examples}, but there are "
            f"{len(labels)} examples. Use fewer clients or a smaller min_examples."
        )
    rng = keys.host_generator((seed,), _PARTITION)
    owner = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        counts = _systematic_counts(_proportions(rng, clients, alpha), len(rows), rng)
        owner[rows] = np.repeat(rng.permutation(clients), counts)
    return Partition(owner, _repair(owner, clients, min_examples, rng))


def shards(labels: np.ndarray, clients: int, shards_per_client: int, seed: int) -> Partition:
    """Sorts the examples by label, cuts them into ``clients * shards_per_client`` shards, deals these out at random.

    With two shards, most clients hold examples of two labels at most: the field's hardest common partition. Every
    example has one owner. Shards differ by at most one example, so clients by at most ``shards_per_client``. Within
    a label, examples are in random order, lest a shard be a stretch of the original file.

    Args:
      labels: integers ``[examples]``.
      clients: number of clients.
      shards_per_client: shards that each client is dealt.
      seed: a non-negative integer.

    Raises:
      TypeError: ``labels`` are not integers ``[examples]``.
      ValueError: there are fewer examples than shards, or a number is out of range.

    Source: McMahan et al. 2017 (arXiv 1602.05629), section 3: 200 shards of 300 MNIST digits, two for each client.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> labels = np.repeat(np.arange(10), 60)
      >>> owner = fs.data.shards(labels, clients=30, shards_per_client=2, seed=0).owner
      >>> np.unique(np.bincount(owner)), max(len(set(labels[owner == client])) for client in range(30))
      (array([20]), 2)
    """
    labels = _check_labels(labels)
    checks.positive_int("clients", clients)
    checks.positive_int("shards_per_client", shards_per_client)
    count = clients * shards_per_client
    if count > len(labels):
        raise ValueError(
            f"clients * shards_per_client is {clients} * {shards_per_client} = {count}, but there are "
            f"{len(labels)} examples. Use fewer clients or shards."
        )
    rng = keys.host_generator((seed,), _PARTITION)
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    shard = np.arange(len(labels)) * count // len(labels)  # count <= examples: no shard is empty
    owner = np.empty(len(labels), np.int64)
    owner[order] = rng.permutation(np.arange(count) % clients)[shard]
    return Partition(owner, np.zeros(clients, np.int64))


def _check_labels(labels: np.ndarray) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.dtype.kind not in "iub":
        raise TypeError(f"labels is {labels.dtype}{list(labels.shape)}, expected integers [examples].")
    return labels


def _proportions(rng: np.random.Generator, clients: int, alpha: float) -> np.ndarray:
    """One draw of ``Dir(alpha, ..., alpha)`` for every finite alpha.

    A Dirichlet draw is Gammas over their sum, but Gammas of a tiny shape underflow to 0 together. Their logarithms
    do not: ``log G(a) = log G(a + 1) + log(U) / a`` in law, and ``-log(U)`` is exponential. For a < 1 all is kept
    times ``a`` until the largest has been subtracted, so that ``1 / a`` cannot overflow it either.
    """
    scale = min(alpha, 1.0)
    logs = scale * np.log(rng.standard_gamma(alpha + 1.0, clients)) - (
        scale / alpha
    ) * rng.standard_exponential(clients)
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((logs - logs.max()) / scale)
    return weights / weights.sum()


def _systematic_counts(proportions: np.ndarray, total: int, rng: np.random.Generator) -> np.ndarray:
    """Integers that sum to ``total``, each ``total * proportion`` rounded up or down, and equal to it on average.

    Cutting at ``floor(total * cumulative)`` without the random start would, for labels with fewer examples than
    clients, favour the same clients every time.
    """
    edges = np.floor(total * np.cumsum(proportions) + rng.random()).astype(np.int64)
    edges[-1] = total  # the cumulative sum ends at 1 only up to rounding
    return np.diff(np.minimum(edges, total), prepend=0)


def _repair(owner: np.ndarray, clients: int, min_examples: int, rng: np.random.Generator) -> np.ndarray:
    """Moves examples from the largest clients to those below ``min_examples``, in place; returns the moves.

    Ends: while a client is below the minimum, the largest is above it (the examples suffice for all), and every move
    takes one from what is missing. No client falls below the minimum by giving.
    """
    sizes = np.bincount(owner, minlength=clients)
    repaired = np.maximum(min_examples - sizes, 0)
    largest = [(-size, client) for client, size in enumerate(sizes.tolist())]
    heapq.heapify(largest)
    stock: dict[int, list[int]] = {}
    for client in np.repeat(np.arange(clients), repaired):
        negative_size, giver = largest[0]
        if giver not in stock:
            stock[giver] = rng.permutation(np.flatnonzero(owner == giver)).tolist()
        owner[stock[giver].pop()] = client
        heapq.heapreplace(largest, (negative_size + 1, giver))
    return repaired
