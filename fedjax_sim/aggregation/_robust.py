"""Robust aggregation: rules that look at every client's message instead of their sum."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src.types import Facts, Transform


def coordinate_median() -> Transform:
    """Coordinate-wise median over the clients that came (Yin et al. 2018, definition 1).

    An even number of clients gives the mean of the middle two. A round in which nobody came decodes to zero.

    Guarantees:
      With fewer than half of the clients replaced by anything, each coordinate stays within the range of the others.
    """

    def decode(message, server, ctx):
        count = jnp.sum(ctx.mask)

        def median(rows):
            mask = ctx.mask.reshape((-1,) + (1,) * (rows.ndim - 1))
            # Absent rows, and NaN, sort to the end; the middle is counted from the rows that are there.
            ordered = jnp.sort(jnp.where(mask, jnp.where(jnp.isnan(rows), jnp.inf, rows), jnp.inf), axis=0)
            low = ordered[jnp.maximum((count - 1) // 2, 0)]
            high = ordered[jnp.minimum(count // 2, rows.shape[0] - 1)]
            return jnp.where(count > 0, jnp.where(low == high, low, low / 2 + high / 2), 0).astype(rows.dtype)

        return message._replace(value=jax.tree.map(median, message.value)), server, {}

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: incoming,
        encode=lambda message, client, server, ctx: (message, client, {}),
        decode=decode,
        facts=(Facts("coordinate_median", reduction="gather"),),
    )
