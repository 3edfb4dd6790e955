"""The sequential engine: one client at a time, one jitted step per batch. The oracle, and the honest baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import keys, tree
from fedjax_sim._src.types import Message
from fedjax_sim.aggregation._reduce import accumulator, gathers
from fedjax_sim.data.plans import Entry, Plan, Queue
from fedjax_sim.engines._chunk import RoundReport, merge_stage_metrics
from fedjax_sim.engines._client import Row, Turn
from fedjax_sim.engines._engine import Engine, RoundFn, programs
from fedjax_sim.engines._problem import Problem, SentSpec, aggregate, groups, sent_spec, server_step
from fedjax_sim.engines._state import ClientTable, SimState


def sequential() -> Engine:
    """Trains one client after the other from a Python loop, one dispatch per batch.

    As other simulators do it, with nothing else between two steps. Use it to check the other engines, or to step
    through a round.
    """
    return Engine("sequential", 1, _SequentialRounds)


class _SequentialRounds(RoundFn):
    layout = None

    def __init__(self, problem: Problem):
        self._problem = problem
        stages = problem.algorithm().stages
        self._turns = [
            [_JittedTurn(Turn(problem, s, g)) for g in range(len(groups(stage)))]
            for s, stage in enumerate(stages)
        ]
        self._servers = [_JittedServer(problem, s) for s in range(len(stages))]
        self._finite = jax.jit(tree.all_finite)

    def place_columns(self, columns: Mapping[str, np.ndarray | jax.Array]):
        return {name: jnp.asarray(column) for name, column in columns.items()}

    def place_state(self, state: SimState) -> SimState:
        return jax.tree.map(jnp.asarray, state)  # nothing of it is consumed

    def place_clients(self, table: ClientTable) -> ClientTable:
        return jax.tree.map(jnp.asarray, table)

    def compilations(self) -> int:
        return sum(programs(turn.step) for stage in self._turns for turn in stage)

    def __call__(self, state: SimState, columns, plan: Plan, hyper=()):
        single = self._problem.replicas is None
        states = (
            [state]
            if single
            else [jax.tree.map(lambda x, r=r: x[r], state) for r in range(self._problem.replicas or 1)]
        )
        hypers = [hyper] if single else [jax.tree.map(lambda x, r=r: x[r], hyper) for r in range(len(states))]
        reports = []
        for index in range(int(plan.rounds)):
            queues = jax.tree.map(lambda x, index=index: x[index, 0], plan.queues)
            done = [
                self._round(s, columns, queues, r, int(plan.clients[index, r]), h)
                for r, (s, h) in enumerate(zip(states, hypers, strict=True))
            ]
            states = [s for s, _ in done]
            reports.append(self._join([report for _, report in done], single))
        state = states[0] if single else jax.tree.map(lambda *x: jnp.stack(x), *states)
        return state, self._stack(reports, plan.clients.shape[0])

    def _round(self, state: SimState, columns, queues: tuple[Queue, ...], replica: int, clients: int, hyper):
        server, table, parts = state.server, state.clients, list(state.aggregate)
        per_stage, finite, steps = [], [], 0
        for stage, jitted in enumerate(self._servers):
            broadcast = jitted.broadcast(hyper, server)
            messages, masks, metrics, stage_finite = [], [], [], []
            for group, queue in enumerate(queues):
                turn = self._turns[stage][group]
                healthy = []
                for position in range(int(queue.count)):
                    entry: Entry = jax.tree.map(lambda x, p=position: x[p], queue.entries)
                    if entry.replica != replica:
                        continue
                    rows = None if queue.rows[stage] is None else queue.rows[stage][position]
                    row = _read(table, stage, group, entry.slot)
                    sent = turn(
                        hyper,
                        broadcast,
                        parts[stage],
                        state.key,
                        state.round,
                        columns,
                        entry,
                        rows,
                        row,
                        stage,
                    )
                    table = _write(table, stage, group, entry.slot, sent.row)
                    steps += int(entry.steps[stage])
                    healthy.append((position, sent.finite))
                    messages.append(sent.message)
                    metrics.append(sent.metrics)
                    masks.append(entry.examples > 0)
                stage_finite.append(_by_position(healthy, queue.entries.client.shape[0]))
            server, parts[stage], measured = jitted.update(
                hyper,
                server,
                messages,
                masks,
                parts[stage],
                state.key,
                state.round,
                np.int32(clients),
                lambda s=stage, b=broadcast: sent_spec(
                    self._problem, self._problem.algorithm(), s, tree.spec(b), state
                ),
            )
            per_stage.append({**_sum(metrics), **measured})
            finite.append(tuple(stage_finite))
        state = SimState(server, table, tuple(parts), state.round + 1, state.key)
        report = RoundReport(
            merge_stage_metrics(per_stage), self._finite(server), tuple(finite), np.array([steps])
        )
        return state, report

    def _join(self, reports: list[RoundReport], single: bool) -> RoundReport:
        """Reports of the replicas of one round as one."""
        if single:
            return reports[0]
        finite = jax.tree.map(lambda *x: np.logical_and.reduce(x), *[r.turns_finite for r in reports])
        metrics = jax.tree.map(lambda *x: np.stack(x), *[r.metrics for r in reports])
        healthy = np.stack([r.model_finite for r in reports])
        return RoundReport(metrics, healthy, finite, sum(r.lane_steps for r in reports))

    def _stack(self, reports: list[RoundReport], room: int) -> RoundReport:
        """Rounds of a chunk along a new first axis, with room for those that were not run; metrics a round lacks are 0."""
        names = {name: value for report in reports for name, value in report.metrics.items()}
        zero = lambda value: jax.tree.map(lambda x: np.zeros_like(np.asarray(x)), value)  # noqa: E731
        whole = [
            r._replace(metrics={n: r.metrics.get(n, zero(v)) for n, v in names.items()}) for r in reports
        ]

        def stack(*values):
            first = np.asarray(values[0])
            return np.stack([*map(np.asarray, values), *[np.zeros_like(first)] * (room - len(values))])

        return jax.tree.map(stack, *whole)


class _JittedTurn:
    """One client's turn: a dispatch to begin, one per batch, one to finish."""

    def __init__(self, turn: Turn):
        def begin(hyper, broadcast, columns, explicit, root, round_, entry, row):
            own, index = turn.keys(root, round_, entry), jnp.int32(0)
            work = turn.begin(hyper, broadcast, own, round_, entry, row)
            rows = turn.rows(turn.order(own, entry), entry, index, explicit)
            measured = jax.eval_shape(turn.step, hyper, broadcast, columns, rows, own, entry, index, work)[1]
            return own, (work, tree.zeros_like(measured), index)

        def step(hyper, broadcast, columns, explicit, own, entry, carry):
            work, total, index = carry
            rows = turn.rows(turn.order(own, entry), entry, index, explicit)
            work, measured = turn.step(hyper, broadcast, columns, rows, own, entry, index, work)
            return work, tree.add(total, measured), index + 1

        self._begin = jax.jit(begin)
        self.step = jax.jit(step, donate_argnums=6)
        self._finish = jax.jit(turn.finish)

    def __call__(self, hyper, broadcast, part, root, round_, columns, entry, explicit, row: Row, stage: int):
        steps = int(entry.steps[stage])
        entry, explicit = jax.device_put((entry, explicit))
        own, carry = self._begin(hyper, broadcast, columns, explicit, root, round_, entry, row)
        for _ in range(steps):
            carry = self.step(hyper, broadcast, columns, explicit, own, entry, carry)
        work, total, _ = carry
        sent = self._finish(hyper, broadcast, part, own, round_, entry, work, row)
        return sent._replace(metrics={**total, **sent.metrics})


class _JittedServer:
    """Broadcast, reduction, decode and update of one stage."""

    def __init__(self, problem: Problem, stage: int):
        self._problem, self._stage = problem, stage
        self.broadcast = jax.jit(lambda hyper, server: problem.build(hyper).stages[stage].broadcast(server))
        self._add = jax.jit(
            lambda total, message: jax.tree.map(lambda t, m: t + m.astype(t.dtype), total, message)
        )
        self._finish = jax.jit(self._decode_and_update)
        self._sent: SentSpec | None = None
        self._rows = gathers(aggregate(problem.algorithm().stages[stage]))

    def update(
        self,
        hyper,
        server,
        messages: list[Message],
        masks,
        part,
        root,
        round_,
        clients,
        sent: Callable[[], SentSpec],
    ):
        """``sent``: makes the specs of what a client sends; the same in every round."""
        self._sent = sent() if self._sent is None else self._sent
        if self._rows:
            room = max(len(messages), 1)
            if not messages:
                messages, masks = [tree.zeros_like(self._sent.message)], [False]
            stacked = jax.tree.map(lambda *x: jnp.stack(x), *messages)
            return self._finish(
                hyper, server, stacked, part, np.asarray(masks).reshape(room), root, round_, clients
            )
        total = accumulator(self._sent.message, ())
        for message in messages:
            total = self._add(total, message)
        return self._finish(hyper, server, total, part, None, root, round_, clients)

    def _decode_and_update(self, hyper, server, message, part, mask, root, round_, clients):
        key = keys.server_key(root, round_, self._stage)
        ctx = self._problem.round_context(key, round_, clients, mask)
        algorithm = self._problem.build(hyper)
        assert self._sent is not None  # update made it
        return server_step(self._problem, algorithm, self._stage, server, message, part, self._sent, ctx)


def _sum(metrics: list[dict]) -> dict:
    """Sums metrics over turns, on the host."""
    return jax.tree.map(lambda *x: np.sum(np.stack(x), axis=0), *jax.device_get(metrics)) if metrics else {}


def _by_position(healthy: list, cap: int) -> np.ndarray:
    """``bool[1, cap]`` from pairs of position and whether that turn's update was finite; True where nobody stood."""
    result = np.ones((1, cap), bool)
    for position, finite in healthy:
        result[0, position] = bool(finite)
    return result


def _read(table: ClientTable, stage: int, group: int, slot) -> Row:
    row = Row(table.states[group] if table.states else (), table.parts[stage], table.seen)
    return jax.tree.map(lambda x: x[slot], row)


def _write(table: ClientTable, stage: int, group: int, slot, row: Row) -> ClientTable:
    put = lambda x, value: x.at[slot].set(value)  # noqa: E731
    states, parts = list(table.states), list(table.parts)
    if states:
        states[group] = jax.tree.map(put, states[group], row.state)
    parts[stage] = jax.tree.map(put, parts[stage], row.part)
    return ClientTable(tuple(states), tuple(parts), jax.tree.map(put, table.seen, row.seen))
