"""SCAFFOLD: control variates on the server and on every client."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import optax

from fedjax_sim import aggregation, rules
from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Algorithm, Mean, PyTree, Stage, Task, Transform, Variables
from fedjax_sim.algorithms import _server
from fedjax_sim.rules import ScaffoldBroadcast, ScaffoldUpdate


class ScaffoldState(NamedTuple):
    """The global model, the server optimizer's state, and the server's control c."""

    variables: Variables
    optimizer: PyTree
    control: PyTree


def scaffold(
    task: Task,
    learning_rate: float,
    server: optax.GradientTransformation | None = None,
    aggregate: Transform | None = None,
) -> Algorithm:
    """SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II), partial participation included.

    The server's control moves by ``|S| / N`` times the mean change of the clients' controls, N being the population.

    Args:
      task: model, loss and metrics.
      learning_rate: the clients' step size.
      server: the server's optimizer; SGD with step size 1 by default, as in the paper.
      aggregate: transforms around the sum of (update, control change); the mean over clients by default, as in the
        paper. A clip in it bounds both parts together, and noise falls on both: nothing else leaves a client.
    """
    server = optax.sgd(1.0) if server is None else server
    aggregate = aggregation.mean(over="clients") if aggregate is None else aggregate
    checks.optimizer("server optimizer", server)
    public = any(fact.divisor == "public" for fact in aggregation.chain(aggregate).facts)

    def init(variables: Variables) -> ScaffoldState:
        return ScaffoldState(variables, server.init(variables.params), tree.zeros_like(variables.params))

    def update(state: ScaffoldState, mean: ScaffoldUpdate, ctx):
        variables, optimizer = _server.apply_delta(server, state.variables, state.optimizer, mean.delta)
        divisor = ctx.expected_clients if public else ctx.clients
        control = tree.move(state.control, tree.scale(mean.control, divisor / ctx.population))
        norm = Mean(tree.global_norm(mean.delta.params), jnp.ones(()))
        return ScaffoldState(variables, optimizer, control), {"aggregate_norm": norm}

    stage = Stage(
        lambda state: ScaffoldBroadcast(state.variables, state.control),
        rules.scaffold(task, learning_rate),
        aggregate,
        update,
    )
    return Algorithm("scaffold", task, init, (stage,), lambda state: state.variables)
