"""Robust aggregation: rules that look at every client's message instead of their sum."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from fedjax_sim_kernels import order

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Facts, Transform


def coordinate_median() -> Transform:
    """Coordinate-wise median over the clients that came (Yin et al. 2018, definition 1).

    An even number of clients gives the mean of the middle two. A round in which nobody came decodes to zero.

    Guarantees:
      With fewer than half of the clients replaced by anything, each coordinate stays within the range of the others.
    """
    return _gather("coordinate_median", order.median)


def trimmed_mean(share: float) -> Transform:
    """Coordinate-wise mean over the clients that came, without the largest and the smallest values (Yin et al. 2018, definition 2).

    Of ``n`` clients ``floor(share * n)`` values are left out at each end. A round in which nobody came decodes to zero.

    Guarantees:
      With at most ``floor(share * n)`` of ``n`` clients replaced by anything, each coordinate stays within the range of the
      others, but for the rounding of a sum.

    Args:
      share: of the clients, left out at each end, in [0, 0.5); a traced one (of a sweep) is not checked.

    Raises:
      ValueError: ``share`` outside [0, 0.5).

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> updates = jnp.array([1.0, 2.0, 3.0, 4.0, 1e9])
      >>> update, _, _ = fs.aggregation.run(fs.aggregation.trimmed_mean(0.2), updates, key=jax.random.key(0))
      >>> float(update)
      3.0
    """
    checks.not_negative("trimmed_mean share", share)
    if not checks.is_traced(share) and float(share) >= 0.5:
        raise ValueError(
            f"trimmed_mean share is {share}, expected a number in [0, 0.5): half at each end leaves nothing. What is left "
            "as the share comes near one half is coordinate_median()."
        )

    def average(rows: jax.Array, valid: jax.Array) -> jax.Array:
        clients = jnp.sum(valid)
        # 0.29 * 100 is a little below 29 in binary numbers.
        trim = jnp.floor(share * clients * (1 + 1e-6)).astype(jnp.int32)
        return order.trimmed_mean(rows, valid, jnp.clip(trim, 0, jnp.maximum(clients - 1, 0) // 2))

    return _gather("trimmed_mean", average)


def _gather(name: str, statistic: Callable[[jax.Array, jax.Array], jax.Array]) -> Transform:
    """A statistic over the rows ``[clients, ...]`` of each leaf, of which some are there, ``bool[clients]``; in float32 at least."""

    def decode(message, server, ctx):
        value = jax.tree.map(lambda rows: statistic(rows, ctx.mask), tree.widen(message.value))
        return message._replace(value=value), server, {}

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: incoming,
        encode=lambda message, client, server, ctx: (message, client, {}),
        decode=decode,
        facts=(Facts(name, reduction="gather"),),
    )
