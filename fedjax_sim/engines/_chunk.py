"""A chunk of rounds as one pure function: rounds in a loop, stages in a round, a pass over each group's queue."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import keys, tree
from fedjax_sim.aggregation._reduce import accumulator, gathers
from fedjax_sim.data.plans import Plan, Queue
from fedjax_sim.engines._auto import Layout
from fedjax_sim.engines._client import Turn
from fedjax_sim.engines._lane_queue import Deposit, LaneQueue, Shared
from fedjax_sim.engines._problem import Problem, SentSpec, aggregate, groups, sent_spec, server_step
from fedjax_sim.engines._state import SimState


class RoundReport(NamedTuple):
    """What the host gets back for each round; leaves of a chunk have a leading axis ``[rounds]``.

    Attributes:
      metrics: ``{name: Mean}`` with leaves ``f32[replicas]`` (``f32[]`` for a single run).
      model_finite: ``bool[replicas]``, whether the server's state is finite after the round.
      turns_finite: per stage and group, ``bool[devices, cap]``: whether each turn's update was finite.
      lane_steps: ``int32[devices]``, steps times lanes, over all stages and groups.
    """

    metrics: Any
    model_finite: Any
    turns_finite: Any
    lane_steps: Any


def merge_stage_metrics(per_stage: list[dict]) -> dict:
    """The last stage's metrics under their own names, those of earlier ones under ``stage<i>/``."""
    merged = {}
    for index, metrics in enumerate(per_stage):
        prefix = "" if index == len(per_stage) - 1 else f"stage{index}/"
        merged |= {prefix + name: value for name, value in metrics.items()}
    return merged


TOGETHER = 2**16
"""Bytes up to which an array travels with others."""


def summed(values, axis: str):
    """The sum of all leaves over a mesh axis.

    Small ones travel as one array: the devices meet for every array of a sum, and on CPU a meeting takes some 50
    microseconds, as long as ten steps of a small model.
    """
    leaves, structure = jax.tree.flatten(values)
    small = [x for x in leaves if x.nbytes <= TOGETHER]
    large = [x for x in leaves if x.nbytes > TOGETHER]
    packed, large = jax.lax.psum((tree.pack(small), large), axis)
    few, many = iter(tree.unpack(packed, small)), iter(large)
    return jax.tree.unflatten(structure, [next(few if x.nbytes <= TOGETHER else many) for x in leaves])


class Chunk:
    """The function ``(state, columns, plan, hyper) -> (state, reports)`` on one device of a mesh.

    Inside, every leaf of the state has a leading axis ``[replicas]``. With ``axis`` the sums over clients are also
    summed over that mesh axis, once per stage; the server's part is computed by every device alike.
    """

    def __init__(self, problem: Problem, layout: Layout, axis: str | None):
        self.problem, self.layout, self.axis = problem, layout, axis
        self.replicas = problem.replicas or 1
        self._passes = [self._passes_of(stage) for stage in range(len(problem.algorithm().stages))]
        self._traced_round = jax.jit(self._round, inline=True)
        """Traced once for its reports' shapes and for the loop."""

    def __call__(self, state: SimState, columns, plan: Plan, hyper):
        """Args: state leaves ``[replicas, ...]``; plan arrays ``[rounds, 1, cap]``, this device's part."""
        room = plan.clients.shape[0]
        queues = tree.squeezed(plan.queues, axis=1)
        rounds = state.round[0] + jnp.arange(room, dtype=jnp.int32)
        tickets = tuple(
            tuple(
                one.tickets(state.key, rounds, queue.entries)
                for one, queue in zip(passes, queues, strict=True)
            )
            for passes in self._passes
        )

        def one_round(state: SimState, index):
            mine, turns, clients = tree.row((queues, tickets, plan.clients), index)
            return self._traced_round(state, columns, mine, turns, clients, hyper)

        state = tree.strong(state)
        shapes = jax.eval_shape(one_round, state, jnp.int32(0))[1]
        reports = jax.tree.map(lambda x: jnp.zeros((room, *x.shape), x.dtype), shapes)

        def body(index, carry):
            state, reports = carry
            state, report = one_round(state, index)
            return tree.strong(state), tree.with_row(reports, index, report)

        return jax.lax.fori_loop(0, plan.rounds, body, (state, reports))

    def _round(self, state: SimState, columns, queues: tuple[Queue, ...], tickets, clients, hyper):
        server, table, parts = state.server, state.clients, list(state.aggregate)
        round_ = state.round[0]
        per_stage, finite, lane_steps = [], [], jnp.int32(0)
        for stage in range(len(parts)):
            broadcast = jax.vmap(
                lambda h, s, stage=stage: self._stage(h, stage).broadcast(s), axis_size=self.replicas
            )(hyper, server)
            shared = Shared(hyper, broadcast, parts[stage], round_, columns)
            message, mask, table, metrics, stage_finite, steps = self._cohort(
                stage, shared, table, queues, tickets[stage]
            )
            sent = self._sent(stage, broadcast, state)
            server, parts[stage], measured = self._server(
                stage, sent, hyper, server, message, parts[stage], mask, state.key, round_, clients
            )
            per_stage.append({**metrics, **measured})
            finite.append(stage_finite)
            lane_steps += steps
        state = SimState(server, table, tuple(parts), state.round + 1, state.key)
        healthy = jax.vmap(tree.all_finite, axis_size=self.replicas)(server)
        metrics = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), merge_stage_metrics(per_stage))
        return state, RoundReport(metrics, healthy, tuple(finite), lane_steps[None])

    def _stage(self, hyper, stage: int):
        return self.problem.build(hyper).stages[stage]

    def _sent(self, stage: int, broadcast, state: SimState) -> SentSpec:
        one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), (broadcast, state))
        return sent_spec(self.problem, self.problem.algorithm(), stage, *one)

    def _passes_of(self, stage: int) -> list[LaneQueue]:
        """One per group of clients."""
        declared = self.problem.algorithm().stages[stage]
        settings = {
            "layout": self.layout,
            "replicas": self.replicas,
            "gathers": gathers(aggregate(declared)),
        }
        return [
            LaneQueue(Turn(self.problem, stage, g), stage, g, **settings)
            for g in range(len(groups(declared)))
        ]

    def _cohort(self, stage: int, shared: Shared, table, queues: tuple[Queue, ...], tickets):
        """All turns of a stage, and their reduction over the mesh."""
        passes = self._passes[stage]
        rows_kept = passes[0].gathers
        caps = [len(turns.numbers) for turns in tickets]
        specs = [
            p.specs(shared, table, turns, q.rows[stage])
            for p, q, turns in zip(passes, queues, tickets, strict=True)
        ]
        for group, spec in enumerate(specs):
            if spec.metrics != specs[0].metrics:
                raise TypeError(
                    f"stage {stage}: the rule of group {group} measures {spec.metrics}, that of group 0 {specs[0].metrics}: "
                    "all groups of a stage need metrics of the same names, shapes and dtypes."
                )
        shape = (self.replicas, sum(caps)) if rows_kept else (self.replicas,)
        message = accumulator(specs[0].message, shape)
        metrics = jax.tree.map(lambda x: jnp.zeros((self.replicas, *x.shape), x.dtype), specs[0].metrics)
        finite, masks, steps, offset = [], [], jnp.int32(0), 0
        for queue_pass, spec, queue, turns, cap in zip(passes, specs, queues, tickets, caps, strict=True):
            deposit = Deposit(message, metrics, table, jnp.ones(cap, bool), jnp.int32(0))
            deposit = queue_pass.run(spec, shared, turns, queue.count, queue.rows[stage], deposit, offset)
            message, metrics, table = deposit.message, deposit.metrics, deposit.table
            finite.append(deposit.finite[None])
            masks.append(self._valid_rows(queue))
            steps += deposit.lane_steps
            offset += cap
        mask = jnp.concatenate(masks, axis=1) if rows_kept else None
        if self.axis is not None:
            if rows_kept:
                metrics = summed(metrics, self.axis)
                message, mask = jax.lax.all_gather((message, mask), self.axis, axis=1, tiled=True)
            else:
                message, metrics = summed((message, metrics), self.axis)
        return message, mask, table, metrics, tuple(finite), steps

    def _valid_rows(self, queue: Queue):
        """``bool[replicas, cap]``: rows of a gather that a client with examples has written."""
        there = (jnp.arange(queue.entries.client.shape[0]) < queue.count) & (queue.entries.examples > 0)
        return there & (queue.entries.replica == jnp.arange(self.replicas)[:, None])

    def _server(self, stage, sent: SentSpec, hyper, server, message, part, mask, root, round_, clients):
        """Decode and server update, for every replica."""

        def one(hyper, server, message, part, mask, root, clients):
            key = keys.server_key(root, round_, stage)
            ctx = self.problem.round_context(key, round_, clients, mask)
            algorithm = self.problem.build(hyper)
            return server_step(self.problem, algorithm, stage, server, message, part, sent, ctx)

        return jax.vmap(one, axis_size=self.replicas)(hyper, server, message, part, mask, root, clients)
