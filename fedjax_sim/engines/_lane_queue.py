"""Continuous batching: L lanes work through one queue of clients' turns.

Between two events every lane takes the same number of steps, the smallest remainder. At an event the lanes whose
client is done finish, deposit what it sends, and begin the next turns of the queue. So the cost follows the number of
batches, not the longest client times the cohort; a lane that runs out of turns computes on and is never looked at. Where
lanes compute one after the other, the last long turns go on in fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import tree
from fedjax_sim._src.types import Array, Message
from fedjax_sim.data.plans import Entry
from fedjax_sim.engines._auto import Layout
from fedjax_sim.engines._client import TICKET_WORDS, Packed, Row, Sent, Ticket, Turn
from fedjax_sim.engines._state import ClientTable

_FOREVER = jnp.iinfo(jnp.int32).max


class Lane(NamedTuple):
    """One slot of the vmapped axis; all leaves ``[lanes, ...]``.

    Its ``Place`` and ``metrics`` are packed: every array that a lane has is one more to copy at an event. ``rows`` are
    those of the coming step, made one step ahead: in the step itself the compiler would fuse their computation into the
    gather and repeat it for every element. ``broadcast`` is the lane's own copy when a program holds several replicas,
    else ``()``: all lanes share one.
    """

    place: Packed
    rows: Array
    work: Any
    metrics: Any
    broadcast: Any


class Place(NamedTuple):
    """What a lane knows of its turn.

    Attributes:
      began: ``int32[]``, steps that the pass had taken when the turn began.
      position: ``int32[]``, the turn's place in the queue, at or beyond its end when the lane has run dry.
      order: the order of its examples, ``uint32[words]``.
      ticket: the queue's entry and the turn's keys.
    """

    began: Array
    position: Array
    order: Array
    ticket: Ticket

    @classmethod
    def of(cls, packed: Packed) -> Place:
        """From numbers that begin with ``began`` and ``position``, and words that end with a ticket's."""
        order, ticket = packed.words[:-TICKET_WORDS], packed.words[-TICKET_WORDS:]
        *both, numbers = jax.lax.split(packed.numbers, [1, 1, len(packed.numbers) - 2])
        began, position = tree.squeezed(both)
        return cls(began, position, order, Ticket.of(Packed(numbers, ticket)))


class Deposit(NamedTuple):
    """What a pass over a queue accumulates.

    Attributes:
      message: sums ``[replicas, ...]``, or rows ``[replicas, cap, ...]`` under a gather.
      metrics: sums ``[replicas]``; packed while the lanes run.
      table: the client table, leaves ``[replicas, slots, ...]``.
      finite: ``bool[cap]``, whether each turn's update was finite.
      lane_steps: ``int32[]``, steps times the lanes that took them.
    """

    message: Message
    metrics: Any
    table: ClientTable
    finite: Array
    lane_steps: Array


class TurnSpecs(NamedTuple):
    """Specs of a turn's message and metrics, and of the metrics of its steps."""

    message: Message
    metrics: Any
    step_metrics: Any


class Shared(NamedTuple):
    """What all turns of a pass read; the leaves of all but ``round`` and ``columns`` have a leading axis ``[replicas]``."""

    hyper: Any
    broadcast: Any
    server_part: Any
    round: Any
    columns: Any


def over_lanes(function: Callable, lanes: int) -> Callable:
    """``vmap``; one lane is squeezed instead, which lets XLA lay out matrix products as it does without ``vmap``.

    Under ``vmap``, even of one lane, the CPU compiler writes weight gradients transposed and reorders them in the
    optimizer's step: a quarter of the time of a wide dense layer.
    """
    if lanes > 1:
        return jax.vmap(function)
    return lambda argument: tree.expanded(function(tree.squeezed(argument)))


def repeated(tick: Callable, now: Array, then: Array, lane: Any, lanes: int) -> Any:
    """``tick(step, lane)`` on all lanes, for the pass's steps from ``now`` to before ``then``.

    One lane is squeezed outside the loop: where the axis came and went inside it, the compiler could not update parameters
    in place and copied them in every step.
    """
    if lanes > 1:
        return jax.lax.fori_loop(now, then, jax.vmap(tick, in_axes=(None, 0)), lane)
    return tree.expanded(jax.lax.fori_loop(now, then, tick, tree.squeezed(lane)))


class LaneQueue:
    """The pass of one (stage, group) over a queue; everything static bound."""

    def __init__(
        self,
        turn: Turn,
        stage: int,
        group: int,
        *,
        layout: Layout,
        replicas: int,
        gathers: bool,
    ):
        self.turn, self.stage, self.group = turn, stage, group
        self.lanes, self.replicas, self.gathers = layout.lanes, replicas, gathers
        self.compact = layout.finish == "compact" or layout.lanes == 1

    # --- what a turn reads and writes ---

    def _of(self, values, replica):
        """One replica's part of values with a leading axis ``[replicas]``."""
        if self.replicas == 1:
            return tree.squeezed(values)
        return tree.row(values, replica)

    def _row(self, table: ClientTable, entry: Entry) -> Row:
        row = Row(table.states[self.group] if table.states else (), table.parts[self.stage], table.seen)
        return tree.row(self._of(row, entry.replica), entry.slot)

    def tickets(self, roots: jax.Array, rounds: Array, entries: Entry) -> Packed:
        """Tickets of all turns of a chunk, leaves ``[rounds, cap, ...]``.

        Made at once, before the first round: one threefry after the other took longer at an event than a small model's
        steps, and all of a round's together in every round two or three per cent of such a model's round. Along one axis:
        of two, threefry takes the compiler three times as long.

        Args:
          roots: keys ``[replicas]``.
          rounds: ``int32[rounds]``, their numbers.
          entries: leaves ``[rounds, cap, ...]``.
        """

        def one(round_, entry: Entry) -> Packed:
            own = self.turn.keys(self._of(roots, entry.replica), round_, entry)
            return Ticket(entry, own).packed()

        shape = entries.client.shape
        turns = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), entries)
        packed = jax.vmap(one)(jnp.repeat(rounds, shape[1]), turns)
        return jax.tree.map(lambda x: x.reshape(*shape, -1), packed)

    def _places(self, tickets: Packed, explicit) -> tuple[Packed, Array]:
        """What a lane takes over at the beginning of a turn, with the rows of its first step; leaves ``[cap + 1, ...]``.

        The last is a place beyond the queue's end. Orders and rows are worked out here, for all turns of a round at once: of
        the twenty-eight operations of a small model's event orders were six, and rows would stand twice in every loop.
        """
        tickets = jax.tree.map(lambda x: jnp.pad(x, ((0, 1), (0, 0))), tickets)
        positions = jnp.arange(len(tickets.numbers), dtype=jnp.int32)[:, None]
        ticket = jax.vmap(Ticket.of)(tickets)
        orders = jax.vmap(self.turn.order)(ticket.keys, ticket.entry)
        packed = Packed(
            jnp.concatenate([positions, tickets.numbers], axis=1),
            jnp.concatenate([orders, tickets.words], axis=1),
        )
        first = lambda order, turn, at: self._rows(explicit, Place(at[0], at[0], order, turn), jnp.int32(0))  # noqa: E731
        return packed, jax.vmap(first)(orders, ticket, positions)

    def _start(self, shared: Shared, table: ClientTable, places, metrics, now, position) -> Lane:
        """A lane at the beginning of a turn; beyond the queue's end, at the beginning of none."""
        last = len(places[1]) - 1
        (numbers, words), rows = tree.row(places, jnp.minimum(position, last))
        packed = Packed(jnp.concatenate([now[None], numbers]), words)
        place = Place.of(packed)
        entry, own_keys = place.ticket
        broadcast, hyper = self._of(shared.broadcast, entry.replica), self._of(shared.hyper, entry.replica)
        work = self.turn.begin(hyper, broadcast, own_keys, shared.round, entry, self._row(table, entry))
        own = () if self.replicas == 1 else broadcast
        return Lane(packed, rows, work, tree.pack(tree.zeros_like(metrics)), own)

    def _rows(self, explicit, place: Place, step) -> Array:
        mine = None if explicit is None else explicit[jnp.minimum(place.position, explicit.shape[0] - 1)]
        return self.turn.rows(place.order, place.ticket.entry, step, mine)

    def _broadcast(self, shared: Shared, lane: Lane):
        return self._of(shared.broadcast, 0) if self.replicas == 1 else lane.broadcast

    def _tick(self, shared: Shared, explicit, now, lane: Lane) -> Lane:
        place = Place.of(lane.place)
        entry, own_keys = place.ticket
        step = now - place.began
        hyper, broadcast = self._of(shared.hyper, entry.replica), self._broadcast(shared, lane)
        work, measured = self.turn.step(
            hyper, broadcast, shared.columns, lane.rows, own_keys, entry, step, lane.work
        )
        rows = self._rows(explicit, place, step + 1)
        metrics = tree.add(lane.metrics, tree.pack(measured))
        return lane._replace(work=work, rows=rows, metrics=metrics)

    def _end(self, shared: Shared, table: ClientTable, step_metrics, lane: Lane) -> Sent:
        """What the lane's turn leaves, its metrics packed."""
        entry, own_keys = Place.of(lane.place).ticket
        sent = self.turn.finish(
            self._of(shared.hyper, entry.replica),
            self._broadcast(shared, lane),
            self._of(shared.server_part, entry.replica),
            own_keys,
            shared.round,
            entry,
            lane.work,
            self._row(table, entry),
        )
        metrics = {**tree.unpack(lane.metrics, step_metrics), **sent.metrics}
        return sent._replace(metrics=tree.pack(metrics))

    # --- the pass ---

    def specs(self, shared: Shared, table: ClientTable, tickets: Packed, explicit) -> TurnSpecs:
        """What a turn of this queue sends and measures."""

        def one(shared, table, tickets, explicit):
            entry, own_keys = Ticket.of(jax.tree.map(lambda x: x[0], tickets))
            hyper, broadcast = (
                self._of(shared.hyper, entry.replica),
                self._of(shared.broadcast, entry.replica),
            )
            row = self._row(table, entry)
            work = self.turn.begin(hyper, broadcast, own_keys, shared.round, entry, row)
            place = Place(
                entry.client, entry.client, self.turn.order(own_keys, entry), Ticket(entry, own_keys)
            )
            rows = self._rows(explicit, place, entry.client)
            _, measured = self.turn.step(
                hyper, broadcast, shared.columns, rows, own_keys, entry, entry.client, work
            )
            part = self._of(shared.server_part, entry.replica)
            sent = self.turn.finish(hyper, broadcast, part, own_keys, shared.round, entry, work, row)
            return TurnSpecs(sent.message, {**measured, **sent.metrics}, measured)

        return jax.eval_shape(one, shared, table, tickets, explicit)

    def run(
        self,
        specs: TurnSpecs,
        shared: Shared,
        tickets: Packed,
        count,
        rows,
        deposit: Deposit,
        offset: int,
    ) -> Deposit:
        """Runs all turns of a queue.

        Args:
          specs: of a turn.
          shared: what turns read.
          tickets: leaves ``[cap, ...]``.
          count: ``int32[]``, how many of them are turns.
          rows: explicit rows ``int32[cap, steps, batch_size]`` or ``None``.
          deposit: what was accumulated before.
          offset: first row of the gather that belongs to this queue.
        """
        cap = len(tickets.numbers)
        widths = self._widths(cap)
        lanes = widths[0]
        places = self._places(tickets, rows)
        begin = lambda table, now, position: self._start(  # noqa: E731
            shared, table, places, specs.step_metrics, now, position
        )
        end = lambda table, lane: self._end(shared, table, specs.step_metrics, lane)  # noqa: E731
        tick = lambda now, lane: self._tick(shared, rows, now, lane)  # noqa: E731

        def until_next_event(begin, carry):
            lane, now, upcoming, deposit = carry
            place = jax.vmap(Place.of)(lane.place)
            live = place.position < count
            due = jnp.where(live, place.began + place.ticket.entry.steps[:, self.stage], _FOREVER)
            then = jnp.min(due)
            lane = repeated(tick, now, then, lane, live.shape[0])
            lane, upcoming, deposit = self._event(
                begin, end, lane, then, upcoming, count, deposit, live & (due == then), offset
            )
            return lane, then, upcoming, deposit

        now = jnp.int32(0)
        packed = deposit._replace(metrics=jax.vmap(tree.pack, axis_size=self.replicas)(deposit.metrics))
        first = jax.vmap(begin, in_axes=(None, None, 0))(
            deposit.table, now, jnp.arange(lanes, dtype=jnp.int32)
        )
        lane, upcoming, deposit = tree.strong(first), jnp.int32(lanes), packed
        # Lanes of a loop, and those that the next one has.
        for width, enough in zip(widths, [*widths[1:], 0], strict=True):

            def busy(carry, enough=enough):
                lane, _, upcoming, _ = carry
                live = jnp.sum(self._positions(lane) < count, dtype=jnp.int32)
                return (live > enough) | ((live > 0) & (upcoming < count))

            # Where every turn has a lane from the start, and where the queue is empty, no lane begins a second turn.
            body = partial(until_next_event, begin if lanes < cap and width == lanes else None)
            before = now
            lane, now, upcoming, deposit = jax.lax.while_loop(busy, body, (lane, now, upcoming, deposit))
            deposit = deposit._replace(lane_steps=deposit.lane_steps + (now - before) * width)
            if enough:
                first_live = jnp.argsort(self._positions(lane) >= count, stable=True)[:enough]
                lane = jax.tree.map(lambda x, chosen=first_live: x[chosen], lane)
        unpack = jax.vmap(lambda sums: tree.unpack(sums, specs.metrics), axis_size=self.replicas)
        metrics = unpack(deposit.metrics)
        return deposit._replace(metrics=metrics)

    def _widths(self, cap: int) -> list[int]:
        """Lanes, and fewer of them for turns that are left when the queue is empty.

        A CPU computes a dead lane, too. Elsewhere lanes cost little, and every width is one more body to compile; of two or
        three lanes few are dead.
        """
        widths = [min(self.lanes, cap)]
        if self.compact and widths[0] >= 4:
            while widths[-1] > 1:
                widths.append(-(-widths[-1] // 4))
        return widths

    def _positions(self, lane: Lane) -> Array:
        return lane.place.numbers[:, 1]

    def _event(self, begin, end, lane: Lane, now, upcoming, count, deposit: Deposit, done, offset):
        """Finishes lanes that are done and gives them the next turns: one lane at a time, or all at once, masked.

        Without ``begin`` there are no next turns. With the compact form an event of several lanes takes several passes
        through the loop, with no step between.
        """
        if self.compact:
            which = jnp.argmax(done)
            chosen = tree.row(lane, which, keepdims=True)
            mask = jnp.ones(1, bool)
        else:
            chosen, mask = lane, done
        width = mask.shape[0]
        sent = over_lanes(lambda one: end(deposit.table, one), width)(chosen)
        deposit = self._collect(deposit, sent, chosen, mask, offset)
        next_ones = upcoming + jnp.cumsum(mask, dtype=jnp.int32) - 1
        positions = jnp.where(mask, next_ones, self._positions(chosen))
        table = deposit.table

        def refilled(lane: Lane) -> Lane:
            fresh = tree.strong(over_lanes(lambda position: begin(table, now, position), width)(positions))
            if self.compact:
                return tree.with_row(lane, which, fresh)
            return tree.where(mask, fresh, lane)

        def left(lane: Lane) -> Lane:
            """Lanes that are done compute on from where they are; nobody looks at them."""
            at = lane.place.numbers.at
            numbers = at[which, 1].set(positions[0]) if self.compact else at[:, 1].set(positions)
            return lane._replace(place=lane.place._replace(numbers=numbers))

        if begin is None:
            lane = left(lane)
        elif self.compact:
            lane = refilled(lane)
        else:
            # At the end of a queue there is nothing to begin, and all lanes would be written anew.
            lane = jax.lax.cond(upcoming < count, refilled, left, lane)
        return lane, upcoming + jnp.sum(mask, dtype=jnp.int32), deposit

    def _collect(self, deposit: Deposit, sent: Sent, lane: Lane, mask, offset) -> Deposit:
        """Adds what the masked lanes send; everything else is replaced by zero before it can touch a sum."""
        turn = jax.vmap(Place.of)(lane.place)
        entry = turn.ticket.entry
        replica = entry.replica

        def add(total, values):
            values = jnp.where(mask.reshape((-1,) + (1,) * (values.ndim - 1)), values, 0).astype(total.dtype)
            if self.replicas == 1:
                return total + jnp.sum(values, axis=0, keepdims=True, dtype=total.dtype)
            return total.at[replica].add(values)

        def place(rows, values):
            index = jnp.where(mask, turn.position + offset, rows.shape[1])
            return rows.at[replica, index].set(values.astype(rows.dtype), mode="drop")

        def keep(table, values):
            if self.compact:
                # int32 as the queue's integers are: in 64-bit mode a Python 0 would be another type.
                at = (replica[0], entry.slot[0], *[jnp.int32(0)] * (table.ndim - 2))
                new = values[None].astype(table.dtype)
                return jax.lax.dynamic_update_slice(table, new, at, allow_negative_indices=False)
            index = jnp.where(mask, entry.slot, table.shape[1])
            return table.at[replica, index].set(values.astype(table.dtype), mode="drop")

        table = deposit.table
        states = list(table.states)
        if states:
            states[self.group] = jax.tree.map(keep, states[self.group], sent.row.state)
        parts = list(table.parts)
        parts[self.stage] = jax.tree.map(keep, parts[self.stage], sent.row.part)
        table = ClientTable(tuple(states), tuple(parts), jax.tree.map(keep, table.seen, sent.row.seen))
        position = jnp.where(mask, turn.position, deposit.finite.shape[0])
        return deposit._replace(
            message=jax.tree.map(place if self.gathers else add, deposit.message, sent.message),
            metrics=jax.tree.map(add, deposit.metrics, sent.metrics),
            table=table,
            finite=deposit.finite.at[position].set(sent.finite, mode="drop"),
        )
