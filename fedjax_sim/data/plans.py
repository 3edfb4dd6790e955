"""Plans: which client trains in which device's queue, for how many steps, made on the host as plain integer arrays.

A plan covers a chunk of rounds. Its arrays have static shapes (the caps) and traced contents, so one compiled program
serves every cohort and also the last, shorter chunk.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim._src import keys
from fedjax_sim.data._turns import Past, Turns, levelled, occurrences, room_for, runs
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
    past: Past = dataclasses.field(default_factory=Past, compare=False, repr=False)

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
            return room_for(total, self.devices)
        return min(max(members, 1), self.slots) * self.replicas

    def plan(self, roots: Sequence[tuple[int, ...]], first_round: int, rounds: int, room: int) -> Plan:
        """Plans ``rounds`` rounds from ``first_round`` on, in arrays with room for ``room``.

        ``roots`` are the words of each replica's root key: cohorts depend on (root, round) alone.
        """
        turns = self.turns(roots, first_round, rounds)
        explicit = self._explicit_rows(turns, roots, first_round)
        occupied = self.sizes[turns.client] > 0
        came = np.bincount(
            turns.round[occupied] * self.replicas + turns.replica[occupied], minlength=room * self.replicas
        )
        queues = []
        for index in range(self.groups):
            mine = slice(None) if self.groups == 1 else np.flatnonzero(self.group[turns.client] == index)
            rows = [None if values is None else values[mine] for values in explicit]
            queues.append(self._queue(index, room, turns.only(mine), rows))
        return Plan(np.int32(rounds), came.reshape(room, self.replicas).astype(np.int32), tuple(queues))

    def turns(self, roots: Sequence[tuple[int, ...]], first_round: int, rounds: int) -> Turns:
        """Who takes part in the rounds from ``first_round`` on, and for how long."""
        turns = self._drawn(roots, first_round, rounds)
        if any(work.continue_epochs for work in self.works):
            for index in range(rounds):
                here = turns.round == index
                turns.before[here] = self.past.before(
                    self._drawn, roots, first_round + index, turns.only(here), self.population
                )
        return turns

    def _drawn(self, roots, first_round: int, rounds: int) -> Turns:
        """As ``turns``, whatever happened before."""
        round_, client, draw, replica = self._cohorts(roots, first_round, rounds)
        sizes = self.sizes[client]
        steps = np.stack([work.steps(sizes) for work in self.works], axis=-1)
        turns = Turns(round_, client, draw, replica, steps, np.zeros_like(steps))
        if any(work.stragglers for work in self.works):
            share = self._time(roots, first_round, turns)
            late = np.stack([work.late_steps(sizes, share) for work in self.works], axis=-1)
            drops = any(work.drop_stragglers for work in self.works)
            turns = turns.only(share == 1) if drops else turns._replace(steps=late)
        return turns

    def _time(self, roots, first_round: int, turns: Turns) -> np.ndarray:
        """The share of its work that each turn has time for, ``float64[turns]`` in (0, 1]; 1 for all but stragglers."""
        fraction = max(work.stragglers for work in self.works)
        share = np.ones(len(turns.client))
        # Who was drawn decides, not in which order.
        ordered = np.lexsort((turns.draw, turns.client, turns.replica, turns.round))
        cohorts = runs(ordered, turns.round[ordered] * self.replicas + turns.replica[ordered])
        first = np.array([mine[0] for mine in cohorts], np.int64)
        words = [
            (*roots[replica], keys.STRAGGLERS, first_round + round_)
            for replica, round_ in zip(turns.replica[first], turns.round[first], strict=True)
        ]
        for mine, generator in zip(cohorts, keys.host_generators(words), strict=True):
            late = generator.permutation(mine)[: round(fraction * len(mine))]
            share[late] = 1 - generator.random(len(late))
        return share

    def _cohorts(self, roots, first_round: int, rounds: int) -> tuple[np.ndarray, ...]:
        """Who is drawn: rounds from the first on, clients, how-manieth draws, replicas; ``int64[drawn]`` each."""
        numbers = list(itertools.product(range(first_round, first_round + rounds), range(len(roots))))
        generators = keys.host_generators(
            [(*roots[replica], keys.COHORT, self._keyed(round_)) for round_, replica in numbers]
        )
        drawn = [
            self._draw(generator, *number) for generator, number in zip(generators, numbers, strict=True)
        ]
        sizes = [len(one) for one in drawn]
        client = np.concatenate(drawn) if drawn else np.zeros(0, np.int64)
        cohort = np.repeat(np.arange(len(drawn)), sizes)
        round_, replica = np.divmod(cohort, len(roots))
        draw = occurrences(cohort * self.population + client)
        self._check_drawn(sizes, client, draw, first_round + round_)
        return round_, client, draw, replica

    def _keyed(self, round_: int) -> int:
        """The number of the generator that draws a round's cohort."""
        key_round = self.cohort.key_round
        keyed = round_ if key_round is None else key_round(round_, self.population)
        if not isinstance(keyed, (int, np.integer)) or not 0 <= keyed < 2**32:
            raise ValueError(
                f"{self.cohort!r}.key_round gave {keyed} for round {round_}, expected an integer of 32 bits, at least 0."
            )
        return keyed

    def _draw(self, generator: np.random.Generator, round_: int, replica: int) -> np.ndarray:
        """A round's cohort, ``int64[drawn]``."""
        drawn = np.asarray(self.cohort.sample(generator, round_, self.population))
        if drawn.ndim != 1 or (drawn.dtype.kind not in "iu" and drawn.size):
            raise TypeError(
                f"{self.cohort!r} returned {drawn.dtype}{list(drawn.shape)} in round {round_}, expected the indices of "
                "clients, int[cohort]; np.flatnonzero makes them of a mask."
            )
        ended = self.ends is not None and round_ >= self.ends[replica]
        return drawn[:0].astype(np.int64) if ended else drawn.astype(np.int64, copy=False)

    def _check_drawn(self, sizes: Sequence[int], client: np.ndarray, draw: np.ndarray, rounds: np.ndarray):
        """A sampler of one's own says what it keeps to: the program has room for that, and for no more."""
        cap = self.cohort.cap(self.population)
        if max(sizes, default=0) > cap:
            raise ValueError(
                f"{self.cohort!r} drew {max(sizes)} clients for a round, but its cap says that it draws at most {cap}: the "
                "program has room for no more. Let cap return the largest cohort that sample can return."
            )
        if client.size and not 0 <= client.min() <= client.max() < self.population:
            at = np.flatnonzero((client < 0) | (client >= self.population))[0]
            raise ValueError(
                f"{self.cohort!r} drew client {client[at]} in round {rounds[at]}, expected indices from 0 to "
                f"{self.population - 1}, one of the population's {self.population} clients."
            )
        if draw.any() and self.cohort.sampling != "with_replacement":
            at = np.flatnonzero(draw)[0]
            raise ValueError(
                f"{self.cohort!r} drew client {client[at]} twice in round {rounds[at]}: a sampler that does is "
                "Cohort(..., sampling='with_replacement')."
            )

    def _queue(self, group: int, room: int, turns: Turns, explicit: Sequence[np.ndarray | None]) -> Queue:
        """The queue of a group: its turns of every round on their devices, the longest first."""
        cap = self.queue_cap(group)
        places = room * self.devices * cap
        # Longest first: the queue's end is then made of short turns, and lanes run dry together.
        steps = turns.steps.sum(axis=-1)
        order = np.argsort(turns.round * (steps.max(initial=0) + 1) - steps, kind="stable")
        turns = turns.only(order)
        device, nth = self._dealt(turns)
        queue = turns.round * self.devices + device
        at = queue * cap + nth

        def placed(values: np.ndarray, empty: int = 0) -> np.ndarray:
            """A turn's values at its place, ``int32[room, devices, cap, ...]``."""
            filled = np.full((places, *values.shape[1:]), empty, np.int32)
            filled[at] = values
            return filled.reshape(room, self.devices, cap, *values.shape[1:])

        # Those of one number all at once: a chunk of few turns costs what numpy's calls cost.
        numbers = np.zeros((6, places), np.int32)
        slot = turns.client - device * self.slots if self.homes else turns.client
        start, examples = self.starts[turns.client], self.sizes[turns.client]
        numbers[:, at] = turns.client, slot, turns.draw, turns.replica, start, examples
        client, slot, draw, replica, start, examples = numbers.reshape(6, room, self.devices, cap)
        entries = Entry(
            client=client,
            slot=slot,
            draw=draw,
            replica=replica,
            version=np.zeros_like(client),
            start=start,
            examples=examples,
            steps=placed(turns.steps),
            before=placed(turns.before),
        )
        count = np.bincount(queue, minlength=room * self.devices).reshape(room, self.devices)
        rows = tuple(None if values is None else placed(values[order], -1) for values in explicit)
        return Queue(entries, count.astype(np.int32), rows)

    def _dealt(self, turns: Turns) -> tuple[np.ndarray, np.ndarray]:
        """Device of each turn and its place in that device's queue, for turns in the order of the queue."""
        if self.homes:
            device = turns.client // self.slots
        elif self.devices == 1:
            # Rounds stand one after the other, and so do the places of each.
            count = np.bincount(turns.round)
            return np.zeros_like(turns.round), np.arange(len(turns.round)) - np.repeat(
                np.cumsum(count) - count, count
            )
        else:
            rounds = runs(turns.steps.sum(axis=-1), turns.round)
            device = np.array(
                [d for steps in rounds for d in levelled(steps.tolist(), self.devices)], np.int64
            )
        return device, occurrences(turns.round * self.devices + device)

    def _explicit_rows(self, turns: Turns, roots, first_round: int) -> list[np.ndarray | None]:
        """Rows per stage from the user's functions; also writes how many steps they really make."""
        result = []
        for stage, work in enumerate(self.works):
            make = work.explicit_rows
            if make is None:
                result.append(None)
                continue
            values = np.full((len(turns.client), work.explicit_steps, work.batch_size), -1, np.int32)
            whose = zip(turns.replica, turns.round, turns.client, turns.draw, strict=True)
            generators = keys.host_generators(
                [
                    (*roots[replica], keys.CLIENT, first_round + round_, stage, client, draw)
                    for replica, round_, client, draw in whose
                ]
            )
            for turn, (client, generator) in enumerate(zip(turns.client, generators, strict=True)):
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
