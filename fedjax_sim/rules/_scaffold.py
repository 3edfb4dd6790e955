"""SCAFFOLD's client: local SGD corrected by control variates."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import ClientRule, Delta, PyTree, Task, Variables
from fedjax_sim.rules._gradients import gradient


class ScaffoldBroadcast(NamedTuple):
    """``control`` is the server's c of the paper."""

    variables: Variables
    control: PyTree


class ScaffoldUpdate(NamedTuple):
    """Both parts are the client's message: a bound that is to hold must cover them."""

    delta: Delta
    control: PyTree


class ScaffoldWork(NamedTuple):
    params: PyTree
    drift: PyTree
    stats: PyTree


def scaffold(task: Task, learning_rate: float) -> ClientRule:
    """SGD with the gradient corrected by ``c - c_i`` (Karimireddy et al. 2020, algorithm 1, option II).

    The client's new control is ``c_i - c + (x - y) / (K * learning_rate)`` with the K steps that the client really
    took; one that took none keeps its control. The client's state is its control, zero at first.

    Args:
      task: model, loss and metrics.
      learning_rate: the local step size; SCAFFOLD is defined for plain SGD, hence no optimizer here.

    Returns:
      A rule whose broadcast is ``ScaffoldBroadcast`` and whose update is ``ScaffoldUpdate``.
    """
    checks.task(task)
    checks.positive("learning_rate", learning_rate)
    if task.stats_policy == "local":
        raise ValueError("scaffold keeps no batch statistics per client: use batch_stats='averaged'.")

    def begin(broadcast: ScaffoldBroadcast, control, ctx):
        return ScaffoldWork(
            broadcast.variables.params, tree.subtract(broadcast.control, control), broadcast.variables.stats
        )

    def step(broadcast: ScaffoldBroadcast, work: ScaffoldWork, batch, ctx):
        variables = Variables(work.params, broadcast.variables.frozen, work.stats)
        grads, stats, metrics = gradient(task, variables, batch, ctx.key)
        params = jax.tree.map(lambda y, g, d: y - learning_rate * (g + d), work.params, grads, work.drift)
        return ScaffoldWork(params, work.drift, stats), metrics

    def finish(broadcast: ScaffoldBroadcast, work: ScaffoldWork, control, ctx):
        delta = tree.subtract(work.params, broadcast.variables.params)
        took = ctx.num_steps > 0
        per_step = 1 / (jnp.maximum(ctx.num_steps, 1) * learning_rate)
        change = jax.tree.map(
            lambda c, d: jnp.where(took, -c - d * per_step, 0).astype(d.dtype), broadcast.control, delta
        )
        stats = tree.subtract(work.stats, broadcast.variables.stats)
        return ScaffoldUpdate(Delta(delta, stats), change), tree.add(control, change), {}

    def model(broadcast: ScaffoldBroadcast, work: ScaffoldWork) -> Variables:
        return Variables(work.params, broadcast.variables.frozen, work.stats)

    return ClientRule(lambda broadcast: tree.zeros_like(broadcast.control), begin, step, finish, model)
