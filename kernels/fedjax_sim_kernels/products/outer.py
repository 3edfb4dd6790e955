"""A dense layer's weights as a base that clients share plus a sum of outer products of their own."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax


@dataclasses.dataclass(eq=False)
class Outer:
    """``base + left^T @ right``, which is never written out; it stands for an array among a function's arguments.

    ``client_batched`` takes it where the function multiplies rows with the weights, and nowhere else. No pytree: it holds
    what a trace has found.

    Attributes:
      base: ``[depth, features]``; under ``vmap`` over clients the same for all.
      left: ``[rank, depth]``.
      right: ``[rank, features]``.
      probe: ``[rows, features]``, added to the product: the derivative by it is that by the product.
      seen: the rows that were multiplied, one array for every product.
    """

    base: jax.Array
    left: jax.Array
    right: jax.Array
    probe: jax.Array
    seen: list[jax.Array] = dataclasses.field(default_factory=list)

    def astype(self, dtype: Any) -> Outer:
        """In another dtype; what is seen is still found here."""
        base, left, right, probe = (
            jnp.asarray(x, dtype) for x in (self.base, self.left, self.right, self.probe)
        )
        return Outer(base, left, right, probe, self.seen)

    def product(self, rows: jax.Array, precision: Any, preferred_element_type: Any) -> jax.Array:
        """``rows @ (base + left^T @ right) + probe`` for ``rows: [rows, depth]``.

        Raises:
          TypeError: other rows than the probe has.
        """
        if rows.shape[0] != self.probe.shape[0]:
            raise TypeError(
                f"weights of shape {self.base.shape} are multiplied with {rows.shape[0]} row(s) where the batch has "
                f"{self.probe.shape[0]}: such weights can be kept as a sum of outer products only in a dense layer that sees "
                "one row per example."
            )
        self.seen.append(rows)

        def dot(a: jax.Array, b: jax.Array, axis: int) -> jax.Array:
            return lax.dot_general(a, b, (((1,), (axis,)), ((), ())), precision, preferred_element_type)

        shared = dot(rows, self.base, 0)
        own = dot(dot(rows, self.left, 1).astype(self.right.dtype), self.right, 0)
        return shared + own + self.probe.astype(shared.dtype)
