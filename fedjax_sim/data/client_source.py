"""Clients whose examples are made or read when they are wanted: more of them than memory holds."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.data._columns import offsets_of
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data.client_data import ClientData, positions_of


class ClientSource(abc.ABC):
    """What looks like ``ClientData`` from afar and holds no examples: a simulation asks it for those of the next cohorts.

    Subclasses say who the clients are and write ``make``; the same client must always get the same examples.

    Args:
      sizes: ``int64[clients]``, examples of each client.
      columns: specs ``[...]`` of one example, by name.
      ids: ``[clients]``; 0 to ``clients - 1`` by default.

    Example:
      >>> import jax, numpy as np, fedjax_sim as fs
      >>> class Counting(fs.data.ClientSource):
      ...     def make(self, client):
      ...         return {"x": np.full(self.sizes[client], client, np.int32)}
      >>> source = Counting(np.array([2, 0, 3]), {"x": jax.ShapeDtypeStruct((), np.int32)})
      >>> source.select([2, 0]).columns["x"]
      array([2, 2, 2, 0, 0], dtype=int32)
    """

    def __init__(self, sizes: np.ndarray, columns: Mapping[str, jax.ShapeDtypeStruct], ids: Any = None):
        self.sizes = np.asarray(sizes, np.int64)
        self.offsets = offsets_of(self.sizes)
        self.ids = np.arange(len(self.sizes)) if ids is None else as_ids("ids", ids)
        self.columns = {
            name: jax.ShapeDtypeStruct((self.num_examples, *spec.shape), spec.dtype)
            for name, spec in columns.items()
        }

    @abc.abstractmethod
    def make(self, client: int) -> Mapping[str, np.ndarray]:
        """The columns ``[examples of the client, ...]`` of the client at this position."""

    @property
    def num_clients(self) -> int:
        return len(self.sizes)

    @property
    def num_examples(self) -> int:
        return int(self.offsets[-1])

    @property
    def nbytes(self) -> int:
        """Bytes that all examples would take."""
        return sum(
            int(np.prod(spec.shape, dtype=np.int64)) * spec.dtype.itemsize for spec in self.columns.values()
        )

    def positions(self, clients: Any) -> np.ndarray:
        """Positions of the given clients, ``int64[...]``; arguments and errors as for ``ClientData.select``."""
        return positions_of(self.ids, clients)

    def client(self, client: int | str) -> dict[str, np.ndarray]:
        """One client's columns; arguments and errors as for ``ClientData.client``."""
        return dict(self.make(int(self.positions([client])[0])))

    def select(self, clients: Any) -> ClientData:
        """The given clients in memory; arguments and errors as for ``ClientData.select``."""
        positions = self.positions(clients)
        offsets = offsets_of(self.sizes[positions])
        columns = {
            name: np.empty((offsets[-1], *spec.shape[1:]), spec.dtype) for name, spec in self.columns.items()
        }
        self.read(positions, columns)
        return ClientData(columns, offsets, self.ids[positions])

    @functools.cached_property
    def in_memory(self) -> ClientData:
        """All clients with all examples, made once; large populations do not fit."""
        return self.select(np.arange(self.num_clients))

    def read(self, positions: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Writes the examples of clients, one after the other, into the first rows of arrays.

        Args:
          positions: ``int[clients]``.
          out: name to array ``[rows, ...]`` with room for them.

        Raises:
          ValueError: ``make`` gave other columns than were announced; names the client.
        """
        place = 0
        for position in positions:
            made, size = self.make(int(position)), int(self.sizes[position])
            for name, spec in self.columns.items():
                column = np.asarray(made[name])
                if column.shape != (size, *spec.shape[1:]) or column.dtype != spec.dtype:
                    raise ValueError(
                        f"client {self.ids[position].item()!r} has {column.dtype}{list(column.shape)} in column {name!r}, "
                        f"expected {spec.dtype}{[size, *spec.shape[1:]]}."
                    )
                out[name][place : place + size] = column
            place += size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_clients} clients with {self.num_examples} examples)"


Clients = ClientData | ClientSource
"""What a simulation trains on."""
