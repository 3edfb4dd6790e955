"""The mean over clients, and the mean over the clients that cover a coordinate."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Facts, Message, Transform


def mean(over: Literal["examples", "clients", "expected_cohort"] = "examples") -> Transform:
    """Divides the sum over clients.

    Args:
      over: ``"examples"`` weights each client by its number of examples (McMahan et al. 2017, algorithm 1);
        ``"clients"`` weights those that came equally; ``"expected_cohort"`` divides the plain sum by the sampler's
        expected cohort, a public constant, which is what noise needs.

    Guarantees:
      A client without examples has weight 0. A round in which nobody came decodes to zero.
      ``"clients"`` and ``"expected_cohort"`` keep the bound of a message; ``"examples"`` has none.

    Raises:
      ValueError: an unknown ``over``.
    """
    checks.one_of("mean(over=...)", over, ("examples", "clients", "expected_cohort"))

    def encode(message, client, server, ctx):
        size = jnp.asarray(ctx.num_examples)
        weight = (size if over == "examples" else size > 0).astype(jnp.float32)
        # where, not a product alone: weight zero times NaN is NaN.
        value = tree.where(size > 0, tree.scale(message.value, weight), tree.zeros_like(message.value))
        aux = message.aux if over == "expected_cohort" else (*message.aux, weight)
        return Message(value, aux), client, {}

    def decode(message, server, ctx):
        if over == "expected_cohort":
            return message._replace(value=tree.scale(message.value, 1.0 / ctx.expected_clients)), server, {}
        *aux, weight = message.aux
        factor = jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)
        return Message(tree.scale(message.value, factor), tuple(aux)), server, {}

    def bound(server, incoming):
        return jnp.inf if over == "examples" else incoming

    divisor = "public" if over == "expected_cohort" else "data"
    return Transform(lambda spec: ((), ()), bound, encode, decode, (Facts("mean", divisor=divisor),))


def coverage_mean() -> Transform:
    """Mean of every coordinate over the clients whose model contains it (HeteroFL, Diao et al. 2021, section 3).

    The message's value is a pair ``(update, coverage)`` of equal structure and full shape; ``coverage`` is 1 where the
    client's model has the coordinate. A client counts once if it has examples. The decoded value is the update alone;
    a coordinate that nobody covered decodes to zero.

    Guarantees:
      With full coverage it is ``mean(over="clients")``.
    """

    def encode(message, client, server, ctx):
        update, coverage = message.value
        came = jnp.asarray(ctx.num_examples) > 0
        counts = jax.tree.map(lambda x: jnp.where(came, x, 0).astype(jnp.float32), coverage)
        value = jax.tree.map(lambda x, c: jnp.where(c > 0, x * c.astype(x.dtype), 0), update, counts)
        return Message(value, (*message.aux, counts)), client, {}

    def decode(message, server, ctx):
        *aux, counts = message.aux
        value = jax.tree.map(
            lambda x, c: jnp.where(c > 0, x / jnp.where(c > 0, c, 1), 0).astype(x.dtype),
            message.value,
            counts,
        )
        return Message(value, tuple(aux)), server, {}

    facts = Facts("coverage_mean", divisor="data")
    return Transform(lambda spec: ((), ()), lambda server, incoming: incoming, encode, decode, (facts,))
