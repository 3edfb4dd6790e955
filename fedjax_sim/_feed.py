"""Where a chunk of rounds has its examples from: all of them lie on the devices, or those of its cohorts come along."""

from __future__ import annotations

import abc
import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from fedjax_sim.data import ClientData
from fedjax_sim.data.client_source import Clients, ClientSource
from fedjax_sim.data.plans import Plan, Planner

Place = Callable[[Mapping[str, np.ndarray]], Any]
"""An engine's ``place_columns``."""


class Feed(abc.ABC):
    """Plans chunks of rounds and brings their examples to the devices."""

    @abc.abstractmethod
    def chunk(
        self, planner: Planner, place: Place, roots, first_round: int, rounds: int, room: int
    ) -> tuple[Plan, Any]:
        """A plan of at most ``rounds`` rounds, at least one, and the columns that it refers to."""

    @abc.abstractmethod
    def of(self, planner: Planner, place: Place, clients: np.ndarray) -> tuple[Planner, Any]:
        """A planner that knows where the examples of these clients begin in the columns beside it."""


class Resident(Feed):
    """All examples are on the devices, from the first chunk on."""

    def __init__(self, data: ClientData):
        self._data, self._placed = data, None

    def _columns(self, place: Place) -> Any:
        if self._placed is None:
            self._placed = place(self._data.columns)
        return self._placed

    def chunk(
        self, planner: Planner, place: Place, roots, first_round: int, rounds: int, room: int
    ) -> tuple[Plan, Any]:
        return planner.plan(roots, first_round, rounds, room), self._columns(place)

    def of(self, planner: Planner, place: Place, clients: np.ndarray) -> tuple[Planner, Any]:
        return planner, self._columns(place)


class Streamed(Feed):
    """The examples of the chunk's cohorts alone, in arrays whose length is the same for every chunk.

    They are gathered while the devices work on the chunk before. A chunk whose cohorts have more examples than there is
    room for is cut short: there is always room for any single round.
    """

    def __init__(self, data: Clients, check: Callable[[Mapping[str, Any]], None] | None):
        self._data, self._check = data, check
        self._capacity: dict[tuple[int, int], int] = {}

    def chunk(
        self, planner: Planner, place: Place, roots, first_round: int, rounds: int, room: int
    ) -> tuple[Plan, Any]:
        key = (planner.replicas, room)
        if key not in self._capacity:
            self._capacity[key] = capacity(planner, room)
        while True:
            plan = planner.plan(roots, first_round, rounds, room)
            clients = members(plan)
            rows = int(planner.sizes[clients].sum())
            if rows <= self._capacity[key] or rounds == 1:
                break
            rounds = -(-rounds // 2)
        columns = {
            name: np.zeros((self._capacity[key], *spec.shape[1:]), spec.dtype)
            for name, spec in self._data.columns.items()
        }
        self._data.read(clients, columns)
        if self._check is not None and rows:
            self._check({name: column[:rows] for name, column in columns.items()})
        return moved(plan, clients, planner.sizes), place(columns)

    def of(self, planner: Planner, place: Place, clients: np.ndarray) -> tuple[Planner, Any]:
        part = self._data.select(clients).in_memory
        starts = np.zeros(planner.population, np.int64)
        starts[clients] = part.offsets[:-1]
        return dataclasses.replace(planner, starts=starts), place(part.columns)


def feed_of(data: Clients, stream: bool | None, check: Callable[[Mapping[str, Any]], None] | None) -> Feed:
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
    """Memory of this machine, where it can be known."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
