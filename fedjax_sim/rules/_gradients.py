"""The gradient that every rule takes: of the mean loss over the rows of a batch that exist."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, forward, keys, tree
from fedjax_sim._src.types import Batch, Mean, PyTree, Task, Variables
from fedjax_sim.metrics import batch_means


def gradient(
    task: Task, variables: Variables, batch: Batch, key: jax.Array
) -> tuple[PyTree, PyTree, dict[str, Mean]]:
    """Gradient of a batch's mean loss with respect to ``variables.params``.

    A batch without a single row has gradient zero. Batches ``[batches, batch, ...]`` are accumulated one after the
    other: the gradient of the mean over all their rows, the statistics after the last.

    Returns:
      The gradient, the new statistics, and the loss and metrics as sums over rows.
    """
    checks.variables("what rules.gradient differentiates at", variables)
    if batch["mask"].ndim == 1:
        total, stats, metrics = _sum_gradient(task, variables, batch, key)
    else:
        total, stats, metrics = _accumulate(task, variables, batch, key)
    rows = jnp.maximum(jnp.sum(batch["mask"], dtype=jnp.float32), 1)
    return tree.scale(total, 1 / rows), stats, metrics


def _sum_gradient(task: Task, variables: Variables, batch: Batch, key: jax.Array):
    def total_loss(params):
        outputs, stats = forward.apply(task, variables._replace(params=params), batch, key, train=True)
        losses = task.loss(outputs, batch)
        if losses.shape != batch["mask"].shape:
            raise ValueError(
                f"the task's loss has shape {losses.shape}, expected {batch['mask'].shape}: one value per example of "
                "the batch, not their mean."
            )
        return jnp.sum(jnp.where(batch["mask"], losses, 0)), (
            stats,
            batch_means(task, outputs, batch, losses),
        )

    (_, (stats, metrics)), grads = jax.value_and_grad(total_loss, has_aux=True)(variables.params)
    return grads, stats, metrics


def _accumulate(task: Task, variables: Variables, batches: Batch, key: jax.Array):
    count = batches["mask"].shape[0]
    first = {name: column[0] for name, column in batches.items()}
    shapes = jax.eval_shape(lambda b: _sum_gradient(task, variables, b, key), first)
    start = tree.zeros_like((shapes[0], shapes[2]))

    def body(carry, item):
        (total, metrics), stats = carry
        index, batch = item
        grads, stats, measured = _sum_gradient(
            task, variables._replace(stats=stats), batch, keys.fold(key, index)
        )
        return ((tree.add(total, grads), tree.add(metrics, measured)), stats), None

    ((total, metrics), stats), _ = jax.lax.scan(body, (start, variables.stats), (jnp.arange(count), batches))
    return total, stats, metrics
