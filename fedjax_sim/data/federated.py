"""What a source returns: training and test examples by client."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fedjax_sim._src import keys
from fedjax_sim.data._columns import describe
from fedjax_sim.data.client_data import ClientData

_SPLIT = 101  # purpose of the generator; above those of `keys`, so that no two decisions share a stream


@dataclass(frozen=True, eq=False)
class Federated:
    """A federated data set.

    Attributes:
      train: what clients train on.
      test: what models are evaluated on; the same columns. Its clients need not be those of ``train``.
      name: for messages and run folders.
      classes: number of classes, ``None`` where there are none or the source cannot tell.
      notes: what a reader of results should know about how the data was made.

    Raises:
      ValueError: the two parts differ in their columns' names, dtypes or shapes.
    """

    train: ClientData
    test: ClientData
    name: str
    classes: int | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        train, test = describe(self.train.columns), describe(self.test.columns)
        if train != test:
            raise ValueError(
                f"{self.name}: train has columns {train}, test has {test}; expected the same names, dtypes and shapes."
            )


def split(data: ClientData, test_fraction: float, seed: int) -> tuple[ClientData, ClientData]:
    """Divides each client's examples at random into a training and a test part.

    Both parts have all clients, in the same order. A client with ``n >= 2`` examples gives ``test_fraction * n`` of
    them to the test, rounded, but at least one, and keeps at least one; a client with one example trains on it and
    has an empty test part. Rows keep their order.

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
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}, expected a number in (0, 1), ends excluded.")
    offsets = np.asarray(data.offsets)
    sizes = np.diff(offsets)
    wanted = np.clip(np.rint(test_fraction * sizes), 1, np.maximum(sizes - 1, 1)).astype(np.int64)
    wanted[sizes < 2] = 0

    # The examples that get a client's smallest draws are its test part.
    draws = keys.host_generator((seed,), _SPLIT).random(data.num_examples)
    owner = np.repeat(np.arange(data.num_clients), sizes)
    rank = np.empty(data.num_examples, np.int64)
    rank[np.lexsort((draws, owner))] = np.arange(data.num_examples) - np.repeat(offsets[:-1], sizes)
    is_test = rank < wanted[owner]
    return data.filter(~is_test), data.filter(is_test)
