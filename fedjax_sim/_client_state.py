"""Where the state that clients keep lies: on the devices, or in the host's memory, and the rows of a chunk come along."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._feed import device_bytes, turns_of_queue
from fedjax_sim._src import tree
from fedjax_sim.data.plans import Plan, Planner
from fedjax_sim.engines import RoundFn, SimState
from fedjax_sim.engines._problem import keeps_client_state
from fedjax_sim.engines._state import ClientTable

Where = Literal["device", "host"]

_NOBODY = ClientTable((), (), ())
_PIECE = 1 << 16


class ClientStates(abc.ABC):
    """Makes the client table of a state, and brings it to the devices for a chunk of rounds.

    Attributes:
      rows: of the table; equal shares for the devices.
      rows_at_first: that ``engines._problem.initialiser`` makes.
      axis: of the clients; that of replicas stands before it.
    """

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

    def rounds(self, longest: int) -> int:
        """Rounds of a chunk, at most ``longest``."""
        return longest

    def fitted(self, state: SimState) -> SimState:
        """The state with a table of as many rows as the devices share evenly: one from another mesh fits, too."""

        def fit(x):
            missing = self.rows - x.shape[self.axis]
            if missing > 0:
                pad = jnp.pad if isinstance(x, jax.Array) else np.pad
                return pad(x, [(0, missing if axis == self.axis else 0) for axis in range(x.ndim)])
            return x[self._at(slice(None), slice(self.rows))] if missing else x

        return dataclasses.replace(state, clients=jax.tree.map(fit, state.clients))

    def _at(self, replica, client) -> tuple:
        """Index of clients of replicas in a leaf of the table."""
        return (replica, client) if self.axis else (client,)


class OnDevice(ClientStates):
    """The whole table is on the devices."""

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
        return super().fitted(dataclasses.replace(state, clients=jax.tree.map(np.asarray, state.clients)))

    def start(self, rounds_fn: RoundFn, state: SimState) -> SimState:
        table = self.fitted(state).clients
        placed = rounds_fn.place_state(dataclasses.replace(state, clients=_NOBODY))
        return dataclasses.replace(placed, clients=jax.tree.map(copied, table))

    def lend(
        self, rounds_fn: RoundFn, state: SimState, plan: Plan
    ) -> tuple[SimState, Plan, tuple[ClientTable, Members]]:
        room, replicas = plan.clients.shape
        capacity = self.capacity(room)
        plan, members = compacted(plan, self._planner.population, capacity)
        lead = (replicas,) if self.axis else ()

        def gathered(x):
            rows = np.zeros((*lead, self._planner.devices * capacity, *x.shape[self.axis + 1 :]), x.dtype)
            rows[self._at(members.replica, members.row)] = x[self._at(members.replica, members.client)]
            return rows

        rows = rounds_fn.place_clients(jax.tree.map(gathered, state.clients))
        return dataclasses.replace(state, clients=rows), plan, (state.clients, members)

    def back(self, state: SimState, lent: tuple[ClientTable, Members]) -> SimState:
        table, members = lent

        def put(x, rows):
            x[self._at(members.replica, members.client)] = rows[self._at(members.replica, members.row)]

        jax.tree.map(put, table, jax.device_get(state.clients))
        return dataclasses.replace(state, clients=table)


def client_states_of(
    where: Where | None, template: SimState, planner: Planner, replicated: bool
) -> ClientStates:
    """The table is in the host's memory where that was asked for, or where it would fill more than a quarter of a device.

    Args:
      where: ``None`` to decide by size.
      template: specs of a state with all rows, without an axis of replicas.
      planner: of the simulation.
      replicated: states have an axis of replicas.
    """
    table = tree.num_bytes(template.clients)
    on_device, memory = table * planner.replicas / planner.devices, device_bytes()
    if where is None:
        where = "host" if memory is not None and on_device > memory / 4 else "device"
    rows = planner.slots * planner.devices
    if where == "device" or not keeps_client_state(template):
        return OnDevice(rows, rows, replicated)
    return OnHost(planner, replicated, table // rows)


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
