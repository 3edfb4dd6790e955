"""The gradient over all of a client's examples at the broadcast model: FedSGD's client, Mime's first pass."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import tree
from fedjax_sim._src.types import Array, ClientRule, Delta, PyTree, Task, Variables
from fedjax_sim.rules._gradients import gradient
from fedjax_sim.rules._plain import ParamsLoss, over_params, task_of


class GradientSum(NamedTuple):
    """``total``: sum over rows of their gradients, in float32 or wider; ``rows``: ``f32[]``, how many."""

    total: PyTree
    rows: Array
    stats: PyTree


def full_gradient(task: Task | ParamsLoss) -> ClientRule:
    """Sends minus the mean gradient of the client's examples (McMahan et al. 2017, FedSGD).

    Minus, so that the update is a descent direction like every other. The parameters stay at the broadcast ones for
    all batches, so the batch size only says how the sum is cut. ``task`` is as for ``local_sgd``.
    """
    if not isinstance(task, Task):
        return over_params(full_gradient(task_of(task)))
    if task.stats_policy == "local":
        raise ValueError(
            "full_gradient keeps no statistics per client: use batch_stats='averaged', or local_sgd."
        )

    def begin(broadcast: Variables, state, ctx):
        return GradientSum(
            tree.widen(tree.zeros_like(broadcast.params)), jnp.zeros((), jnp.float32), broadcast.stats
        )

    def step(broadcast: Variables, work: GradientSum, batch, ctx):
        mean, stats, metrics = gradient(task, broadcast._replace(stats=work.stats), batch, ctx.key)
        rows = jnp.sum(batch["mask"], dtype=jnp.float32)
        total = tree.add(work.total, tree.scale(tree.widen(mean), rows))
        return GradientSum(total, work.rows + rows, stats), metrics

    def finish(broadcast: Variables, work: GradientSum, state, ctx):
        direction = tree.scale(work.total, -1 / jnp.maximum(work.rows, 1))
        direction = jax.tree.map(lambda d, x: d.astype(x.dtype), direction, broadcast.params)
        return Delta(direction, tree.subtract(work.stats, broadcast.stats)), state, {}

    # The client measures and moves nothing: its own model is the one that it received.
    return ClientRule(lambda broadcast: (), begin, step, finish, lambda broadcast, work: broadcast)
