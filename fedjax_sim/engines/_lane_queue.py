"""Continuous batching: L lanes work through one queue of clients' turns.

Between two events every lane takes the same number of steps, the smallest remainder. At an event the lanes whose
client is done finish, deposit what it sends, and begin the next turns of the queue. So the cost follows the number of
batches, not the longest client times the cohort; a lane that runs out of turns computes on and is never looked at. Where
lanes compute one after the other, the last long turns go on in fewer of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import tree
from fedjax_sim._src.types import Array, Message
from fedjax_sim.data.plans import Entry
from fedjax_sim.engines._auto import Layout
from fedjax_sim.engines._client import Row, Sent, Ticket, Turn, strong
from fedjax_sim.engines._state import ClientTable

_FOREVER = jnp.iinfo(jnp.int32).max


class Lane(NamedTuple):
    """One slot of the vmapped axis; all leaves ``[lanes, ...]``.

    ``position`` is the turn's place in the queue, at or beyond its end when the lane has run dry. ``broadcast`` is
    the lane's own copy when a program holds several replicas, else ``()``: all lanes share one. ``rows`` are those of
    the coming step, made one step ahead: in the step itself the compiler would fuse their computation into the gather
    and repeat it for every element. ``words`` are those of the turn's ticket, ``metrics`` are packed: every array that a
    lane has is one more to copy at an event.
    """

    position: Array
    words: Array
    step: Array
    rows: Array
    work: Any
    metrics: Any
    broadcast: Any


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
    return lambda argument: _widened(function(_squeezed(argument)))


def _squeezed(lanes):
    return jax.tree.map(lambda x: x[0], lanes)


def _widened(lane):
    return jax.tree.map(lambda x: x[None], lane)


def repeated(tick: Callable, steps: Array, lane: Any, lanes: int) -> Any:
    """``tick`` so many times on all lanes.

    One lane is squeezed outside the loop: where the axis came and went inside it, the compiler could not update parameters
    in place and copied them in every step.
    """
    if lanes > 1:
        return jax.lax.fori_loop(0, steps, lambda _, lane: jax.vmap(tick)(lane), lane)
    return _widened(jax.lax.fori_loop(0, steps, lambda _, lane: tick(lane), _squeezed(lane)))


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
            return jax.tree.map(lambda x: x[0], values)
        return jax.tree.map(lambda x: x[replica], values)

    def _row(self, table: ClientTable, entry: Entry) -> Row:
        row = Row(table.states[self.group] if table.states else (), table.parts[self.stage], table.seen)
        return jax.tree.map(lambda x: x[entry.replica, entry.slot], row)

    def tickets(self, roots: jax.Array, rounds: Array, entries: Entry) -> Array:
        """Words of the tickets of all turns of a chunk, ``uint32[rounds, cap, words]``.

        Made at once, before the first round: one threefry after the other took longer at an event than a small model's
        steps, and all of a round's together in every round two or three per cent of such a model's round.

        Args:
          roots: keys ``[replicas]``.
          rounds: ``int32[rounds]``, their numbers.
          entries: leaves ``[rounds, cap, ...]``.
        """

        def one(round_, entry: Entry) -> Array:
            own = self.turn.keys(self._of(roots, entry.replica), round_, entry)
            return Ticket(entry, own).words()

        return jax.vmap(jax.vmap(one, in_axes=(None, 0)))(rounds, entries)

    def _start(self, shared: Shared, table: ClientTable, tickets, explicit, metrics, position) -> Lane:
        """A lane at the beginning of a turn; beyond the queue's end, at the beginning of some turn."""
        words = tickets[jnp.minimum(position, tickets.shape[0] - 1)]
        entry, own_keys = Ticket.of(words)
        broadcast, hyper = self._of(shared.broadcast, entry.replica), self._of(shared.hyper, entry.replica)
        work = self.turn.begin(hyper, broadcast, own_keys, shared.round, entry, self._row(table, entry))
        own = () if self.replicas == 1 else broadcast
        first = jnp.zeros((), jnp.int32)
        rows = self._rows(explicit, position, Ticket(entry, own_keys), first)
        return Lane(position, words, first, rows, work, tree.pack(tree.zeros_like(metrics)), own)

    def _rows(self, explicit, position, ticket: Ticket, step) -> Array:
        mine = None if explicit is None else explicit[jnp.minimum(position, explicit.shape[0] - 1)]
        return self.turn.rows(ticket.keys, ticket.entry, step, mine)

    def _broadcast(self, shared: Shared, lane: Lane):
        return self._of(shared.broadcast, 0) if self.replicas == 1 else lane.broadcast

    def _tick(self, shared: Shared, explicit, lane: Lane) -> Lane:
        ticket = Ticket.of(lane.words)
        work, measured = self.turn.step(
            self._of(shared.hyper, ticket.entry.replica),
            self._broadcast(shared, lane),
            shared.columns,
            lane.rows,
            ticket.keys,
            ticket.entry,
            lane.step,
            lane.work,
        )
        rows = self._rows(explicit, lane.position, ticket, lane.step + 1)
        metrics = tree.add(lane.metrics, tree.pack(measured))
        return lane._replace(work=work, step=lane.step + 1, rows=rows, metrics=metrics)

    def _end(self, shared: Shared, table: ClientTable, step_metrics, lane: Lane) -> Sent:
        """What the lane's turn leaves, its metrics packed."""
        entry, own_keys = Ticket.of(lane.words)
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

    def specs(self, shared: Shared, table: ClientTable, tickets: Array, explicit):
        """Specs of a turn's message and metrics, and of the metrics of its steps."""

        def one(shared, table, tickets, explicit):
            entry, own_keys = Ticket.of(tickets[0])
            hyper, broadcast = (
                self._of(shared.hyper, entry.replica),
                self._of(shared.broadcast, entry.replica),
            )
            row = self._row(table, entry)
            work = self.turn.begin(hyper, broadcast, own_keys, shared.round, entry, row)
            rows = self._rows(explicit, entry.client, Ticket(entry, own_keys), entry.client)
            _, measured = self.turn.step(
                hyper, broadcast, shared.columns, rows, own_keys, entry, entry.client, work
            )
            part = self._of(shared.server_part, entry.replica)
            sent = self.turn.finish(hyper, broadcast, part, own_keys, shared.round, entry, work, row)
            return sent.message, {**measured, **sent.metrics}, measured

        return jax.eval_shape(one, shared, table, tickets, explicit)

    def run(self, shared: Shared, tickets: Array, count, rows, deposit: Deposit, offset: int) -> Deposit:
        """Runs all turns of a queue.

        Args:
          shared: what turns read.
          tickets: ``uint32[cap, words]``.
          count: ``int32[]``, how many of them are turns.
          rows: explicit rows ``int32[cap, steps, batch_size]`` or ``None``.
          deposit: what was accumulated before.
          offset: first row of the gather that belongs to this queue.
        """
        _, turn_metrics, step_metrics = self.specs(shared, deposit.table, tickets, rows)
        widths = self._widths(tickets.shape[0])
        lanes = widths[0]
        begin = lambda table, position: self._start(shared, table, tickets, rows, step_metrics, position)  # noqa: E731
        end = lambda table, lane: self._end(shared, table, step_metrics, lane)  # noqa: E731
        first = jax.vmap(begin, in_axes=(None, 0))(deposit.table, jnp.arange(lanes, dtype=jnp.int32))
        tick = lambda lane: self._tick(shared, rows, lane)  # noqa: E731

        def until_next_event(carry):
            lane, upcoming, deposit = carry
            live = lane.position < count
            remaining = jnp.where(live, self._steps(lane) - lane.step, _FOREVER)
            steps = jnp.min(remaining)
            width = live.shape[0]
            lane = repeated(tick, steps, lane, width)
            deposit = deposit._replace(lane_steps=deposit.lane_steps + steps * width)
            return self._event(
                begin, end, lane, upcoming, count, deposit, live & (remaining == steps), offset
            )

        packed = deposit._replace(metrics=jax.vmap(tree.pack, axis_size=self.replicas)(deposit.metrics))
        lane, upcoming, deposit = strong(first), jnp.int32(lanes), packed
        for enough in [*widths[1:], 0]:  # lanes that the next loop has

            def busy(carry, enough=enough):
                lane, upcoming, _ = carry
                live = jnp.sum(lane.position < count, dtype=jnp.int32)
                return (live > enough) | ((live > 0) & (upcoming < count))

            lane, upcoming, deposit = jax.lax.while_loop(busy, until_next_event, (lane, upcoming, deposit))
            if enough:
                first_live = jnp.argsort(lane.position >= count, stable=True)[:enough]
                lane = jax.tree.map(lambda x, chosen=first_live: x[chosen], lane)
        unpack = jax.vmap(lambda sums: tree.unpack(sums, turn_metrics), axis_size=self.replicas)
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

    def _steps(self, lane: Lane) -> Array:
        """Steps of each lane's turn."""
        return jax.vmap(Ticket.of)(lane.words).entry.steps[:, self.stage]

    def _event(self, begin, end, lane: Lane, upcoming, count, deposit: Deposit, done, offset):
        """Finishes lanes that are done and gives them the next turns: one lane at a time, or all at once, masked.

        With the compact form an event of several lanes takes several passes through the loop, with no step between.
        """
        if self.compact:
            place = jnp.argmax(done)
            chosen = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, place, keepdims=True), lane)
            mask = jnp.ones(1, bool)
        else:
            chosen, mask = lane, done
        width = mask.shape[0]
        sent = over_lanes(lambda one: end(deposit.table, one), width)(chosen)
        deposit = self._collect(deposit, sent, chosen, mask, offset)
        order = jnp.where(mask, upcoming + jnp.cumsum(mask, dtype=jnp.int32) - 1, chosen.position)
        after = deposit.table

        def refilled(lane: Lane) -> Lane:
            fresh = strong(over_lanes(lambda position: begin(after, position), width)(order))
            if self.compact:
                return jax.tree.map(
                    lambda x, new: jax.lax.dynamic_update_slice_in_dim(x, new, place, axis=0), lane, fresh
                )
            return tree.where(mask, fresh, lane)

        if self.compact:
            lane = refilled(lane)
        else:
            # At the end of a queue there is nothing to begin, and all lanes would be written anew. Those that are done
            # compute on from where they are; nobody looks at them.
            left = lambda lane: lane._replace(position=order)  # noqa: E731
            lane = jax.lax.cond(upcoming < count, refilled, left, lane)
        return lane, upcoming + jnp.sum(mask, dtype=jnp.int32), deposit

    def _collect(self, deposit: Deposit, sent: Sent, lane: Lane, mask, offset) -> Deposit:
        """Adds what the masked lanes send; everything else is replaced by zero before it can touch a sum."""
        entry = jax.vmap(Ticket.of)(lane.words).entry
        replica = entry.replica

        def add(total, values):
            values = jnp.where(mask.reshape((-1,) + (1,) * (values.ndim - 1)), values, 0).astype(total.dtype)
            if self.replicas == 1:
                return total + jnp.sum(values, axis=0, keepdims=True, dtype=total.dtype)
            return total.at[replica].add(values)

        def place(rows, values):
            index = jnp.where(mask, lane.position + offset, rows.shape[1])
            return rows.at[replica, index].set(values.astype(rows.dtype), mode="drop")

        def keep(table, values):
            if self.compact:
                # int32 as the queue's integers are: in 64-bit mode a Python 0 would be another type.
                at = (replica[0], entry.slot[0], *[jnp.int32(0)] * (table.ndim - 2))
                return jax.lax.dynamic_update_slice(table, values[None].astype(table.dtype), at)
            index = jnp.where(mask, entry.slot, table.shape[1])
            return table.at[replica, index].set(values.astype(table.dtype), mode="drop")

        table = deposit.table
        states = list(table.states)
        if states:
            states[self.group] = jax.tree.map(keep, states[self.group], sent.row.state)
        parts = list(table.parts)
        parts[self.stage] = jax.tree.map(keep, parts[self.stage], sent.row.part)
        table = ClientTable(tuple(states), tuple(parts), jax.tree.map(keep, table.seen, sent.row.seen))
        position = jnp.where(mask, lane.position, deposit.finite.shape[0])
        return deposit._replace(
            message=jax.tree.map(place if self.gathers else add, deposit.message, sent.message),
            metrics=jax.tree.map(add, deposit.metrics, sent.metrics),
            table=table,
            finite=deposit.finite.at[position].set(sent.finite, mode="drop"),
        )
