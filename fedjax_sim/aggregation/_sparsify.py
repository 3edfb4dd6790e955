"""Sparsification of client updates, with error feedback."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Facts, Transform


def top_k(share: float, *, error_feedback: bool = True) -> Transform:
    """Keeps the largest coordinates of each leaf by magnitude and sends zeros elsewhere.

    With error feedback (Stich et al. 2018, algorithm 1; Karimireddy et al. 2019) a client remembers what it did not
    send and adds it to its next message.

    Guarantees:
      With error feedback, what is sent plus what is remembered equals the message plus what was remembered. A
      message that is not finite is sent as it is and leaves the memory alone.
      At most ``max(1, round(share * size))`` coordinates of a leaf are not zero (ties: the first ones).

    Args:
      share: part of each leaf that is sent, in (0, 1].
      error_feedback: keep the remainder in the client's state; then the sent norm has no bound: clip after it.

    Raises:
      ValueError: ``share`` outside (0, 1].
    """
    checks.fraction("top_k share", share)

    def keep(x):
        count = min(max(1, round(share * x.size)), x.size)
        flat = x.reshape(-1)
        _, index = jax.lax.top_k(jnp.abs(flat), count)
        return jnp.zeros_like(flat).at[index].set(flat[index], unique_indices=True).reshape(x.shape)

    def init(spec):
        return (), tree.zeros_like(spec.value) if error_feedback else ()

    def encode(message, memory, server, ctx):
        if not error_feedback:
            return message._replace(value=jax.tree.map(keep, message.value)), memory, {}
        # A client without examples sends nothing and keeps its memory for a round in which it trains.
        came = jnp.asarray(ctx.num_examples) > 0
        whole = tree.add(message.value, memory)
        sent = jax.tree.map(lambda x: jnp.where(came, keep(x), 0), whole)
        # A message that is not finite is passed on as it is, for a clip or a check behind; in the memory it would
        # poison every later round of this client.
        finite = tree.all_finite(message.value)
        sent, rest = tree.where(finite, (sent, tree.subtract(whole, sent)), (message.value, memory))
        return message._replace(value=sent), rest, {}

    return Transform(
        init=init,
        bound=lambda server, incoming: jnp.inf if error_feedback else incoming,
        encode=encode,
        decode=lambda message, server, ctx: (message, server, {}),
        facts=(Facts("top_k", breaks_bound=error_feedback, keeps_l1=not error_feedback),),
    )
