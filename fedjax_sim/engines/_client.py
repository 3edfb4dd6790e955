"""One client's turn as pure functions of arrays: what every engine runs, and the only place that does.

Engines differ in how they schedule turns. That randomness, rows and contexts are made here, from the entry alone,
is why the schedule cannot change a result.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import keys, tree
from fedjax_sim._src.types import Array, ClientContext, ClientRule, Mean, Message, Metrics, StepContext
from fedjax_sim.aggregation._reduce import as_message
from fedjax_sim.data import batches
from fedjax_sim.data.plans import Entry
from fedjax_sim.engines._problem import Problem, aggregate, groups, traced_rule


class TurnKeys(NamedTuple):
    """Keys of one client in one round and stage, made once at the beginning of its turn.

    Attributes:
      turn: threefry key that the client's contexts fold their purpose into.
      step: threefry key that each step folds its number into.
      order: ``uint32[2]``, random words behind the order of the examples.
    """

    turn: jax.Array
    step: jax.Array
    order: Array


class Packed(NamedTuple):
    """Small values in few arrays, each of which a lane takes over in one copy.

    Attributes:
      numbers: ``int32[numbers]``.
      words: ``uint32[words]``; apart from the numbers, because the compiler converts neither to the other for free.
    """

    numbers: Array
    words: Array


class Ticket(NamedTuple):
    """What a lane knows of its turn: the queue's entry and the turn's keys."""

    entry: Entry
    keys: TurnKeys

    def packed(self) -> Packed:
        entry, (turn, step, order) = self
        numbers = jnp.concatenate([jnp.ravel(x) for x in entry])
        return Packed(numbers, jnp.concatenate([jax.random.key_data(turn), jax.random.key_data(step), order]))

    @classmethod
    def of(cls, packed: Packed) -> Ticket:
        """The inverse of ``packed``."""
        numbers, (turn, step, order) = packed.numbers, jnp.split(packed.words, 3)
        fields = len(Entry._fields) - 2
        stages = (len(numbers) - fields) // 2
        # One operation where an index each would be two for every field, and Python's time for them.
        *single, steps, before = jax.lax.split(numbers, [1] * fields + [stages] * 2)
        entry = Entry(*tree.squeezed(single), steps=steps, before=before)
        wrap = functools.partial(jax.random.wrap_key_data, impl="threefry2x32")
        return cls(entry, TurnKeys(wrap(turn), wrap(step), order))


TICKET_WORDS = 6
"""Two of each of a turn's keys and of the words behind its order."""


class Row(NamedTuple):
    """A client's row of the client table: the rule's state, the chain's part, whether the state was ever made."""

    state: Any
    part: Any
    seen: Any


class Sent(NamedTuple):
    """What a turn leaves: the encoded message, the client's row, metrics, and whether the update was finite."""

    message: Message
    row: Row
    metrics: Metrics
    finite: Array


class Turn:
    """``begin``, ``step`` and ``finish`` of one (stage, group), with everything static bound."""

    def __init__(self, problem: Problem, stage: int, group: int):
        self._problem = problem
        self._stage = stage
        self._group = group
        self._rule = traced_rule(problem, stage, group)
        self.local = problem.works(problem.algorithm())[stage]
        # Traced once for all the places of a program that need them or their shapes.
        parts = (self._begin, self._order, self._rows, self.one_step, self._finish)
        self.begin, self.order, self.rows, self.step, self.finish = (
            jax.jit(part, inline=True) for part in parts
        )

    def rule(self, hyper) -> ClientRule:
        return groups(self._problem.build(hyper).stages[self._stage])[self._group]

    def keys(self, root: jax.Array, round_, entry: Entry) -> TurnKeys:
        turn = (keys.CLIENT, round_, self._stage, entry.client, entry.draw)
        # The order of a pass that goes on in another round cannot depend on the round.
        order = (
            (keys.PASSES, self._stage, entry.client) if self.local.continue_epochs else (*turn, keys.ORDER)
        )
        of_step, *of_order = keys.along(root, (*turn, keys.STEP), *((*order, word) for word in range(2)))
        # These are the words of ``jax.random.bits(<key of the order>, (2,))``.
        words = jnp.stack([jnp.bitwise_xor(*jax.random.key_data(path[-1])) for path in of_order])
        return TurnKeys(of_step[-2], of_step[-1], words)

    def _context(self, key, round_, entry: Entry) -> ClientContext:
        return ClientContext(
            key=key,
            round=round_,
            client=entry.client,
            draw=entry.draw,
            num_examples=entry.examples,
            num_steps=entry.steps[self._stage],
            group=jnp.asarray(self._group, jnp.int32),
            staleness=entry.version,
            bound=jnp.float32(jnp.inf),
        )

    def state(self, hyper, broadcast, row: Row):
        """The client's state: made at first participation, read from its row afterwards."""
        if self._stage > 0 or not jax.tree.leaves(row.state):
            return row.state
        return tree.where(row.seen, row.state, self.rule(hyper).init(broadcast))

    def _begin(self, hyper, broadcast, own: TurnKeys, round_, entry: Entry, row: Row):
        ctx = self._context(keys.fold(own.turn, keys.BEGIN), round_, entry)
        return tree.strong(self._rule.begin(hyper, broadcast, self.state(hyper, broadcast, row), ctx))

    def _order(self, own: TurnKeys, entry: Entry) -> Array:
        """The order of the client's examples, ``uint32[words]``: what there is to work out once a turn."""
        return batches.turn_order(self.local, own.order, entry.examples)

    def _rows(self, order: Array, entry: Entry, step, explicit) -> Array:
        """Rows of a step in the client's examples, ``int32[rows]``, -1 where there is none.

        Explicit ones ``int32[steps, batch_size]`` if there are any, else by the turn's order.
        """
        if explicit is None:
            return batches.step_rows(self.local, order, step, entry.examples, entry.before[self._stage])
        return explicit[jnp.minimum(step, explicit.shape[0] - 1)]

    def one_step(
        self,
        hyper,
        broadcast,
        columns: Mapping[str, Array],
        rows: Array,
        own: TurnKeys,
        entry: Entry,
        step,
        work,
    ):
        """One local step on these rows of the client's examples."""
        batch = batches.gather(columns, entry.start, rows)
        if self.local.batches_per_step > 1:
            shape = (self.local.batches_per_step, self.local.batch_size)
            batch = {name: x.reshape(*shape, *x.shape[1:]) for name, x in batch.items()}
        steps = jnp.maximum(entry.steps[self._stage], 1)
        epoch = batches.epoch_of(self.local, step, entry.examples, entry.before[self._stage])
        ctx = StepContext(keys.fold(own.step, step), step, epoch, step / steps)
        work, metrics = self._rule.step(hyper, broadcast, work, batch, ctx)
        return tree.strong(work), dict(metrics)

    def update(self, hyper, broadcast, own: TurnKeys, round_, entry: Entry, work, row: Row):
        """What the rule alone makes of its work: the message before any layer, new state, metrics.

        A client without examples sends zeros, whatever its rule makes of no step.
        """
        ctx = self._context(keys.fold(own.turn, keys.FINISH), round_, entry)
        sent, state, metrics = self._rule.finish(
            hyper, broadcast, work, self.state(hyper, broadcast, row), ctx
        )
        message = as_message(sent)
        if self._problem.empty_clients:
            message = jax.tree.map(lambda x: jnp.where(entry.examples > 0, x, 0), message)
        return message, state, metrics

    def _finish(
        self, hyper, broadcast, server_part, own: TurnKeys, round_, entry: Entry, work, row: Row
    ) -> Sent:
        ctx = self._context(keys.fold(own.turn, keys.FINISH), round_, entry)
        update, state, metrics = self.update(hyper, broadcast, own, round_, entry, work, row)
        norm = tree.global_norm(jax.tree.map(lambda x: jnp.asarray(x), update.value))
        came = (entry.examples > 0).astype(jnp.float32)
        transform = aggregate(self._problem.build(hyper).stages[self._stage])
        message, part, encoded = transform.encode(
            update, row.part, server_part, ctx._replace(key=keys.fold(own.turn, keys.ENCODE))
        )
        measured = {**metrics, **encoded}
        if jax.tree.leaves(update.value):
            measured["update_norm"] = Mean(norm * came, came)
        seen = row.seen if isinstance(row.seen, tuple) else jnp.ones((), bool)
        finite = jnp.isfinite(norm) & tree.all_finite(update.aux)
        return Sent(message, tree.strong(Row(state, part, seen)), measured, finite)
