"""Mime's client: local steps with the server's optimizer state, which stays fixed."""

from __future__ import annotations

from typing import NamedTuple

import jax
import optax

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import ClientRule, Delta, PyTree, Task, Variables
from fedjax_sim.rules._gradients import gradient


class MimeBroadcast(NamedTuple):
    """Model x, optimizer state s and mean full gradient c of the paper."""

    variables: Variables
    optimizer: PyTree
    gradient: PyTree


def mime(task: Task, optimizer: optax.GradientTransformation) -> ClientRule:
    """Steps with ``g(y) - g(x) + c`` through an optimizer whose state is fixed (Karimireddy et al. 2021, algorithm 1).

    Both gradients are of the same batch, with the same key.

    Returns:
      A rule whose broadcast is ``MimeBroadcast``.
    """
    checks.task(task)
    checks.optimizer("base optimizer", optimizer)
    if task.stats_policy != "none":
        raise ValueError(
            "mime takes two gradients per batch and has no meaning for batch statistics; use a model without."
        )

    def step(broadcast: MimeBroadcast, params, batch, ctx):
        here, _, metrics = gradient(task, broadcast.variables._replace(params=params), batch, ctx.key)
        there, _, _ = gradient(task, broadcast.variables, batch, ctx.key)
        direction = jax.tree.map(lambda g, g0, c: g - g0 + c, here, there, broadcast.gradient)
        updates, _ = optimizer.update(direction, broadcast.optimizer, params)
        return optax.apply_updates(params, updates), metrics

    def finish(broadcast: MimeBroadcast, params, state, ctx):
        return Delta(tree.subtract(params, broadcast.variables.params)), state, {}

    return ClientRule(
        lambda broadcast: (),
        lambda broadcast, state, ctx: broadcast.variables.params,
        step,
        finish,
        lambda broadcast, params: broadcast.variables._replace(params=params),
    )
