"""The task of predicting which of several labels an example has."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal

from fedjax_sim import metrics as metrics_
from fedjax_sim._src.types import Metric, Task
from fedjax_sim.data.augmentations import Augmentation
from fedjax_sim.data.preprocessing import Preprocessing
from fedjax_sim.tasks import losses
from fedjax_sim.tasks._columns import check_columns
from fedjax_sim.tasks.flax_modules import BatchStats, from_flax, resolve_classes

__all__ = ["multi_label"]


def multi_label(
    model: Any,
    *,
    input: str = "x",
    label: str = "y",
    listed: bool = False,
    classes: int | None = None,
    sample_input: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    scale: float | Literal["auto"] = "auto",
    batch_stats: BatchStats = "refuse",
    row_mask: str | None = None,
    augment: Augmentation | None = None,
    preprocess: Preprocessing | None = None,
) -> Task:
    """Sigmoid cross-entropy, precision and recall@5 of a flax model: each label on its own, one versus the rest.

    The model gives logits ``f32[batch, labels]``. The loss of an example is the mean over all labels, and a step takes
    the mean over the batch; TensorFlow Federated's tag prediction takes the sum over the batch, so its learning rates are
    to be multiplied by the batch size.

    Args:
      model: a flax linen or nnx module, called with the input column; see ``tasks.from_flax``.
      input: name of the input column; uint8 images are divided by 255.
      label: name of the label column: 0 or 1, ``[batch, labels]``.
      listed: it says instead which labels an example has, ``int[batch, most]``, padded with -1, as ``data.text.listed``
        makes: a few numbers instead of one for every label.
      classes: number of labels, to check lists of them; ``None`` takes ``model.classes`` if there is one.
      sample_input: an input ``[1, ...]``; not needed for the models here, as simulations show ``init`` their data.
      metrics: named metrics instead of ``precision`` and ``recall_at_5``.
      scale: factor for inputs; see ``tasks.from_flax``.
      batch_stats: policy for BatchNorm; see ``tasks.from_flax``.
      row_mask: argument of the model that takes the mask of valid rows; see ``tasks.from_flax``.
      augment: changes the scaled images in training; see ``tasks.from_flax``.
      preprocess: changes the inputs in training and evaluation, such as ``data.preprocessing.bag_of_words(10_000)``.

    Raises:
      TypeError: the model, the sample, ``augment`` or ``preprocess`` is of another kind.
      ValueError: an unknown policy, batch statistics without one, or ``classes`` differs from the model's.

    Source: StackOverflow's tag prediction in Reddi et al. 2021 (arXiv 2003.00295).

    >>> import jax, jax.numpy as jnp, fedjax_sim as fs
    >>> bag = fs.data.preprocessing.bag_of_words(words=4)
    >>> task = fs.tasks.multi_label(fs.models.linear(classes=3), listed=True, preprocess=bag)
    >>> batch = {"x": jnp.array([[3, 4, 3, 0]]), "y": jnp.array([[1, -1]]), "mask": jnp.ones(1, bool)}
    >>> logits, _ = task.apply(task.init(jax.random.key(0), batch), batch, None, train=False)
    >>> logits.shape, task.loss(logits, batch).shape, sorted(task.metrics)
    ((1, 3), (1,), ['precision', 'recall_at_5'])
    """
    usual = {
        "precision": metrics_.precision(label, listed),
        "recall_at_5": metrics_.recall_at_k(5, label, listed),
    }
    task = from_flax(
        model,
        loss=losses.sigmoid_binary_cross_entropy(label, listed),
        sample_input=sample_input,
        input=input,
        label=label,
        metrics=usual if metrics is None else metrics,
        classes=classes,
        scale=scale,
        batch_stats=batch_stats,
        row_mask=row_mask,
        augment=augment,
        preprocess=preprocess,
    )
    # A loss that comes as a function says nothing about labels; what this one needs is known.
    check = functools.partial(
        check_columns,
        input=input,
        label=label,
        labels="class" if listed else "number",
        classes=resolve_classes(model, classes),
    )
    return task._replace(check=check)
