"""Robust aggregation: rules that look at every client's message instead of their sum."""

from __future__ import annotations

import jax
from fedjax_sim_kernels import order

from fedjax_sim._src.types import Facts, Transform


def coordinate_median() -> Transform:
    """Coordinate-wise median over the clients that came (Yin et al. 2018, definition 1).

    An even number of clients gives the mean of the middle two. A round in which nobody came decodes to zero.

    Guarantees:
      With fewer than half of the clients replaced by anything, each coordinate stays within the range of the others.
    """

    def decode(message, server, ctx):
        value = jax.tree.map(lambda rows: order.median(rows, ctx.mask), message.value)
        return message._replace(value=value), server, {}

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: incoming,
        encode=lambda message, client, server, ctx: (message, client, {}),
        decode=decode,
        facts=(Facts("coordinate_median", reduction="gather"),),
    )
