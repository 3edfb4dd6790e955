"""What one client's turn costs, from shapes alone."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import keys, tree
from fedjax_sim.data.plans import Entry
from fedjax_sim.engines._client import Row, Rows, Turn
from fedjax_sim.engines._problem import Problem, groups, message_spec
from fedjax_sim.engines._state import SimState


class TurnCosts(NamedTuple):
    """Per turn, averaged over groups.

    Attributes:
      bytes_up: encoded messages of all stages.
      bytes_down: broadcasts of all stages.
      step_flops: operations of one local step in each stage, by XLA's count (a loop's body counts once).
    """

    bytes_up: int
    bytes_down: int
    step_flops: tuple[float, ...]


def turn_costs(problem: Problem, state: SimState) -> TurnCosts:
    """Costs of a turn; ``state`` has a replica axis if the problem has one."""
    algorithm = problem.algorithm()
    if problem.replicas is not None:
        state = jax.tree.map(lambda x: jax.eval_shape(lambda y: y[0], x), state)
    up = down = 0
    flops = []
    for index, stage in enumerate(algorithm.stages):
        broadcast = jax.eval_shape(stage.broadcast, state.server)
        down += tree.num_bytes(broadcast)
        up += tree.num_bytes(message_spec(problem, algorithm, index, broadcast, state))
        flops.append(_step_flops(problem, index, broadcast, state))
    return TurnCosts(up, down, tuple(flops))


def _step_flops(problem: Problem, stage: int, broadcast, state: SimState) -> float:
    algorithm = problem.algorithm()
    zero = jax.ShapeDtypeStruct((), jnp.int32)
    entry = Entry(
        zero, zero, zero, zero, zero, zero, zero, jax.ShapeDtypeStruct((len(algorithm.stages),), jnp.int32)
    )
    counts = []
    for group in range(len(groups(algorithm.stages[stage]))):
        turn = Turn(problem, stage, group)
        row = row_spec(state, stage, group)
        key = jax.eval_shape(turn.keys, jax.eval_shape(lambda: keys.root_key(0)), zero, entry)
        work = jax.eval_shape(turn.begin, problem.example_hyper, broadcast, key, zero, entry, row)
        count = turn.local.rows_per_step
        rows = Rows(jax.ShapeDtypeStruct((count,), jnp.int32), jax.ShapeDtypeStruct((count,), jnp.bool_))
        lowered = jax.jit(turn.step).lower(
            problem.example_hyper, broadcast, dict(problem.columns), rows, key, entry, zero, work
        )
        analysis = lowered.cost_analysis() or {}
        counts.append(float(analysis.get("flops", 0.0)))
    return sum(counts) / len(counts)


def row_spec(state: SimState, stage: int, group: int):
    """Spec of a client's row of the table."""
    table = state.clients
    row = Row(table.states[group] if table.states else (), table.parts[stage], table.seen)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), row)
