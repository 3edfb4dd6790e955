"""A population with canary clients at its end."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import jax
import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data import ClientData, ClientSource, Federated
from fedjax_sim.data.client_source import Clients, of_one_example


def add_canaries(data: Clients, count: int) -> tuple[Clients, int]:
    """A population with ``count`` more clients at its end, each with a copy of one client's first example, which it will not use.

    Args:
      data: the clients that train, as a simulation takes them: ``ClientData`` in memory gives the same; what lies in files or is
        made when it is wanted gives a ``ClientSource`` that reads on from it.
      count: how many canaries join them. Where clients have groups (HeteroFL), ``groups`` needs a name for each of them, too.

    Returns:
      The larger population, and the position of the first canary.

    Raises:
      TypeError: data that a simulation does not take either.
      ValueError: data without an example.

    Example:
      >>> import fedjax_sim as fs
      >>> from fedjax_sim.privacy import audits
      >>> data = fs.data.load("digits", clients=20, alpha=1.0, seed=0)
      >>> population, first = audits.add_canaries(data.train, 30)
      >>> population.num_clients, first
      (50, 20)
      >>> audits.add_canaries(fs.data.glyphs(clients=1_000_000).train, 30)[0].num_clients  # none is drawn
      1000030
    """
    checks.positive_int("count", count)
    if not isinstance(data, ClientData | ClientSource):
        fix = "pass its part that trains, data.train" if isinstance(data, Federated) else "such as data.train"
        raise TypeError(f"data is {type(data).__name__}, expected ClientData or a ClientSource: {fix}.")
    if data.num_examples == 0:
        raise ValueError("data has no example that a canary could hold.")
    if isinstance(data, ClientSource) or any(isinstance(x, np.memmap) for x in data.columns.values()):
        return Joined(data, count), data.num_clients
    columns = {
        name: np.concatenate([column, np.repeat(column[:1], count, axis=0)])
        for name, column in data.columns.items()
    }
    offsets = np.concatenate([data.offsets, data.num_examples + 1 + np.arange(count)])
    return ClientData(columns, offsets, _ids(data.ids, count)), data.num_clients


class Joined(ClientSource):
    """Other clients, read or made when they are wanted, and canaries behind them; holds no example but the canaries'."""

    def __init__(self, others: Clients, count: int):
        specs = {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in others.columns.items()}
        sizes = np.concatenate([others.sizes, np.ones(count, np.int64)])
        super().__init__(sizes, of_one_example(specs), _ids(others.ids, count))
        self._others = others

    @functools.cached_property
    def _example(self) -> dict[str, np.ndarray]:
        owner = int(np.argmax(self._others.sizes > 0))
        return {name: np.array(column[:1]) for name, column in self._of(owner).items()}

    def make(self, client: int) -> Mapping[str, np.ndarray]:
        return self._of(client) if client < self._others.num_clients else self._example

    def _of(self, position: int) -> Mapping[str, np.ndarray]:
        # A source's own checks come with the whole; those of clients in files are the simulation's.
        if isinstance(self._others, ClientSource):
            return self._others.make(position)
        rows = slice(*self._others.offsets[position : position + 2])
        return {name: np.asarray(column[rows]) for name, column in self._others.columns.items()}


def _ids(ids: np.ndarray, count: int) -> np.ndarray:
    """The ids of the others and new ones of the same kind."""
    if ids.dtype.kind == "U":
        more = np.array([f"canary-{number}" for number in range(count)])
    else:
        more = ids.max() + 1 + np.arange(count, dtype=ids.dtype)
    return np.concatenate([ids, more])
