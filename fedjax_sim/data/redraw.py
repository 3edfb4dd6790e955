"""A large population from a small one: every new client holds examples of one of the old ones, drawn anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np

from fedjax_sim._src import checks, keys
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.client_source import Clients, ClientSource, of_one_example
from fedjax_sim.data.federated import Federated

_REDRAW = 150  # purpose of the generator; above those of `keys`, so that no two decisions share a stream


def redraw(data: Federated, clients: int, examples: int, seed: int = 0) -> Federated:
    """As many training clients as are wanted, each with examples of one old client, drawn anew; the test part stays.

    For the size of cohorts and populations that privacy needs, where only fewer clients' data are at hand. Nobody's examples
    are new: two clients may hold the same ones, so an epsilon protects these clients on paper alone, and accuracies are
    those of the old clients. Say so beside a result.

    Client ``i`` draws from old client ``i % old clients`` that has examples, without replacement where there are
    enough; who it is depends on the seed and its number alone.

    Args:
      data: what to draw from; its training part has to fit into memory.
      clients: how many, any number: examples are drawn when they are wanted.
      examples: of each client.
      seed: of the draws.

    Raises:
      ValueError: a count below 1, or data without an example.

    Example:
      >>> import fedjax_sim as fs
      >>> many = fs.data.redraw(fs.data.load("digits", clients=10), clients=100_000, examples=20)
      >>> many.train
      Redrawn(100000 clients with 2000000 examples)
    """
    checks.positive_int("clients", clients)
    checks.positive_int("examples", examples)
    if data.train.num_examples == 0:
        raise ValueError("the data has no training example: there is nothing to draw from.")
    note = (
        f"{clients} clients hold {examples} examples each, drawn anew from the {data.train.num_clients} clients that there "
        f"were (seed {seed}): nobody's examples are new."
    )
    train: Clients = Redrawn(data.train.in_memory, clients, examples, seed)
    return dataclasses.replace(data, train=train, notes=(*data.notes, note), edges=None)


class Redrawn(ClientSource):
    """Clients that hold examples of other clients; see ``redraw``."""

    def __init__(self, source: ClientData, clients: int, examples: int, seed: int):
        specs = {name: jax.ShapeDtypeStruct(c.shape, c.dtype) for name, c in source.columns.items()}
        super().__init__(np.full(clients, examples), of_one_example(specs))
        self._source, self._owners, self._seed = source, np.flatnonzero(source.sizes), seed

    def make(self, client: int) -> Mapping[str, np.ndarray]:
        owner = self._owners[client % len(self._owners)]
        start, size = int(self._source.offsets[owner]), int(self._source.sizes[owner])
        generator = keys.host_generator((self._seed,), _REDRAW, client)
        drawn = int(self.sizes[client])
        rows = start + generator.choice(size, drawn, replace=drawn > size)
        return {name: np.asarray(column)[rows] for name, column in self._source.columns.items()}
