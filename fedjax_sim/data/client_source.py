"""Clients whose examples are made or read when they are wanted: more of them than memory holds."""

from __future__ import annotations

import abc
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.data._columns import offsets_of
from fedjax_sim.data._ids import StaticIds, as_ids, look_up
from fedjax_sim.data.client_data import ClientData, positions_of


class ClientSource(abc.ABC):
    """What looks like ``ClientData`` from afar and holds no examples: a simulation asks it for those of the next cohorts.

    Subclasses say who the clients are and write ``make``; the same client must always get the same examples. While a
    simulation trains, ``make`` is called by a thread of the simulation's own, one client at a time; an evaluation or a callback
    may ask for a client at the same moment, from the thread that runs the simulation. What ``make`` raises ends the run where
    its client is wanted, with the client's name beneath it.

    Args:
      sizes: ``int64[clients]``, examples of each client.
      columns: specs ``[...]`` of one example, by name.
      ids: ``[clients]``, unique; 0 to ``clients - 1`` by default.

    Raises:
      TypeError: the ids are neither all integers nor all text.
      ValueError: there is no client, there are more or fewer ids than sizes, or an id comes twice.

    Example:
      >>> import jax, numpy as np, fedjax_sim as fs
      >>> class Counting(fs.data.ClientSource):
      ...     def make(self, client):
      ...         return {"x": np.full(self.sizes[client], client, np.int32)}
      >>> source = Counting(np.array([2, 0, 3]), {"x": jax.ShapeDtypeStruct((), np.int32)})
      >>> source.select([2, 0])
      Selection(2 clients with 5 examples)
      >>> source.select([2, 0]).in_memory.columns["x"]
      array([2, 2, 2, 0, 0], dtype=int32)
    """

    def __init__(self, sizes: np.ndarray, columns: Mapping[str, jax.ShapeDtypeStruct], ids: Any = None):
        self.sizes = np.asarray(sizes, np.int64)
        self.offsets = offsets_of(self.sizes)
        named = np.arange(len(self.sizes)) if ids is None else as_ids("ids", ids)
        if len(named) != len(self.sizes):
            raise ValueError(
                f"ids has {len(named)} entries for {len(self.sizes)} sizes, expected one for each client."
            )
        self.ids = StaticIds(named).values
        self.columns = {
            name: jax.ShapeDtypeStruct((self.num_examples, *spec.shape), spec.dtype)
            for name, spec in columns.items()
        }

    @abc.abstractmethod
    def make(self, client: int) -> Mapping[str, np.ndarray]:
        """The columns ``[examples of the client, ...]`` of the client at this position; called from more than one thread."""

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

    def index(self, client: int | str) -> int:
        """Position of the client with this id; errors as for ``ClientData.index``."""
        return int(look_up(self.ids, as_ids("ids", [client]))[0])

    def client(self, client: int | str) -> dict[str, np.ndarray]:
        """One client's columns; arguments and errors as for ``ClientData.client``, and as for ``read``."""
        return self._made(int(self.positions([client])[0]))

    def select(self, clients: Any) -> ClientSource:
        """The given clients, in the given order, each still made when it is wanted; ``select(clients).in_memory`` makes them.

        Arguments and errors as for ``ClientData.select``.
        """
        return Selection(self, self.positions(clients))

    @functools.cached_property
    def in_memory(self) -> ClientData:
        """All clients with all examples, made once; of a large population, ``select`` some first."""
        columns = {name: np.empty(spec.shape, spec.dtype) for name, spec in self.columns.items()}
        self.read(np.arange(self.num_clients), columns)
        return ClientData(columns, self.offsets, self.ids)

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
            size = int(self.sizes[position])
            for name, column in self._made(int(position)).items():
                out[name][place : place + size] = column
            place += size

    def _made(self, position: int) -> dict[str, np.ndarray]:
        """What ``make`` gives, compared with what was announced."""
        try:
            made = self.make(position)
        except Exception as error:
            note = f"while the examples of client {self.ids[position].item()!r} were made"
            if note not in getattr(
                error, "__notes__", ()
            ):  # of a part of a source, the source may have said so
                error.add_note(note)
            raise
        size, columns = int(self.sizes[position]), {}
        for name, spec in self.columns.items():
            if name not in made:
                raise ValueError(
                    f"client {self.ids[position].item()!r} has the columns {', '.join(made) or 'none'}, expected {name!r} as well."
                )
            columns[name] = column = np.asarray(made[name])
            if column.shape != (size, *spec.shape[1:]) or column.dtype != spec.dtype:
                raise ValueError(
                    f"client {self.ids[position].item()!r} has {column.dtype}{list(column.shape)} in column {name!r}, "
                    f"expected {spec.dtype}{[size, *spec.shape[1:]]}."
                )
        return columns

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.num_clients} clients with {self.num_examples} examples)"


class Selection(ClientSource):
    """Clients of another source: what ``ClientSource.select`` gives. Holds where they are, and no examples."""

    def __init__(self, source: ClientSource, positions: np.ndarray):
        super().__init__(source.sizes[positions], of_one_example(source.columns), source.ids[positions])
        self._source, self._positions = source, positions

    def make(self, client: int) -> Mapping[str, np.ndarray]:
        return self._source.make(int(self._positions[client]))

    def select(self, clients: Any) -> ClientSource:
        # Of the source itself: however often one selects, a client is one step away.
        return Selection(self._source, self._positions[self.positions(clients)])


def of_one_example(columns: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.ShapeDtypeStruct]:
    """Specs ``[...]`` of one example, from those ``[examples, ...]`` of all."""
    return {name: jax.ShapeDtypeStruct(spec.shape[1:], spec.dtype) for name, spec in columns.items()}


Clients = ClientData | ClientSource
"""What a simulation trains on."""
