"""Plans: which client trains in which device's queue, for how many steps, made on the host as plain integer arrays.

A plan covers a chunk of rounds. Its arrays have static shapes (the caps) and traced contents, so one compiled program
serves every cohort and also the last, shorter chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._src import keys
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.data.local_work import LocalWork


class Entry(NamedTuple):
    """One client's turn in a round; every field ``int32``, a numpy array in a plan, traced inside the program.

    Attributes:
      client: index in the population.
      slot: row of the client-state table on the entry's device.
      draw: how-manieth time the client stands in this cohort.
      replica: which run of a sweep it belongs to.
      version: how many rounds ago its broadcast was made (0 when synchronous).
      start: first row of the client's examples in the flat columns.
      examples: how many it has.
      steps: local steps in each stage, with a last axis ``[stages]``.
    """

    client: Any
    slot: Any
    draw: Any
    replica: Any
    version: Any
    start: Any
    examples: Any
    steps: Any


class Queue(NamedTuple):
    """The turns of one group of clients, longest first.

    Attributes:
      entries: arrays ``[rounds, devices, cap]``; what lies beyond ``count`` is zero.
      count: ``int32[rounds, devices]``.
      rows: explicit rows per stage, ``int32[rounds, devices, cap, steps, batch_size]`` or ``None``.
    """

    entries: Entry
    count: np.ndarray
    rows: tuple


class Plan(NamedTuple):
    """Cohorts of a chunk of rounds.

    Attributes:
      rounds: ``int32[]``, how many of the planned rounds to run, at most the first axis of the arrays.
      clients: ``int32[rounds, replicas]``, cohort members with at least one example.
      queues: one per group.
    """

    rounds: Any
    clients: Any
    queues: tuple[Queue, ...]


@dataclasses.dataclass(frozen=True)
class Planner:
    """Makes plans. ``sizes`` and ``starts`` are the population's; the rest is the simulation's configuration.

    Attributes:
      sizes: ``int64[population]``, examples per client.
      starts: ``int64[population]``, first row of each.
      cohort: the sampler.
      works: local work per stage.
      group: ``int64[population]``, group of each client.
      groups: number of groups.
      replicas: runs in the program.
      devices: length of the mesh axis.
      homes: clients keep state, which lives on a home device: client ``c`` on device ``c // ceil(population / devices)``.
    """

    sizes: np.ndarray
    starts: np.ndarray
    cohort: Cohort
    works: tuple[LocalWork, ...]
    group: np.ndarray
    groups: int = 1
    replicas: int = 1
    devices: int = 1
    homes: bool = False

    @property
    def population(self) -> int:
        return len(self.sizes)

    @property
    def slots(self) -> int:
        """Rows of the client-state table on one device."""
        return -(-self.population // self.devices)

    def queue_cap(self, group: int) -> int:
        """Entries that one device's queue of a group must have room for in the worst cohort."""
        cohort = self.cohort.cap(self.population)
        repeats = self.cohort.sampling == "with_replacement"
        members = cohort if repeats else min(cohort, int(np.sum(self.group == group)))
        total = max(members, 1) * self.replicas
        if not self.homes:
            return -(-total // self.devices)
        return min(max(members, 1), self.slots) * self.replicas

    def plan(self, roots: Sequence[tuple[int, ...]], first_round: int, rounds: int, room: int) -> Plan:
        """Plans ``rounds`` rounds from ``first_round`` on, in arrays with room for ``room``.

        ``roots`` are the words of each replica's root key: cohorts depend on (root, round) alone.
        """
        queues = [self._empty_queue(group, room) for group in range(self.groups)]
        came = np.zeros((room, self.replicas), np.int32)
        for index in range(rounds):
            clients, draw, replica = self.cohorts(roots, first_round + index)
            occupied = self.sizes[clients] > 0
            came[index] = np.bincount(replica[occupied], minlength=self.replicas)
            for group, queue in enumerate(queues):
                mine = self.group[clients] == group
                turns = (clients[mine], draw[mine], replica[mine])
                self._fill(queue, index, *turns, roots, first_round + index)
        return Plan(np.int32(rounds), came, tuple(queues))

    def cohorts(self, roots, round_: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Who is drawn in a round: clients, how-manieth draw, replica; ``int64[drawn]`` each."""
        clients, draws, replicas = [], [], []
        for replica, root in enumerate(roots):
            key_round = self.cohort.key_round
            keyed = round_ if key_round is None else key_round(round_, self.population)
            generator = keys.host_generator(root, keys.COHORT, keyed)
            drawn = np.asarray(self.cohort.sample(generator, round_, self.population), np.int64)
            clients.append(drawn)
            draws.append(_draws(drawn))
            replicas.append(np.full(len(drawn), replica, np.int64))
        return np.concatenate(clients), np.concatenate(draws), np.concatenate(replicas)

    def _empty_queue(self, group: int, room: int) -> Queue:
        shape = (room, self.devices, self.queue_cap(group))
        fields = {name: np.zeros(shape, np.int32) for name in Entry._fields if name != "steps"}
        entries = Entry(**fields, steps=np.zeros((*shape, len(self.works)), np.int32))
        rows = tuple(
            None
            if work.rows is None
            else np.full((*shape, work.explicit_steps, work.batch_size), -1, np.int32)
            for work in self.works
        )
        return Queue(entries, np.zeros(shape[:2], np.int32), rows)

    def _fill(self, queue: Queue, index: int, clients, draw, replica, roots, round_: int) -> None:
        sizes = self.sizes[clients]
        steps = np.stack([work.steps(sizes) for work in self.works], axis=-1)
        explicit = self._explicit_rows(clients, draw, replica, roots, round_, steps)
        # Longest first: the queue's end is then made of short turns, and lanes run dry together.
        order = np.argsort(-steps.sum(axis=-1), kind="stable")
        if self.homes:
            device = clients // self.slots
        else:
            # Dealt like cards, forth and back, so that every device gets its share of the long turns.
            turn, place = np.divmod(np.arange(len(clients)), self.devices)
            device = np.empty(len(clients), np.int64)
            device[order] = np.where(turn % 2 == 0, place, self.devices - 1 - place)
        for d in range(self.devices):
            mine = order[device[order] == d]
            n = len(mine)
            queue.count[index, d] = n
            entries = queue.entries
            entries.client[index, d, :n] = clients[mine]
            entries.slot[index, d, :n] = clients[mine] - d * self.slots if self.homes else clients[mine]
            entries.draw[index, d, :n] = draw[mine]
            entries.replica[index, d, :n] = replica[mine]
            entries.start[index, d, :n] = self.starts[clients[mine]]
            entries.examples[index, d, :n] = sizes[mine]
            entries.steps[index, d, :n] = steps[mine]
            for rows, values in zip(queue.rows, explicit, strict=True):
                if rows is not None:
                    rows[index, d, :n] = values[mine]

    def _explicit_rows(self, clients, draw, replica, roots, round_: int, steps):
        """Rows per stage from the user's functions; also writes how many steps they really make."""
        result = []
        for stage, work in enumerate(self.works):
            if work.rows is None:
                result.append(None)
                continue
            values = np.full((len(clients), work.explicit_steps, work.batch_size), -1, np.int32)
            for turn, client in enumerate(clients):
                generator = keys.host_generator(
                    roots[replica[turn]], keys.CLIENT, round_, stage, int(client), int(draw[turn])
                )
                size = int(self.sizes[client])
                if size == 0:  # no step, and nothing that rows could name
                    continue
                rows = np.asarray(work.rows(generator, size))
                check_rows(rows, work, size, int(client))
                values[turn, : len(rows)] = rows
                steps[turn, stage] = len(rows)
            result.append(values)
        return result


def check_rows(rows: np.ndarray, work: LocalWork, size: int, client: int) -> None:
    """Refuses explicit rows of a wrong shape or outside the client's data."""
    if rows.ndim != 2 or rows.shape[1] != work.batch_size or rows.dtype.kind not in "iu":
        raise ValueError(
            f"LocalWork.rows gave {rows.dtype}{list(rows.shape)} for client {client}, "
            f"expected integers [steps, {work.batch_size}]."
        )
    if len(rows) > work.explicit_steps:
        raise ValueError(
            f"LocalWork.rows gave {len(rows)} steps for client {client}, max_steps is {work.max_steps}."
        )
    if rows.size and (rows.min() < -1 or rows.max() >= size):
        raise ValueError(
            f"LocalWork.rows gave row {rows.max() if rows.max() >= size else rows.min()} for client {client}, "
            f"which has rows 0 to {size - 1} (-1 is padding)."
        )


def _draws(clients: np.ndarray) -> np.ndarray:
    """How-manieth occurrence each element is: ``[7, 3, 7]`` gives ``[0, 0, 1]``."""
    order = np.argsort(clients, kind="stable")
    ordered = clients[order]
    new = np.r_[True, ordered[1:] != ordered[:-1]] if len(clients) else np.zeros(0, bool)
    first = np.maximum.accumulate(np.where(new, np.arange(len(clients)), 0))
    draws = np.empty(len(clients), np.int64)
    draws[order] = np.arange(len(clients)) - first
    return draws
