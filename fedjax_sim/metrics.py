"""Summable metrics: each is a pair (total, weight), so that it adds over batches, clients and devices.

Source of the pattern: FedJAX's and CLU's metrics; a mean of means is never taken.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks
from fedjax_sim._src.labels import aligned, several_hot
from fedjax_sim._src.types import Batch, Mean, Metric, Metrics, Outputs, Task

__all__ = [
    "accuracy",
    "add",
    "batch_means",
    "binary_accuracy",
    "example_values",
    "mean",
    "precision",
    "recall_at_k",
    "squared_error",
    "top_k_accuracy",
]


def mean(metric: Mean) -> jax.Array:
    """``total / weight``, ``f32[...]``; 0 where the weight is 0.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim.metrics import Mean, mean
    >>> float(mean(Mean(jnp.float32(3.0), jnp.float32(2.0))))
    1.5
    """
    weight = jnp.asarray(metric.weight, jnp.float32)
    return jnp.where(weight > 0, jnp.asarray(metric.total) / jnp.where(weight > 0, weight, 1), 0)


def add(a: Metrics, b: Metrics) -> Metrics:
    """Sums two dictionaries of metrics with equal names."""
    return jax.tree.map(jnp.add, dict(a), dict(b))


def accuracy(label: str = "y", leave_out: Sequence[int] = ()) -> Metric:
    """Share of examples whose largest logit is at the label.

    Outputs are logits ``f32[batch, ..., classes]``, the label column is ``int[batch, ...]``. Labels below 0 are
    left out, so that padded positions of a sequence do not count. So are the labels ``leave_out``: the accuracy of next
    words is reported without padding, begin, end and words out of the vocabulary (Reddi et al. 2021, arXiv
    2003.00295), which is ``leave_out=encoder.no_words`` of ``data.text``. A prediction that is one of them is a miss.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim import metrics
    >>> batch = {"y": jnp.array([[2, 0, -1]])}
    >>> total, weight = metrics.accuracy(leave_out=[0])(jnp.eye(3)[None, jnp.array([2, 0, 1])], batch)
    >>> float(total[0]), float(weight[0])
    (1.0, 1.0)
    """
    left_out = tuple(operator.index(one) for one in leave_out)

    def metric(outputs: Outputs, batch: Batch):
        labels = batch[label]
        counted = labels >= 0
        for one in left_out:
            counted &= labels != one
        return _hits(jnp.argmax(outputs, axis=-1) == labels, counted)

    return metric


def binary_accuracy(label: str = "y") -> Metric:
    """Share of an example's labels, 0 or 1, that its logits are on the right side of: above 0 for a label of 1.

    Outputs are logits of the label column's shape, ``f32[batch, ...]``; ``f32[batch, 1]`` fits labels ``[batch]``.

    Raises:
      ValueError: at the call, when the shapes do not fit together.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim import metrics
    >>> right, counted = metrics.binary_accuracy()(jnp.array([2.0, 0.5, -1.0]), {"y": jnp.array([1, 0, 0])})
    >>> right.tolist(), counted.tolist()
    ([1.0, 0.0, 1.0], [1.0, 1.0, 1.0])
    """

    def metric(outputs: Outputs, batch: Batch):
        right = (aligned(outputs, batch[label], label) > 0) == (batch[label] > 0)
        per_example = jnp.mean(right.astype(jnp.float32).reshape(len(right), -1), axis=-1)
        return per_example, jnp.ones_like(per_example)

    return metric


def top_k_accuracy(k: int, label: str = "y") -> Metric:
    """Share of examples whose label is among the ``k`` largest logits; ``k <= 0`` gives 0, ties count once.

    A logit equal to the label's counts as larger only if it stands before it, so that exactly ``k`` places exist.
    """

    def metric(outputs: Outputs, batch: Batch):
        labels = batch[label]
        classes = outputs.shape[-1]
        at_label = jnp.take_along_axis(outputs, jnp.clip(labels, 0, classes - 1)[..., None], axis=-1)
        before = jnp.arange(classes) < labels[..., None]
        # Not "larger than": nothing is larger than NaN, which would be the first of all.
        rank = jnp.sum(~(outputs <= at_label) | ((outputs == at_label) & before), axis=-1)
        return _hits(rank < k, labels >= 0)

    return metric


def precision(label: str = "y", listed: bool = False) -> Metric:
    """Share of the labels that are predicted, those with a logit above 0, that the examples have.

    A label counts once for every example, so an example without a predicted one counts nothing: the mean over all
    predictions of all examples, not over examples.

    Args:
      label: the column: 0 or 1, ``[batch, labels]`` as the logits ``f32[batch, labels]``.
      listed: it says instead which labels there are, ``int[batch, most]``, padded with -1.

    Raises:
      ValueError: at the call, for labels of another shape or dtype.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim import metrics
    >>> logits, tags = jnp.array([[2.0, 1.0, -1.0], [-1.0, -2.0, -3.0]]), jnp.array([[1, 2], [0, -1]])
    >>> right, predicted = metrics.precision(listed=True)(logits, {"y": tags})
    >>> right.tolist(), predicted.tolist()
    ([1.0, 0.0], [2.0, 0.0])
    """

    def metric(outputs: Outputs, batch: Batch):
        return _hits(_labels(outputs, batch, label, listed), outputs > 0)

    return metric


def recall_at_k(k: int, label: str = "y", listed: bool = False) -> Metric:
    """Share of the labels that the examples have that are among an example's ``k`` largest logits.

    The mean over all labels of all examples, as Keras' ``Recall(top_k=k)``; of equal logits the first ones are taken.

    Args:
      k: 1 or more; as many as there are labels at most.
      label: the column: 0 or 1, ``[batch, labels]`` as the logits ``f32[batch, labels]``.
      listed: it says instead which labels there are, ``int[batch, most]``, padded with -1.

    Raises:
      ValueError: ``k`` is no integer of at least 1; at the call, for labels of another shape or dtype.

    Source: recall@5 of StackOverflow's tags, Reddi et al. 2021 (arXiv 2003.00295).

    >>> import jax.numpy as jnp
    >>> from fedjax_sim import metrics
    >>> logits, tags = jnp.array([[2.0, 1.0, -1.0]]), jnp.array([[1, 2]])
    >>> found, there = metrics.recall_at_k(2, listed=True)(logits, {"y": tags})
    >>> found.tolist(), there.tolist()
    ([1.0], [2.0])
    """
    checks.positive_int("k", k)

    def metric(outputs: Outputs, batch: Batch):
        labels = _labels(outputs, batch, label, listed)
        _, places = jax.lax.top_k(outputs, min(k, outputs.shape[-1]))
        found = jnp.take_along_axis(labels, places, axis=-1)
        return jnp.sum(found, axis=-1, dtype=jnp.float32), jnp.sum(labels, axis=-1, dtype=jnp.float32)

    return metric


def squared_error(label: str = "y") -> Metric:
    """Mean over an example's outputs of the squared difference to the label column, of the same shape.

    Outputs ``f32[batch, 1]`` fit labels ``[batch]``.

    Raises:
      ValueError: at the call, when the shapes do not fit together.
    """

    def metric(outputs: Outputs, batch: Batch):
        error = jnp.square(aligned(outputs, batch[label], label) - batch[label].astype(outputs.dtype))
        per_example = jnp.mean(error.reshape(error.shape[0], -1), axis=-1)
        return per_example, jnp.ones_like(per_example)

    return metric


def _labels(outputs: Outputs, batch: Batch, label: str, listed: bool) -> jax.Array:
    """Which labels the examples have, ``bool[batch, labels]``."""
    labels = several_hot(batch[label], outputs.shape[-1]) if listed else batch[label] > 0
    if labels.shape != outputs.shape:
        raise ValueError(
            f"column {label!r} is {list(labels.shape)} and the outputs {list(outputs.shape)}, expected [batch, labels] "
            "both. For lists of labels give listed=True."
        )
    return labels


def _hits(hit: jax.Array, counted: jax.Array) -> tuple[jax.Array, jax.Array]:
    axes = tuple(range(1, hit.ndim))
    weight = counted.astype(jnp.float32)
    return jnp.sum(hit * weight, axis=axes), jnp.sum(weight, axis=axes)


def example_values(
    task: Task, outputs: Outputs, batch: Batch, loss: jax.Array | None = None
) -> Mapping[str, Mean]:
    """Every metric of a task, and its loss, per example: ``{name: Mean(f32[batch], f32[batch])}``.

    Padded rows have total 0 and weight 0, whatever the model made of them.
    """
    mask = batch["mask"]
    loss = task.loss(outputs, batch) if loss is None else loss
    values = {"loss": (loss, jnp.ones_like(loss))}
    values |= {name: metric(outputs, batch) for name, metric in task.metrics.items()}
    return {
        name: Mean(
            jnp.where(mask, total, 0).astype(jnp.float32), jnp.where(mask, weight, 0).astype(jnp.float32)
        )
        for name, (total, weight) in values.items()
    }


def batch_means(task: Task, outputs: Outputs, batch: Batch, loss: jax.Array | None = None) -> dict[str, Mean]:
    """The sums of ``example_values`` over a batch: ``{name: Mean(f32[], f32[])}``."""
    values = example_values(task, outputs, batch, loss)
    return {name: Mean(jnp.sum(value.total), jnp.sum(value.weight)) for name, value in values.items()}
