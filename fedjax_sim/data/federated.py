"""What a source returns: training and test examples by client."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import overload

import numpy as np

from fedjax_sim._src import keys
from fedjax_sim.data._columns import column_of, describe, offsets_of
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.client_source import Clients, ClientSource, of_one_example

# Purposes of the generator; above those of `keys`, so that no two decisions share a stream.
_SPLIT = 101
_HOLDOUT = 110
_PUBLIC = 111


@dataclass(frozen=True, eq=False, repr=False)
class Federated:
    """A federated data set.

    Attributes:
      train: what clients train on.
      test: what models are evaluated on; the same columns. Its clients need not be those of ``train``.
      name: for messages and run folders.
      classes: number of classes, ``None`` where there are none or the source cannot tell.
      notes: what a reader of results should know about how the data was made.
      edges: ``int64[clients]`` of ``train``, the edge server of each client, where there are any.

    Raises:
      ValueError: the two parts differ in their columns' names, dtypes or shapes.
    """

    train: Clients
    test: Clients
    name: str
    classes: int | None = None
    notes: tuple[str, ...] = ()
    edges: np.ndarray | None = None

    def __post_init__(self) -> None:
        train, test = describe(self.train.columns), describe(self.test.columns)
        if train != test:
            raise ValueError(
                f"{self.name}: train has columns {train}, test has {test}; expected the same names, dtypes and shapes."
            )

    def __repr__(self) -> str:
        kinds = "" if self.classes is None else f", {self.classes} classes"
        lines = [f"Federated({self.name}{kinds}", f"train: {self.train!r}", f"test: {self.test!r}"]
        return "\n  ".join([*lines, *(f"note: {note}" for note in self.notes)]) + ")"


DIVIDE = (
    "Where a partition makes the clients, have it deal the test examples out, too: fs.data.repartition(..., "
    "test_fraction=0.2), in a file test_fraction in [partition]. Where they are the set's own, divide the examples of those "
    "that train: train, test = fs.data.split(data.train, test_fraction=0.2, seed=0)."
)
"""How train and test get the same clients, for messages."""


@overload
def split(data: ClientData, test_fraction: float, seed: int) -> tuple[ClientData, ClientData]: ...
@overload
def split(data: ClientSource, test_fraction: float, seed: int) -> tuple[ClientSource, ClientSource]: ...


def split(data: Clients, test_fraction: float, seed: int) -> tuple[Clients, Clients]:
    """Divides each client's examples at random into a training and a test part.

    Both parts have all clients, in the same order. A client with ``n >= 2`` examples gives ``test_fraction * n`` of
    them to the test, rounded, but at least one, and keeps at least one; a client with one example trains on it and
    has an empty test part. Rows keep their order. The parts of a ``ClientSource`` are sources: clients are divided when
    they are wanted, each by a draw of its own, so not as the same clients in memory would be.

    Args:
      data: what to divide.
      test_fraction: in (0, 1).
      seed: a non-negative integer.

    Raises:
      ValueError: ``test_fraction`` is not in (0, 1).

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> data = fs.data.ClientData({"x": np.arange(15)}, offsets=[0, 10, 14, 15], ids=["ann", "bo", "cy"])
      >>> train, test = fs.data.split(data, test_fraction=0.2, seed=0)
      >>> train.sizes, test.sizes
      (array([8, 3, 1]), array([2, 1, 0]))
    """
    if isinstance(data, ClientSource):
        wanted = _test_sizes(data.sizes, test_fraction)
        return Half(data, wanted, seed, is_test=False), Half(data, wanted, seed, is_test=True)
    is_test = rows_of_test(np.diff(np.asarray(data.offsets)), test_fraction, seed)
    return data.filter(~is_test), data.filter(is_test)


def rows_of_test(sizes: np.ndarray, test_fraction: float, seed: int) -> np.ndarray:
    """Which examples of clients of these sizes, one client after the other, ``split`` gives to the test: ``bool[examples]``."""
    wanted = _test_sizes(sizes, test_fraction)
    offsets, examples = offsets_of(sizes), int(sizes.sum())
    # The examples that get a client's smallest draws are its test part.
    draws = keys.host_generator((seed,), _SPLIT).random(examples)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    rank = np.empty(examples, np.int64)
    rank[np.lexsort((draws, owner))] = np.arange(examples) - np.repeat(offsets[:-1], sizes)
    return rank < wanted[owner]


def _test_sizes(sizes: np.ndarray, test_fraction: float) -> np.ndarray:
    """Examples of each client's test part."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}, expected a number in (0, 1), ends excluded.")
    wanted = np.clip(np.rint(test_fraction * sizes), 1, np.maximum(sizes - 1, 1)).astype(np.int64)
    wanted[sizes < 2] = 0
    return wanted


class Half(ClientSource):
    """The training or the test part of every client of a source; see ``split``. ``wanted``: examples in the test part."""

    def __init__(self, source: ClientSource, wanted: np.ndarray, seed: int, is_test: bool):
        sizes = wanted if is_test else source.sizes - wanted
        super().__init__(sizes, of_one_example(source.columns), source.ids)
        self._source, self._wanted, self._seed, self._is_test = source, wanted, seed, is_test

    def make(self, client: int) -> dict[str, np.ndarray]:
        order = keys.host_generator((self._seed,), _SPLIT, client).permutation(self._source.sizes[client])
        mine = np.full(len(order), not self._is_test)
        mine[order[: self._wanted[client]]] = self._is_test
        return {name: column[mine] for name, column in self._source.client(client).items()}


def holdout_clients(data: Federated, fraction: float, seed: int) -> tuple[Federated, Federated]:
    """Divides the clients at random into those that training sees and those that it never does.

    A model trained on ``seen.train`` is evaluated on ``seen.test`` (new examples of known clients) and on
    ``unseen.test`` (new clients); ``unseen.train`` is what an unseen client may personalise a model on, by a simulation of
    its own: ``fs.Simulation(algorithm, unseen.train, ...).personalised(state, unseen.test)``. The distinction is that of Yuan et al. 2022 ("What Do We Mean by Generalization in Federated Learning?"): the participation gap is
    the difference between the two. The clients of a ``ClientSource`` stay what they are, made when they are wanted.

    Args:
      data: the same clients in ``train`` and ``test``, in the same order.
      fraction: share of the clients that is held out, in (0, 1); rounded, but at least one client on either side.
      seed: a non-negative integer.

    Returns:
      ``(seen, unseen)``; clients keep their order, their ids and all their examples.

    Raises:
      ValueError: ``fraction`` is not in (0, 1), there is one client only, or train and test have different clients.

    Example:
      >>> import fedjax_sim as fs
      >>> data = fs.data.load("digits", clients=20, alpha=1.0, seed=0)
      >>> seen, unseen = fs.data.holdout_clients(data, fraction=0.25, seed=0)
      >>> seen.train.num_clients, unseen.train.num_clients, unseen.test.num_clients
      (15, 5, 5)
      >>> import optax
      >>> algorithm = fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=10)), optax.sgd(0.1))
      >>> sim, new = (fs.Simulation(algorithm, part.train, cohort=fs.cohorts.uniform(5)) for part in (seen, unseen))
      >>> state, _ = sim.run(sim.init(seed=0), rounds=2)
      >>> new.personalised(state, unseen.test).clients.tolist()
      [0, 1, 2, 3, 4]
      >>> writers = fs.data.glyphs(clients=1_000_000, test_fraction=0.2)  # none is drawn
      >>> fs.data.holdout_clients(writers, fraction=0.25, seed=0)[1].train.num_clients
      250000
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected a number in (0, 1), ends excluded.")
    clients = data.train.num_clients
    if clients < 2:
        raise ValueError(
            f"{data.name} has one client, expected at least two: one to train on, one to hold out."
        )
    if not np.array_equal(data.train.ids, data.test.ids):
        raise ValueError(
            f"{data.name}: train and test have different clients ({clients} and {data.test.num_clients}), expected the same: "
            f"a client that is held out is tested on examples of its own. {DIVIDE}"
        )
    count = int(np.clip(np.rint(fraction * clients), 1, clients - 1))
    held_out = np.zeros(clients, bool)
    held_out[keys.host_generator((seed,), _HOLDOUT).permutation(clients)[:count]] = True

    def part(mask: np.ndarray, note: str) -> Federated:
        edges = None if data.edges is None else data.edges[mask]
        notes = (*data.notes, note)
        return dataclasses.replace(
            data, train=data.train.select(mask), test=data.test.select(mask), notes=notes, edges=edges
        )

    return (
        part(~held_out, f"{count} of {clients} clients are held out (seed {seed})"),
        part(held_out, f"{count} of {clients} clients, held out from training (seed {seed})"),
    )


def holdout_public(data: Federated, fraction: float, seed: int) -> tuple[Federated, dict[str, np.ndarray]]:
    """Takes a share of the training examples away from the clients: a public set, for distillation or pretraining.

    The examples are drawn evenly from all, whoever has them; the test part stays. A client may be left without any.

    Args:
      data: where they come from.
      fraction: in (0, 1), of all training examples, rounded.
      seed: a non-negative integer.

    Returns:
      ``(data without them, columns of the public set [examples, ...])``.

    Raises:
      ValueError: ``fraction`` is not in (0, 1).

    Source: Li and Wang 2019 (arXiv 1910.03581), section 3: the public set of FedMD.

    Example:
      >>> import fedjax_sim as fs
      >>> private, public = fs.data.holdout_public(fs.data.digits(clients=10), fraction=0.1, seed=0)
      >>> private.train.num_examples, len(public["y"])
      (1294, 144)
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}, expected a number in (0, 1), ends excluded.")
    train = data.train.in_memory
    total = train.num_examples
    count = round(fraction * total)
    chosen = np.zeros(total, bool)
    chosen[keys.host_generator((seed,), _PUBLIC).permutation(total)[:count]] = True
    public = {name: np.asarray(column)[chosen] for name, column in train.columns.items()}
    note = f"{count} of {total} training examples are public (seed {seed})"
    return dataclasses.replace(data, train=train.filter(~chosen), notes=(*data.notes, note)), public


def holdout_domain(data: Federated, by: str, domain: int) -> Federated:
    """One domain is for testing alone: leave-one-domain-out.

    Training loses the domain's examples, and the test part has all of them and no others, those of the training part
    first. Clients keep their names on both sides; a side may leave one without examples.

    Args:
      data: the same clients in ``train`` and ``test``, in the same order.
      by: the column that tells domains, integers ``[examples]``.
      domain: the one that is held out.

    Raises:
      ValueError: there is no such column, no example of the domain or only such, or train and test have different
        clients.

    Source: Gulrajani and Lopez-Paz 2021 (arXiv 2007.01434).

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> part = fs.data.ClientData({"x": np.arange(6), "place": np.array([0, 0, 1, 1, 2, 2])}, [0, 3, 6], ids=[0, 1])
      >>> data = fs.data.holdout_domain(fs.data.Federated(part, part, name="toy"), by="place", domain=1)
      >>> data.train.columns["x"], data.test.columns["x"]
      (array([0, 1, 4, 5]), array([2, 2, 3, 3]))
    """
    if not np.array_equal(data.train.ids, data.test.ids):
        raise ValueError(
            f"{data.name}: train and test have different clients, expected the same, in the same order. {DIVIDE}"
        )
    parts = train, test = data.train.in_memory, data.test.in_memory
    masks = [column_of(part.columns, by, "by") == domain for part in parts]
    found = sum(int(mask.sum()) for mask in masks)
    if found == 0 or masks[0].all():
        raise ValueError(
            f"column {by!r} has {found} examples of domain {domain!r}, expected some of it and some of others."
        )
    owners = [np.repeat(part.ids, part.sizes)[mask] for part, mask in zip(parts, masks, strict=True)]
    columns = {
        name: np.concatenate(
            [np.asarray(part.columns[name])[mask] for part, mask in zip(parts, masks, strict=True)]
        )
        for name in data.train.columns
    }
    test = ClientData.from_arrays(columns, np.concatenate(owners), ids=test.ids)
    note = f"tested on {by} {domain}, which training never sees"
    return dataclasses.replace(data, train=train.filter(~masks[0]), test=test, notes=(*data.notes, note))
