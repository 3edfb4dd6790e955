"""Per-example losses ``(outputs, batch) -> f32[batch]``, made from the name of the label column.

Each takes the mean over the positions or outputs of an example, never over the batch: the caller masks and averages.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from fedjax_sim._src.labels import aligned, several_hot
from fedjax_sim._src.types import Batch, Loss, Outputs

__all__ = ["sigmoid_binary_cross_entropy", "softmax_cross_entropy", "squared_error"]


def softmax_cross_entropy(label: str = "y") -> Loss:
    """Cross-entropy of logits ``f32[batch, ..., classes]`` with integer labels ``int[batch, ...]``.

    The mean over an example's positions; those with a label below 0 are padding and left out. An example without
    any valid position has loss 0 and no gradient.

    Raises:
      ValueError: at the call, when the labels are no integers or their shape is not that of the logits' positions.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim.tasks import losses
    >>> loss = losses.softmax_cross_entropy()
    >>> values = loss(jnp.zeros((1, 3, 4)), {"y": jnp.array([[2, 0, -1]])})
    >>> f"{values[0]:.4f}"
    '1.3863'
    """

    def loss(outputs: Outputs, batch: Batch) -> jax.Array:
        labels = batch[label]
        if labels.shape != outputs.shape[:-1] or not jnp.issubdtype(labels.dtype, jnp.integer):
            raise ValueError(
                f"softmax_cross_entropy got outputs {outputs.dtype}{list(outputs.shape)} and column {label!r} "
                f"{labels.dtype}{list(labels.shape)}, expected logits [batch, ..., classes] and integers [batch, ...]."
            )
        valid = (labels >= 0).astype(outputs.dtype)
        # A label below 0 is at no class: its logits may be infinite, and are multiplied by 0 below.
        index = labels.astype(jnp.int32)
        below = outputs - jax.lax.stop_gradient(jnp.max(outputs, axis=-1, keepdims=True))
        # A sum over classes and not a lookup, whose gradient is a scatter: seven small operations in every step.
        classes = jax.lax.broadcasted_iota(jnp.int32, outputs.shape, outputs.ndim - 1)
        at_label = jnp.sum(jnp.where(classes == index[..., None], below, 0), axis=-1)
        # As a lookup has it: a label beyond the classes is no label, and the run says so when the model is not finite.
        at_label = jnp.where(index < outputs.shape[-1], at_label, jnp.nan)
        values = (jnp.log(jnp.sum(jnp.exp(below), axis=-1)) - at_label) * valid
        axes = tuple(range(1, values.ndim))
        return jnp.sum(values, axis=axes) / jnp.maximum(jnp.sum(valid, axis=axes), 1)

    return loss


def sigmoid_binary_cross_entropy(label: str = "y", listed: bool = False) -> Loss:
    """Cross-entropy of logits ``f32[batch]`` or ``f32[batch, 1]`` with labels 0 and 1, ``[batch]``.

    With several labels per example, both are ``[batch, labels]`` and the loss is their mean. If ``listed``, the column
    says instead which labels an example has: ``int[batch, most]`` in any order, padded with -1.

    Raises:
      ValueError: at the call, when the shapes do not fit together, or what should be listed is no list of integers.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim.tasks import losses
    >>> loss = losses.sigmoid_binary_cross_entropy()
    >>> values = loss(jnp.zeros((2, 1)), {"y": jnp.array([0, 1])})
    >>> [f"{value:.4f}" for value in values]
    ['0.6931', '0.6931']
    >>> listed = losses.sigmoid_binary_cross_entropy(listed=True)
    >>> f"{listed(jnp.array([[9.0, -9.0, 9.0]]), {'y': jnp.array([[2, 0, -1, -1]])})[0]:.4f}"
    '0.0001'
    """

    def loss(outputs: Outputs, batch: Batch) -> jax.Array:
        labels = several_hot(batch[label], outputs.shape[-1]) if listed else batch[label]
        outputs = aligned(outputs, labels, label)
        values = optax.losses.sigmoid_binary_cross_entropy(outputs, labels.astype(outputs.dtype))
        return jnp.mean(values.reshape(values.shape[0], -1), axis=-1)

    return loss


def squared_error(label: str = "y") -> Loss:
    """Squared difference of outputs and labels, both ``[batch, ...]``, as a mean over an example's outputs.

    Without the factor 1/2. Outputs ``f32[batch, 1]`` fit labels ``[batch]``.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim.tasks import losses
    >>> losses.squared_error()(jnp.zeros((2, 1)), {"y": jnp.array([1.0, 3.0])}).tolist()
    [1.0, 9.0]
    """

    def loss(outputs: Outputs, batch: Batch) -> jax.Array:
        outputs = aligned(outputs, batch[label], label)
        values = optax.losses.squared_error(outputs, batch[label].astype(outputs.dtype))
        return jnp.mean(values.reshape(values.shape[0], -1), axis=-1)

    return loss
