"""Plans: which client trains in which device's queue, for how many steps, made on the host as plain integer arrays.

A plan covers a chunk of rounds. Its arrays have static shapes (the caps) and traced contents, so one compiled program
serves every cohort and also the last, shorter chunk.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
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
      before: steps that the client took in earlier rounds, ``[stages]``; counted where passes go on from round to round.
    """

    client: Any
    slot: Any
    draw: Any
    replica: Any
    version: Any
    start: Any
    examples: Any
    steps: Any
    before: Any


class Turns(NamedTuple):
    """The turns of one round in the order of the draw; the fields of ``Entry`` that no device decides, ``int64[turns]``.

    ``steps`` and ``before`` are ``int64[turns, stages]``.
    """

    client: np.ndarray
    draw: np.ndarray
    replica: np.ndarray
    steps: np.ndarray
    before: np.ndarray

    def only(self, mask: np.ndarray) -> Turns:
        return Turns(*(field[mask] for field in self))


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
      ends: rounds after which nobody comes any more, one number per replica; ``None`` where all go on.
      past: what is known of the rounds before; a cache.
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
    ends: tuple[int, ...] | None = None
    past: Past = dataclasses.field(default_factory=lambda: Past(), compare=False, repr=False)

    @property
    def population(self) -> int:
        return len(self.sizes)

    @property
    def slots(self) -> int:
        """Rows of the client-state table on one device."""
        return -(-self.population // self.devices)

    @functools.cached_property
    def _members(self) -> np.ndarray:
        """Clients of each group, ``int64[groups]``; counted once, for every chunk of rounds asks."""
        return np.bincount(self.group, minlength=self.groups)

    def queue_cap(self, group: int) -> int:
        """Entries that one device's queue of a group must have room for in the worst cohort."""
        cohort = self.cohort.cap(self.population)
        repeats = self.cohort.sampling == "with_replacement"
        members = cohort if repeats else min(cohort, int(self._members[group]))
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
            turns = self.turns(roots, first_round + index)
            occupied = self.sizes[turns.client] > 0
            came[index] = np.bincount(turns.replica[occupied], minlength=self.replicas)
            for group, queue in enumerate(queues):
                mine = turns.only(self.group[turns.client] == group)
                self._fill(queue, index, mine, roots, first_round + index)
        return Plan(np.int32(rounds), came, tuple(queues))

    def turns(self, roots: Sequence[tuple[int, ...]], round_: int) -> Turns:
        """Who takes part in a round, and for how long."""
        turns = self._drawn(roots, round_)
        if any(work.continue_epochs for work in self.works):
            turns = turns._replace(
                before=self.past.before(self._drawn, roots, round_, turns, self.population)
            )
        return turns

    def _drawn(self, roots, round_: int) -> Turns:
        """As ``turns``, whatever happened before."""
        client, draw, replica = self.cohorts(roots, round_)
        sizes = self.sizes[client]
        steps = np.stack([work.steps(sizes) for work in self.works], axis=-1)
        turns = Turns(client, draw, replica, steps, np.zeros_like(steps))
        if any(work.stragglers for work in self.works):
            share = self._time(roots, round_, turns)
            late = np.stack([work.late_steps(sizes, share) for work in self.works], axis=-1)
            drops = any(work.drop_stragglers for work in self.works)
            turns = turns.only(share == 1) if drops else turns._replace(steps=late)
        return turns

    def _time(self, roots, round_: int, turns: Turns) -> np.ndarray:
        """The share of its work that each turn has time for, ``float64[turns]`` in (0, 1]; 1 for all but stragglers."""
        fraction = max(work.stragglers for work in self.works)
        share = np.ones(len(turns.client))
        ordered = np.lexsort((turns.draw, turns.client))  # who was drawn decides, not in which order
        for index, root in enumerate(roots):
            mine = ordered[turns.replica[ordered] == index]
            generator = keys.host_generator(root, keys.STRAGGLERS, round_)
            late = generator.permutation(mine)[: round(fraction * len(mine))]
            share[late] = 1 - generator.random(len(late))
        return share

    def cohorts(self, roots, round_: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Who is drawn in a round: clients, how-manieth draw, replica; ``int64[drawn]`` each."""
        clients, draws, replicas = [], [], []
        for replica, root in enumerate(roots):
            key_round = self.cohort.key_round
            keyed = round_ if key_round is None else key_round(round_, self.population)
            generator = keys.host_generator(root, keys.COHORT, keyed)
            drawn = np.asarray(self.cohort.sample(generator, round_, self.population), np.int64)
            if self.ends is not None and round_ >= self.ends[replica]:
                drawn = drawn[:0]
            clients.append(drawn)
            draws.append(_draws(drawn))
            replicas.append(np.full(len(drawn), replica, np.int64))
        return np.concatenate(clients), np.concatenate(draws), np.concatenate(replicas)

    def _empty_queue(self, group: int, room: int) -> Queue:
        shape = (room, self.devices, self.queue_cap(group))
        by_stage = {"steps", "before"}
        shapes = ((*shape, len(self.works)) if name in by_stage else shape for name in Entry._fields)
        entries = Entry(*(np.zeros(own, np.int32) for own in shapes))
        rows = tuple(
            None
            if work.explicit_rows is None
            else np.full((*shape, work.explicit_steps, work.batch_size), -1, np.int32)
            for work in self.works
        )
        return Queue(entries, np.zeros(shape[:2], np.int32), rows)

    def _fill(self, queue: Queue, index: int, turns: Turns, roots, round_: int) -> None:
        explicit = self._explicit_rows(turns, roots, round_)
        clients, steps = turns.client, turns.steps
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
            entries.draw[index, d, :n] = turns.draw[mine]
            entries.replica[index, d, :n] = turns.replica[mine]
            entries.start[index, d, :n] = self.starts[clients[mine]]
            entries.examples[index, d, :n] = self.sizes[clients[mine]]
            entries.steps[index, d, :n] = steps[mine]
            entries.before[index, d, :n] = turns.before[mine]
            for rows, values in zip(queue.rows, explicit, strict=True):
                if rows is not None and values is not None:
                    rows[index, d, :n] = values[mine]

    def _explicit_rows(self, turns: Turns, roots, round_: int) -> list[np.ndarray | None]:
        """Rows per stage from the user's functions; also writes how many steps they really make."""
        result = []
        for stage, work in enumerate(self.works):
            make = work.explicit_rows
            if make is None:
                result.append(None)
                continue
            values = np.full((len(turns.client), work.explicit_steps, work.batch_size), -1, np.int32)
            for turn, client in enumerate(turns.client):
                generator = keys.host_generator(
                    roots[turns.replica[turn]], keys.CLIENT, round_, stage, int(client), int(turns.draw[turn])
                )
                size = int(self.sizes[client])
                if size == 0:  # no step, and nothing that rows could name
                    continue
                rows = np.asarray(make(generator, size))
                check_rows(rows, work, size, int(client))
                rows = rows[: turns.steps[turn, stage]]  # a straggler has time for the first ones only
                values[turn, : len(rows)] = rows
                turns.steps[turn, stage] = len(rows)
            result.append(values)
        return result


class Past:
    """How many steps every client has taken in the rounds before one; nothing but a function of the roots and the round.

    It is counted from the first round on, and kept for the round after, which is asked for next.
    """

    def __init__(self) -> None:
        self._roots: tuple = ()
        self._round, self._steps = 0, np.zeros((0, 0, 0), np.int64)

    def before(
        self,
        drawn: Callable[..., Turns],
        roots: Sequence[tuple[int, ...]],
        round_: int,
        turns: Turns,
        population: int,
    ) -> np.ndarray:
        """Steps ``int64[turns, stages]`` that each turn's client has behind it, earlier draws of the round included."""
        if self._roots != tuple(roots) or round_ < self._round:
            self._roots, self._round = tuple(roots), 0
            self._steps = np.zeros((len(roots), population, turns.steps.shape[-1]), np.int64)
        for earlier in range(self._round, round_):
            done = drawn(roots, earlier)
            np.add.at(self._steps, (done.replica, done.client), done.steps)
        self._round = round_
        return self._steps[turns.replica, turns.client] + _of_earlier_draws(turns)


def _of_earlier_draws(turns: Turns) -> np.ndarray:
    """Steps ``int64[turns, stages]`` that a client takes in this round before each of its turns."""
    order = np.lexsort((turns.draw, turns.client, turns.replica))
    client, replica, steps = turns.client[order], turns.replica[order], turns.steps[order]
    passed = np.cumsum(steps, axis=0) - steps
    new = np.r_[True, (client[1:] != client[:-1]) | (replica[1:] != replica[:-1])][: len(client)]
    first = np.maximum.accumulate(np.where(new, np.arange(len(client)), 0))
    earlier = np.empty_like(steps)
    earlier[order] = passed - passed[first]
    return earlier


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
