"""The task of predicting one of several classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from fedjax_sim._src.types import Metric, Task
from fedjax_sim.data.augmentations import Augmentation
from fedjax_sim.data.preprocessing import Preprocessing
from fedjax_sim.tasks.flax_modules import BatchStats, from_flax

__all__ = ["classification"]


def classification(
    model: Any,
    *,
    input: str = "x",
    label: str = "y",
    classes: int | None = None,
    sample_input: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    scale: float | Literal["auto"] = "auto",
    batch_stats: BatchStats = "refuse",
    row_mask: str | None = None,
    augment: Augmentation | None = None,
    preprocess: Preprocessing | None = None,
) -> Task:
    """Softmax cross-entropy and accuracy of a flax model.

    The model gives logits ``f32[batch, classes]`` for labels ``int[batch]``, or ``f32[batch, time, classes]`` for
    labels ``int[batch, time]``, where -1 marks padding.

    Args:
      model: a flax linen or nnx module, called with the input column; see ``tasks.from_flax``.
      input: name of the input column; uint8 images are divided by 255.
      label: name of the label column.
      classes: number of classes, to check the labels; ``None`` takes ``model.classes`` if there is one.
      sample_input: an input ``[1, ...]``; not needed for the models here, as simulations show ``init`` their data.
      metrics: named metrics instead of accuracy.
      scale: factor for inputs; see ``tasks.from_flax``.
      batch_stats: policy for BatchNorm; see ``tasks.from_flax``.
      row_mask: argument of the model that takes the mask of valid rows; see ``tasks.from_flax``.
      augment: changes the scaled images in training, never in evaluation, such as ``data.augmentations.shift(2)``.
      preprocess: changes the scaled images in training, after ``augment``, and in evaluation, such as
        ``data.preprocessing.normalise(0.5, 0.5)``.

    Raises:
      TypeError: the model, the sample, ``augment`` or ``preprocess`` is of another kind.
      ValueError: an unknown policy, batch statistics without one, or ``classes`` differs from the model's.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.classification(models.cnn(classes=10))
    >>> batch = {"x": jnp.zeros((2, 8, 8, 1), jnp.uint8), "y": jnp.array([3, 7]), "mask": jnp.ones(2, bool)}
    >>> variables = task.init(jax.random.key(0), batch)
    >>> logits, _ = task.apply(variables, batch, None, train=False)
    >>> logits.shape, task.loss(logits, batch).shape
    ((2, 10), (2,))
    """
    return from_flax(
        model,
        loss="softmax_cross_entropy",
        sample_input=sample_input,
        input=input,
        label=label,
        metrics=metrics,
        classes=classes,
        scale=scale,
        batch_stats=batch_stats,
        row_mask=row_mask,
        augment=augment,
        preprocess=preprocess,
    )
