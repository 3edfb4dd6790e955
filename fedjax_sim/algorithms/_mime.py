"""Mime: local steps that imitate a centralised optimizer."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim import aggregation, rules
from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Algorithm, Delta, Mean, PyTree, Stage, Task, Transform, Variables
from fedjax_sim.algorithms._fedavg import one_pass
from fedjax_sim.rules import MimeBroadcast


class MimeState(NamedTuple):
    """Model x, optimizer state s, and the cohort's mean gradient c at x, which the first stage measures."""

    variables: Variables
    optimizer: PyTree
    gradient: PyTree


def mime(
    task: Task,
    optimizer: optax.GradientTransformation,
    server_learning_rate: float = 1.0,
    aggregate: Transform | None = None,
    aggregate_gradient: Transform | None = None,
) -> Algorithm:
    """Mime (Karimireddy et al. 2021, algorithm 1), in two stages over the same cohort.

    First every client sends its full gradient at the server's model; their mean is c. Then the clients take steps
    ``g(y) - g(x) + c`` through ``optimizer`` with the server's state, and the server moves to the mean of their end
    points and its optimizer state by c.

    Args:
      task: model, loss and metrics; without batch statistics.
      optimizer: the base optimizer, for example ``optax.sgd(0.1, momentum=0.9)``.
      server_learning_rate: share of the way to the mean end point, 1 in the paper.
      aggregate: around the sum of updates; the mean over clients by default, as in the paper.
      aggregate_gradient: around the sum of gradients; likewise.
    """
    checks.optimizer("base optimizer", optimizer)
    aggregate = aggregation.mean(over="clients") if aggregate is None else aggregate
    aggregate_gradient = (
        aggregation.mean(over="clients") if aggregate_gradient is None else aggregate_gradient
    )

    facts = (*aggregation.chain(aggregate).facts, *aggregation.chain(aggregate_gradient).facts)
    public = any(fact.divisor == "public" for fact in facts)

    def init(variables: Variables) -> MimeState:
        return MimeState(variables, optimizer.init(variables.params), tree.zeros_like(variables.params))

    def remember(state: MimeState, direction: Delta, ctx):
        gradient = jax.tree.map(lambda g, d: -d.astype(g.dtype), state.gradient, direction.params)
        return state._replace(gradient=gradient), {
            "gradient_norm": Mean(tree.global_norm(gradient), jnp.ones(()))
        }

    def update(state: MimeState, mean: Delta, ctx):
        _, moved = optimizer.update(state.gradient, state.optimizer, state.variables.params)
        # A round in which nobody came leaves the optimizer alone, too; but where divisors are public constants, how many
        # came is not for the model to tell.
        if not public:
            moved = tree.where(ctx.clients > 0, moved, state.optimizer)
        params = tree.move(state.variables.params, tree.scale(mean.params, server_learning_rate))
        variables = state.variables._replace(params=params)
        norm = Mean(tree.global_norm(mean.params), jnp.ones(()))
        return state._replace(variables=variables, optimizer=moved), {"aggregate_norm": norm}

    measure = Stage(
        lambda state: state.variables, rules.full_gradient(task), aggregate_gradient, remember, one_pass
    )
    train = Stage(lambda state: MimeBroadcast(*state), rules.mime(task, optimizer), aggregate, update)
    return Algorithm("mime", task, init, (measure, train), lambda state: state.variables)
