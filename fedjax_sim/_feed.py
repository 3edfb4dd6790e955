"""Where a chunk of rounds has its examples from: all of them lie on the devices, or those of its cohorts come along."""

from __future__ import annotations

import abc
import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim._background import Background
from fedjax_sim._src.host_memory import HostArray, copies_from_pinned, host_array
from fedjax_sim._src.limits import process_bytes
from fedjax_sim.data import ClientData
from fedjax_sim.data._blocks import Check, Examples, Held, Made, pieces
from fedjax_sim.data.client_source import Clients, ClientSource
from fedjax_sim.data.plans import Plan, Planner

Place = Callable[[Mapping[str, Any]], Any]
"""An engine's ``place_columns``."""

PIECE_BYTES = 1 << 26
"""What is read in one go from data in memory or in a mapped file: between two pieces, gathering can be ended."""


class Chunks(contextlib.AbstractContextManager):
    """The chunks of one run, one after the other; a context, at whose end nothing of it goes on.

    Args:
      planner: of the run.
      place: brings columns to the engine's devices.
      roots: the words of each replica's root key.
      room: rounds that a plan has room for.
    """

    def __init__(self, planner: Planner, place: Place, roots, room: int):
        self._planner, self._place, self._roots, self._room = planner, place, roots, room

    @abc.abstractmethod
    def ask(self, first_round: int, rounds: int) -> None:
        """Begins with the next chunk, of at most ``rounds`` rounds, at least one.

        The chunk that was taken last may be under way yet; the one before it must have ended: its examples are written over.
        """

    @abc.abstractmethod
    def take(self) -> tuple[Plan, Any]:
        """What was asked for: a plan and the columns that it refers to. Raises what went wrong since."""


class Feed(abc.ABC):
    """Plans chunks of rounds and brings their examples to the devices.

    Attributes:
      stays: whether a chunk's examples stay what they are after the next chunk was asked for.
    """

    stays = False

    @abc.abstractmethod
    def chunks(self, planner: Planner, place: Place, roots, room: int) -> Chunks:
        """The chunks of a run."""

    @abc.abstractmethod
    def examples(self, place: Place, clients: np.ndarray, block: int) -> Examples:
        """The training examples of these clients, at most ``block`` of them at a time."""


class Resident(Feed):
    """All examples are on the devices, from the first chunk on."""

    stays = True

    def __init__(self, data: ClientData):
        self._data, self._placed = data, None

    def columns(self, place: Place) -> Any:
        """The data's columns on the devices."""
        if self._placed is None:
            self._placed = place(self._data.columns)
        return self._placed

    def chunks(self, planner: Planner, place: Place, roots, room: int) -> Chunks:
        return _OfResident(self, planner, place, roots, room)

    def examples(self, place: Place, clients: np.ndarray, block: int) -> Examples:
        return Held(self.columns(place), self._data.offsets[:-1])


class _OfResident(Chunks):
    def __init__(self, feed: Resident, *arguments):
        super().__init__(*arguments)
        self._feed = feed

    def ask(self, first_round: int, rounds: int) -> None:
        self._plan = self._planner.plan(self._roots, first_round, rounds, self._room)

    def take(self) -> tuple[Plan, Any]:
        return self._plan, self._feed.columns(self._place)

    def __exit__(self, *exception: object) -> None:
        pass


class Streamed(Feed):
    """The examples of the chunk's cohorts alone, in arrays whose length is the same for every chunk.

    A thread gathers them while the devices work on the chunk before. A chunk whose cohorts have more examples than there is
    room for is cut short: there is always room for any single round.
    """

    def __init__(self, data: Clients, check: Check | None):
        self.data, self.check = data, check
        self._capacity: dict[tuple[int, int], int] = {}

    def capacity(self, planner: Planner, room: int) -> int:
        """Rows of a chunk's columns."""
        key = (planner.replicas, room)
        if key not in self._capacity:
            self._capacity[key] = capacity(planner, room)
        return self._capacity[key]

    def chunks(self, planner: Planner, place: Place, roots, room: int) -> Chunks:
        return _OfStreamed(self, planner, place, roots, room)

    def examples(self, place: Place, clients: np.ndarray, block: int) -> Examples:
        return Made(self.data, clients, block, self.check)


class _OfStreamed(Chunks):
    """Two sets of host arrays: a thread fills one while the devices may read the other, where it lies or by a copy."""

    def __init__(self, feed: Streamed, *arguments):
        super().__init__(*arguments)
        self._feed, self._rows = feed, feed.capacity(self._planner, self._room)
        self._background = Background("fedjax_sim: next examples")
        self._sets: list[dict[str, HostArray]] = [{}, {}]
        row = max(1, sum(int(np.prod(c.shape[1:])) * c.dtype.itemsize for c in feed.data.columns.values()))
        # Somebody's `make` may take its time: between any two clients it can be ended.
        self._piece = 1 if isinstance(feed.data, ClientSource) else max(1, PIECE_BYTES // row)

    def ask(self, first_round: int, rounds: int) -> None:
        while True:
            plan = self._planner.plan(self._roots, first_round, rounds, self._room)
            clients = members(plan)
            if int(self._planner.sizes[clients].sum()) <= self._rows or rounds == 1:
                break
            rounds = -(-rounds // 2)
        self._plan = moved(plan, clients, self._planner.sizes)
        self._sets.reverse()
        self._background.start(functools.partial(self._gather, clients, self._sets[0]))

    def take(self) -> tuple[Plan, Any]:
        return self._plan, self._background.result()

    def __exit__(self, *exception: object) -> None:
        self._background.__exit__(*exception)

    def _gather(self, clients: np.ndarray, arrays: dict[str, HostArray], ended: Callable[[], bool]) -> Any:
        """The columns of clients on the devices, through host arrays that are made the first time."""
        data, sizes = self._feed.data, self._planner.sizes[clients]
        if not arrays:
            pinned = copies_from_pinned()
            for name, spec in data.columns.items():
                arrays[name] = host_array((self._rows, *spec.shape[1:]), spec.dtype, pinned)
        rows = 0
        for part in pieces(sizes, self._piece):
            if ended():
                return None
            data.read(clients[part], {name: column.array[rows:] for name, column in arrays.items()})
            rows += int(sizes[part].sum())
        if self._feed.check is not None and rows:
            self._feed.check({name: column.array[:rows] for name, column in arrays.items()})
        # A transfer that fails does so here, and not in the middle of a program.
        return jax.block_until_ready(self._place({name: column.source() for name, column in arrays.items()}))


def feed_of(data: Clients, stream: bool | None, check: Check | None) -> Feed:
    """Examples come along with their chunks where they must, where that was asked for, or where the data would fill more than
    half of a device; without ``stream`` given.

    Raises:
      ValueError: the task's check refuses resident data, or a source is to be resident.
    """
    if isinstance(data, ClientSource):
        if stream is False:
            raise ValueError(
                f"stream is False, but {data!r} holds no examples that could lie on a device: leave it out, or take some "
                "clients into memory with data.select(clients).in_memory."
            )
        return Streamed(data, check)
    memory = device_bytes()
    if stream or (stream is None and memory is not None and data.nbytes > memory / 2):
        return Streamed(data, check)
    if check is not None:
        check(data.columns)
    return Resident(data)


def capacity(planner: Planner, rounds: int) -> int:
    """Rows of a chunk: a quarter more than are expected, room for the worst single round, no more than the worst chunk."""
    sizes = np.sort(planner.sizes)[::-1]
    drawn = planner.cohort.cap(planner.population) * planner.replicas
    likely = 1.25 * rounds * planner.replicas * planner.cohort.expected(planner.population) * sizes.mean()
    return max(1, int(sizes[:drawn].sum()), min(int(likely), int(sizes[: drawn * rounds].sum())))


def members(plan: Plan) -> np.ndarray:
    """Clients that take part in a plan's rounds, ``int64[clients]``, ascending."""
    found = [queue.entries.client[turns_of_queue(queue)] for queue in plan.queues]
    return np.unique(np.concatenate(found)).astype(np.int64)


def moved(plan: Plan, clients: np.ndarray, sizes: np.ndarray) -> Plan:
    """The plan for columns that hold these clients' examples alone, one client after the other."""
    if not len(clients):
        return plan
    starts = np.cumsum(sizes[clients]) - sizes[clients]
    queues = []
    for queue in plan.queues:
        place = np.minimum(np.searchsorted(clients, queue.entries.client), len(clients) - 1)
        start = np.where(turns_of_queue(queue), starts[place], 0).astype(np.int32)
        queues.append(queue._replace(entries=queue.entries._replace(start=start)))
    return plan._replace(queues=tuple(queues))


def turns_of_queue(queue) -> np.ndarray:
    """``bool[rounds, devices, cap]``: which entries are turns."""
    return np.arange(queue.entries.client.shape[-1]) < queue.count[..., None]


def device_bytes() -> int | None:
    """Memory of a device, where it can be known: an accelerator's own, or this machine's."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return host_bytes()
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit")


def host_bytes() -> int | None:
    """Memory of this machine that the process may use, where it can be known."""
    return process_bytes()
