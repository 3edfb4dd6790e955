"""The task of predicting numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fedjax_sim._src.types import Metric, Task
from fedjax_sim.tasks.flax_modules import BatchStats, from_flax

__all__ = ["regression"]


def regression(
    model: Any,
    *,
    input: str = "x",
    label: str = "y",
    sample_input: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    scale: float | Literal["auto"] = "auto",
    batch_stats: BatchStats = "refuse",
    row_mask: str | None = None,
) -> Task:
    """Squared error of a flax model, as loss and as metric: the mean over an example's outputs.

    The model gives ``f32[batch, ...]`` in the shape of the labels, or ``f32[batch, 1]`` for labels ``[batch]``.

    Args:
      model: a flax linen or nnx module, called with the input column; see ``tasks.from_flax``.
      input: name of the input column; uint8 images are divided by 255.
      label: name of the label column.
      sample_input: an input ``[1, ...]``, where ``init`` is called outside a simulation.
      metrics: named metrics instead of the squared error.
      scale: factor for inputs; see ``tasks.from_flax``.
      batch_stats: policy for BatchNorm; see ``tasks.from_flax``.
      row_mask: argument of the model that takes the mask of valid rows; see ``tasks.from_flax``.

    Raises:
      TypeError: the model or the sample is of another kind.
      ValueError: an unknown policy, or batch statistics without one.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.regression(models.linear(1), sample_input=(1, 4))
    >>> batch = {"x": jnp.zeros((2, 4)), "y": jnp.array([1.0, 2.0]), "mask": jnp.ones(2, bool)}
    >>> outputs, _ = task.apply(task.init(jax.random.key(0)), batch, None, train=False)
    >>> task.loss(outputs, batch).tolist()
    [1.0, 4.0]
    """
    return from_flax(
        model,
        loss="squared_error",
        sample_input=sample_input,
        input=input,
        label=label,
        metrics=metrics,
        scale=scale,
        batch_stats=batch_stats,
        row_mask=row_mask,
    )
