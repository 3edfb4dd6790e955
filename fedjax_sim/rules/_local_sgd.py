"""Local training with any optimizer: the client side of FedAvg."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import optax

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Batch, ClientRule, Delta, Key, Metrics, PyTree, Task, Variables
from fedjax_sim.rules._gradients import gradient
from fedjax_sim.rules._plain import ParamsLoss, over_params, task_of


class Training(NamedTuple):
    """A client's working state: its parameters, its optimizer's state and its statistics."""

    params: PyTree
    optimizer: PyTree
    stats: PyTree


class Direction(Protocol):
    """The model, the parameters that it started from, a batch and the step's key, to a direction, statistics and metrics."""

    def __call__(
        self, variables: Variables, start: PyTree, batch: Batch, key: Key, /
    ) -> tuple[PyTree, PyTree, Metrics]: ...


def local_sgd(
    task: Task | ParamsLoss,
    optimizer: optax.GradientTransformation,
    *,
    correction: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> ClientRule:
    """Trains the broadcast model on the client's batches (McMahan et al. 2017, algorithm 1, ClientUpdate).

    The optimizer starts anew in every round. The update is a ``Delta``: end minus start. With the task's
    ``stats_policy="local"`` a client's batch statistics stay with it between rounds and are not sent.

    Args:
      task: model, loss and metrics; or, for a loop of your own, a function ``(params, batch)`` to one loss per
        example, ``f32[batch]``.
      optimizer: any optax transformation.
      correction: ``(params, start)`` to a pytree that is added to the gradient.

    Returns:
      A rule whose broadcast is ``Variables``; over a function, the parameters, and the update is their change.

    Example:
      >>> import jax, jax.numpy as jnp, optax, fedjax_sim as fs
      >>> task = fs.tasks.regression(fs.models.linear(1), sample_input=jnp.zeros((1, 2)))
      >>> rule = fs.rules.local_sgd(task, optax.sgd(0.1))
      >>> batches = {"x": jnp.ones((3, 4, 2)), "y": jnp.ones((3, 4, 1))}     # three steps of four rows
      >>> update = fs.rules.run(rule, task.init(jax.random.key(0)), batches, jax.random.key(1))
      >>> sorted(update.params["Dense_0"])
      ['bias', 'kernel']
      >>> plain = fs.rules.local_sgd(lambda w, batch: (batch["x"] @ w - batch["y"][:, 0]) ** 2, optax.sgd(0.1))
      >>> [f"{change:.3f}" for change in fs.rules.run(plain, jnp.zeros(2), batches, jax.random.key(1))]
      ['0.392', '0.392']
    """
    if not isinstance(task, Task):
        return over_params(local_sgd(task_of(task), optimizer, correction=correction))

    def corrected(variables: Variables, start: PyTree, batch: Batch, key: Key):
        grads, stats, metrics = gradient(task, variables, batch, key)
        if correction is not None:
            grads = tree.add(grads, correction(variables.params, start))
        return grads, stats, metrics

    return training(task, optimizer, corrected)


def training(task: Task, optimizer: optax.GradientTransformation, direction: Direction) -> ClientRule:
    """A rule that feeds an optimizer with a direction of descent for every batch; see ``local_sgd``."""
    checks.optimizer("client optimizer", optimizer)
    keeps_stats = task.stats_policy == "local"

    def init(broadcast: Variables):
        return broadcast.stats if keeps_stats else ()

    def begin(broadcast: Variables, state, ctx):
        checks.variables("what the server broadcasts to the rule", broadcast)
        stats = state if keeps_stats else broadcast.stats
        return Training(broadcast.params, optimizer.init(broadcast.params), stats)

    def step(broadcast: Variables, work: Training, batch, ctx):
        variables = Variables(work.params, broadcast.frozen, work.stats)
        grads, stats, metrics = direction(variables, broadcast.params, batch, ctx.key)
        updates, state = optimizer.update(grads, work.optimizer, work.params)
        return Training(optax.apply_updates(work.params, updates), state, stats), metrics

    def finish(broadcast: Variables, work: Training, state, ctx):
        change = tree.subtract(work.params, broadcast.params)
        if keeps_stats:
            return Delta(change), work.stats, {}
        return Delta(change, tree.subtract(work.stats, broadcast.stats)), state, {}

    def model(broadcast: Variables, work: Training) -> Variables:
        return Variables(work.params, broadcast.frozen, work.stats)

    return ClientRule(init, begin, step, finish, model)
