"""Where the state that clients keep lies: on the devices, in the host's memory, on disk or in a store; a chunk gets its rows."""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._client_folder import scratch_folder
from fedjax_sim._client_layout import RowLayout
from fedjax_sim._client_rows import Opener, moved, row_table
from fedjax_sim._client_store import StoreSpec, StoreTable
from fedjax_sim._feed import device_bytes, host_bytes, turns_of_queue
from fedjax_sim._src import tree
from fedjax_sim.data.plans import Plan, Planner
from fedjax_sim.engines import RoundFn, SimState
from fedjax_sim.engines._problem import keeps_client_state
from fedjax_sim.engines._state import ClientTable

Where = Literal["device", "host", "disk"] | Path | StoreSpec
"""A folder is for a table on disk."""

_NOBODY = ClientTable((), (), ())
_PIECE = 1 << 16


class ClientStates(abc.ABC):
    """Makes the client table of a state, and brings it to the devices for a chunk of rounds.

    Attributes:
      rows: of the table; equal shares for the devices.
      rows_at_first: that ``engines._problem.initialiser`` makes.
      axis: of the clients; that of replicas stands before it.
      opener: of tables, if they lie outside of memory.
      waits: whether ``back`` waits for the devices.
    """

    opener: Opener | None = None
    waits = True

    def __init__(self, rows: int, rows_at_first: int, replicated: bool):
        self.rows, self.rows_at_first, self.axis = rows, rows_at_first, int(replicated)

    @abc.abstractmethod
    def initial(self, state: SimState) -> SimState:
        """A state from ``initialiser`` with rows for everybody."""

    @abc.abstractmethod
    def start(self, rounds_fn: RoundFn, state: SimState) -> SimState:
        """A copy of a state, which a run may change; ``state`` may be of another mesh, and its table anywhere."""

    @abc.abstractmethod
    def lend(self, rounds_fn: RoundFn, state: SimState, plan: Plan) -> tuple[SimState, Plan, Any]:
        """A state and a plan for the devices, for one chunk, and what ``back`` has to know; consumes ``state``."""

    @abc.abstractmethod
    def back(self, state: SimState, lent: Any) -> SimState:
        """The whole state after the chunk, from what the devices made of it."""

    def snapshot(self, state: SimState) -> SimState:
        """A copy of the whole state between two chunks, which stays valid."""
        return jax.tree.map(lambda x: x.copy(), state)

    def rounds(self, longest: int) -> int:
        """Rounds of a chunk, at most ``longest``."""
        return longest

    def fitted(self, state: SimState) -> SimState:
        """The state with a table of as many rows as the devices share evenly: one from another mesh fits, too."""

        return dataclasses.replace(state, clients=jax.tree.map(self._fit, state.clients))

    def _fit(self, x: Any) -> Any:
        missing = self.rows - x.shape[self.axis]
        if missing > 0:
            pad = jnp.pad if isinstance(x, jax.Array) else np.pad
            return pad(x, [(0, missing if axis == self.axis else 0) for axis in range(x.ndim)])
        return x[self._at(slice(None), slice(self.rows))] if missing else x

    def _at(self, replica, client) -> tuple:
        """Index of clients of replicas in a leaf of the table."""
        return (replica, client) if self.axis else (client,)


class OnDevice(ClientStates):
    """The whole table is on the devices."""

    waits = False

    def initial(self, state: SimState) -> SimState:
        return state

    def start(self, rounds_fn: RoundFn, state: SimState) -> SimState:
        return rounds_fn.place_state(self.fitted(state))

    def lend(self, rounds_fn: RoundFn, state: SimState, plan: Plan) -> tuple[SimState, Plan, Any]:
        return state, plan, None

    def back(self, state: SimState, lent: Any) -> SimState:
        return state


class Members(NamedTuple):
    """The clients of a chunk and their rows in its table, ``int64[members]`` each."""

    replica: np.ndarray
    client: np.ndarray
    row: np.ndarray


class OnHost(ClientStates):
    """The whole table is in numpy arrays; the devices have the rows of a chunk's clients, one after the other.

    A chunk's table has the same shape for every chunk. Its rows are gathered when the chunk before has ended, which may have
    changed them, and are written back when it ends itself, into a table that no one else has: a run copies it when it starts.

    Args:
      planner: of the simulation.
      replicated: the state has an axis of replicas.
      row_bytes: of one client's row.
    """

    def __init__(self, planner: Planner, replicated: bool, row_bytes: int):
        super().__init__(planner.slots * planner.devices, 1, replicated)
        self._planner, self._row_bytes = planner, row_bytes

    def capacity(self, rounds: int) -> int:
        """Rows on a device for a chunk of so many rounds: its most clients of one replica."""
        return min(self._planner.slots, max(1, self._planner.cohort.cap(self._planner.population)) * rounds)

    def rounds(self, longest: int) -> int:
        """As many as a quarter of a device surely has rows for; at least one."""
        memory, row = device_bytes(), self._row_bytes * self._planner.replicas
        if memory is None:
            return longest
        while longest > 1 and row * self.capacity(longest) > memory / 4:
            longest -= 1
        return longest

    def initial(self, state: SimState) -> SimState:
        """Rows of zeros, which most are, take no memory before they are written."""

        def repeated(x):
            row = np.asarray(x)
            shape = (*row.shape[: self.axis], self.rows, *row.shape[self.axis + 1 :])
            zero = row.tobytes().count(0) == row.nbytes
            return np.zeros(shape, row.dtype) if zero else np.broadcast_to(row, shape).copy()

        return dataclasses.replace(state, clients=jax.tree.map(repeated, state.clients))

    def fitted(self, state: SimState) -> SimState:
        table = jax.tree.map(lambda x: self._fit(np.asarray(x)), state.clients)
        return dataclasses.replace(state, clients=table)

    def start(self, rounds_fn: RoundFn, state: SimState) -> SimState:
        placed = rounds_fn.place_state(dataclasses.replace(state, clients=_NOBODY))
        return dataclasses.replace(placed, clients=self._copy(state.clients))

    def snapshot(self, state: SimState) -> SimState:
        rest = super().snapshot(dataclasses.replace(state, clients=_NOBODY))
        return dataclasses.replace(rest, clients=self._copy(state.clients))

    def lend(
        self, rounds_fn: RoundFn, state: SimState, plan: Plan
    ) -> tuple[SimState, Plan, tuple[ClientTable, Members]]:
        room, replicas = plan.clients.shape
        capacity = self.capacity(room)
        plan, members = compacted(plan, self._planner.population, capacity)
        lead = (replicas,) if self.axis else ()

        def room_for(x):
            return np.zeros((*lead, self._planner.devices * capacity, *x.shape[self.axis + 1 :]), x.dtype)

        rows = jax.tree.map(room_for, state.clients)
        self._gather(state.clients, members, rows)
        lent = state.clients, members
        return dataclasses.replace(state, clients=rounds_fn.place_clients(rows)), plan, lent

    def back(self, state: SimState, lent: tuple[ClientTable, Members]) -> SimState:
        table, members = lent
        self._scatter(table, members, jax.device_get(state.clients))
        return dataclasses.replace(state, clients=table)

    def _copy(self, table: ClientTable) -> ClientTable:
        """Of a table from anywhere, for this mesh."""
        return jax.tree.map(lambda x: copied(self._fit(np.asarray(x))), table)

    def _gather(self, table: ClientTable, members: Members, rows: ClientTable) -> None:
        """Fills the rows of a chunk's table."""

        def take(x, rows):
            rows[self._at(members.replica, members.row)] = x[self._at(members.replica, members.client)]

        jax.tree.map(take, table, rows)

    def _scatter(self, table: ClientTable, members: Members, rows: ClientTable) -> None:
        """Writes them back."""

        def put(x, rows):
            x[self._at(members.replica, members.client)] = rows[self._at(members.replica, members.row)]

        jax.tree.map(put, table, rows)


class Outside(OnHost):
    """The whole table is on disk or in a store, where every run and snapshot has one of its own.

    Args:
      planner: of the simulation.
      replicated: the state has an axis of replicas.
      specs: of the table, without an axis of replicas.
      opener: makes the tables.

    Raises:
      ScratchError: there is no such place, it cannot be written, or not have tables so large.
    """

    def __init__(self, planner: Planner, replicated: bool, specs: ClientTable, opener: Opener):
        layout = RowLayout(specs, 0)
        super().__init__(planner, replicated, layout.row_bytes)
        self.opener = opener
        # A trial, before anything is trained: it takes no space.
        opener(layout.with_rows(self.rows * planner.replicas))

    def initial(self, state: SimState) -> SimState:
        """Rows of zeros, which most are, take no space before they are written."""
        row = jax.tree.map(np.asarray, state.clients)
        if any(x.tobytes().count(0) < x.nbytes for x in jax.tree.leaves(row)):
            shape = lambda x: (*x.shape[: self.axis], self.rows, *x.shape[self.axis + 1 :])  # noqa: E731
            row = jax.tree.map(lambda x: np.broadcast_to(x, shape(x)), row)  # a view
        return dataclasses.replace(state, clients=self._copy(row))

    def fitted(self, state: SimState) -> SimState:
        outside = row_table(state.clients)
        if outside is not None and outside.layout.lead[self.axis] == self.rows:
            return state
        return dataclasses.replace(state, clients=self._copy(state.clients))

    def _copy(self, table: ClientTable) -> ClientTable:
        assert self.opener is not None
        return moved(table, RowLayout(table, self.axis), self.rows, self.opener)

    def _gather(self, table: ClientTable, members: Members, rows: ClientTable) -> None:
        outside = row_table(table)
        assert outside is not None  # start and fitted made it
        for part, places in self._parts(members, outside):
            index, found = self._at(part.replica, part.row), outside.layout.split(outside.gather(places))
            jax.tree.map(lambda x, own, index=index: x.__setitem__(index, own), rows, found)

    def _scatter(self, table: ClientTable, members: Members, rows: ClientTable) -> None:
        outside = row_table(table)
        assert outside is not None
        for part, places in self._parts(members, outside):
            outside.put(places, outside.layout.at(rows, self._at(part.replica, part.row), len(places)))

    def _parts(self, members: Members, outside: StoreTable) -> Iterator[tuple[Members, np.ndarray]]:
        """A piece of the members at a time, and the places of their rows."""
        for start in range(0, len(members.client), outside.layout.piece):
            part = Members(*(x[start : start + outside.layout.piece] for x in members))
            yield part, part.replica * self.rows + part.client


def client_states_of(
    where: Where | None, template: SimState, planner: Planner, replicated: bool
) -> ClientStates:
    """The table is where that was asked for, or in the first of these that surely has room for it.

    A device, if the table fills at most a quarter of it. The host's memory, if it fills at most a quarter, since the table is
    there up to three times: as it was when the run began, as it is, and as a checkpoint is written of it. The disk.

    Args:
      where: ``None`` to decide by size.
      template: specs of a state with all rows, without an axis of replicas.
      planner: of the simulation.
      replicated: states have an axis of replicas.
    """
    if not keeps_client_state(template):
        where = "device"
    table = tree.num_bytes(template.clients)
    if where is None:
        everybody = table * planner.replicas
        on_device, on_host = (
            memory is None or size <= memory / 4
            for size, memory in ((everybody / planner.devices, device_bytes()), (everybody, host_bytes()))
        )
        where = "device" if on_device else "host" if on_host else "disk"
    rows = planner.slots * planner.devices
    if where == "device":
        return OnDevice(rows, rows, replicated)
    if where == "host":
        return OnHost(planner, replicated, table // rows)
    place = scratch_folder() if where == "disk" else where
    return Outside(planner, replicated, template.clients, functools.partial(StoreTable, place))


def copied(array: np.ndarray) -> np.ndarray:
    """A copy that takes no memory where the array is zero, as in rows that nobody has written yet."""
    copy = np.zeros(array.shape, array.dtype)
    source, target = (x.reshape(-1).view(np.uint8) for x in (np.ascontiguousarray(array), copy))
    for start in range(0, len(source), _PIECE):
        piece = source[start : start + _PIECE]
        if piece.any():
            target[start : start + _PIECE] = piece
    return copy


def compacted(plan: Plan, population: int, capacity: int) -> tuple[Plan, Members]:
    """The plan for a table with the plan's clients alone, ``capacity`` rows on a device, and who has which row.

    On each device every replica's clients stand one after the other, ascending.
    """
    devices = plan.queues[0].count.shape[1]
    found = []
    for queue in plan.queues:
        turns = turns_of_queue(queue)
        _, device, _ = np.nonzero(turns)
        replica, client = queue.entries.replica[turns], queue.entries.client[turns]
        found.append((replica.astype(np.int64) * devices + device) * population + client)
    everybody = np.unique(np.concatenate(found))
    part, client = np.divmod(everybody, population)
    slot = np.arange(len(everybody)) - np.searchsorted(part, part)
    queues = []
    for queue, mine in zip(plan.queues, found, strict=True):
        slots = np.zeros_like(queue.entries.slot)
        slots[turns_of_queue(queue)] = slot[np.searchsorted(everybody, mine)]
        queues.append(queue._replace(entries=queue.entries._replace(slot=slots)))
    replica, device = np.divmod(part, devices)
    return plan._replace(queues=tuple(queues)), Members(replica, client, device * capacity + slot)
