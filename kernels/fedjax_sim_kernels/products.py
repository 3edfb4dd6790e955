"""A matrix product whose weight gradient is taken in the order that the CPU is fast at."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax


def product(rows: jax.Array, weights: jax.Array, *, precision=None, preferred_element_type=None) -> jax.Array:
    """``rows @ weights``.

    The weights' gradient is ``rows^T @ cotangents``, and XLA gives it to the CPU's product in that order, for which the
    tall matrix of rows is read against its grain. ``cotangents^T @ rows`` takes a third less time; the barrier keeps the
    compiler from turning it round again.

    Args:
      rows: ``[rows, depth]``.
      weights: ``[depth, features]``.
      precision: as in ``lax.dot_general``.
      preferred_element_type: as in ``lax.dot_general``.
    """
    exact = {"precision": precision, "preferred_element_type": preferred_element_type}
    if not _is_tall(rows.shape[0], *weights.shape):
        return lax.dot_general(rows, weights, (((1,), (0,)), ((), ())), **exact)
    turned = lax.optimization_barrier(jnp.transpose(weights))
    return lax.dot_general(rows, turned, (((1,), (1,)), ((), ())), **exact)


def _is_tall(rows: int, depth: int, features: int) -> bool:
    """Whether the barrier pays: on CPU, many rows, and weights that are not wider than deep."""
    return jax.default_backend() == "cpu" and rows >= 256 and depth >= features
