"""Losses and metrics of rows that are mixtures of two examples, as ``data.augmentations.mixup`` makes them."""

from __future__ import annotations

from typing import NamedTuple

import jax

from fedjax_sim._src.types import Batch, Loss, Metric, Outputs


class Mixed(NamedTuple):
    """What ``apply`` returns for mixed rows: the model's outputs, and whose labels they have.

    Attributes:
      outputs: the model's.
      partner: ``int32[batch]``, the row that each was mixed with.
      share: ``f32[batch]``, how much of a row is its own.
    """

    outputs: Outputs
    partner: jax.Array
    share: jax.Array


def mixing_loss(loss: Loss) -> Loss:
    """A loss that also takes ``Mixed`` outputs: the mean of both examples' losses, by their shares."""

    def mixed(outputs: Outputs, batch: Batch) -> jax.Array:
        if not isinstance(outputs, Mixed):
            return loss(outputs, batch)
        own, other = loss(outputs.outputs, batch), loss(outputs.outputs, _partners(batch, outputs.partner))
        return _mean(outputs.share, own, other)

    return mixed


def mixing_metric(metric: Metric) -> Metric:
    """The same for a metric: totals and weights are the means of both examples', by their shares."""

    def mixed(outputs: Outputs, batch: Batch) -> tuple[jax.Array, jax.Array]:
        if not isinstance(outputs, Mixed):
            return metric(outputs, batch)
        own, other = (
            metric(outputs.outputs, batch),
            metric(outputs.outputs, _partners(batch, outputs.partner)),
        )
        total, weight = (_mean(outputs.share, a, b) for a, b in zip(own, other, strict=True))
        return total, weight

    return mixed


def _partners(batch: Batch, partner: jax.Array) -> Batch:
    """Every row with the columns of its partner; the mask stays, as partners of real rows are real."""
    return {name: column if name == "mask" else column[partner] for name, column in batch.items()}


def _mean(share: jax.Array, own: jax.Array, other: jax.Array) -> jax.Array:
    share = share.astype(own.dtype)
    return share * own + (1 - share) * other
