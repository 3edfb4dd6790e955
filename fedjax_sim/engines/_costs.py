"""What one client's turn costs, from shapes alone."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from fedjax_sim_kernels import as_written

from fedjax_sim._src import keys, tree
from fedjax_sim._src.types import Message, RuleTraffic
from fedjax_sim.aggregation._describe import message_bits
from fedjax_sim.data.plans import Entry
from fedjax_sim.engines._client import Row, Turn
from fedjax_sim.engines._flops import flops
from fedjax_sim.engines._problem import Problem, aggregate, groups, message_spec
from fedjax_sim.engines._state import SimState
from fedjax_sim.tasks.precision import products_of


class TurnCosts(NamedTuple):
    """Per turn of a client of one group.

    Attributes:
      bytes_up: encoded messages of all stages, without what the rule does not really send; numbers modulo ``2^bits`` take
        as many bits each, as ``aggregation.describe`` counts them.
      bytes_down: broadcasts of all stages, likewise.
      step_flops: operations of one local step in each stage, counted in the model as it is written: a faster form
        of a convolution does not change them.
      step_products: dtypes and precisions of the products in a step, for each stage.
    """

    bytes_up: int
    bytes_down: int
    step_flops: tuple[float, ...]
    step_products: tuple[tuple[str, ...], ...]


def turn_costs(problem: Problem, state: SimState) -> tuple[TurnCosts, ...]:
    """Costs of a turn, one for each group; ``state`` has a replica axis if the problem has one.

    They are traced once for a problem, whose states all have the same shapes but for the rows of the client table.
    """
    if "turn_costs" not in problem.known:
        algorithm = problem.algorithm()
        if problem.replicas is not None:
            state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), state)
        every = range(len(groups(algorithm.stages[0])))
        problem.known["turn_costs"] = tuple(_group_costs(problem, state, group) for group in every)
    return problem.known["turn_costs"]


def step_flops(problem: Problem, state: SimState) -> float:
    """Operations of the largest local step of a client, over stages and groups."""
    return max(flops for costs in turn_costs(problem, state) for flops in costs.step_flops)


def _group_costs(problem: Problem, state: SimState, group: int) -> TurnCosts:
    algorithm = problem.algorithm()
    up = down = 0
    per_step = []
    for index, stage in enumerate(algorithm.stages):
        rule = groups(stage)[group]
        broadcast = jax.eval_shape(stage.broadcast, state.server)
        message = message_spec(problem, algorithm, index, broadcast, state, group)
        down += tree.num_bytes(_crossing(rule.receives, broadcast))
        sent = _crossing(rule.sends, message)
        layers = aggregate(stage).facts
        last = layers[-1] if layers else None
        # A packed message fills its last byte.
        up += -(-message_bits(sent, last) // 8) if isinstance(sent, Message) else tree.num_bytes(sent)
        per_step.append(_step(problem, index, group, broadcast, state))
    return TurnCosts(
        up,
        down,
        tuple(flops(step.jaxpr.jaxpr) for step in per_step),
        tuple(products_of(step.jaxpr.jaxpr) for step in per_step),
    )


def _crossing(part: RuleTraffic | None, whole):
    return whole if part is None else jax.eval_shape(part, whole)


def _step(problem: Problem, stage: int, group: int, broadcast, state: SimState) -> jax.stages.Traced:
    """A local step, traced with the model as it is written."""
    algorithm = problem.algorithm()
    zero = jax.ShapeDtypeStruct((), jnp.int32)
    by_stage = jax.ShapeDtypeStruct((len(algorithm.stages),), jnp.int32)
    entry = Entry(zero, zero, zero, zero, zero, zero, zero, by_stage, by_stage)
    turn = Turn(problem, stage, group)
    row = row_spec(state, stage, group)
    key = jax.eval_shape(turn.keys, jax.eval_shape(lambda: keys.root_key(0)), zero, entry)
    work = jax.eval_shape(turn.begin, problem.example_hyper, broadcast, key, zero, entry, row)
    rows = jax.ShapeDtypeStruct((turn.local.rows_per_step,), jnp.int32)
    # Of any length: a stream's population may have more examples than places of 32 bits, which a chunk's have not.
    columns = {
        name: jax.ShapeDtypeStruct((1, *spec.shape[1:]), spec.dtype) for name, spec in problem.columns.items()
    }
    with as_written():
        return jax.jit(turn.one_step).trace(
            problem.example_hyper,
            broadcast,
            columns,
            rows,
            key,
            entry,
            zero,
            work,
        )


def row_spec(state: SimState, stage: int, group: int):
    """Spec of a client's row of the table."""
    table = state.clients
    row = Row(table.states[group] if table.states else (), table.parts[stage], table.seen)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), row)
