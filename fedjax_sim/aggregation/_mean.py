"""Means: over clients, over the clients that cover a coordinate, over the members of each of several models."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Facts, Message, MessageSpec, Transform


def mean(over: Literal["examples", "clients", "expected_cohort"] = "examples") -> Transform:
    """Divides the sum over clients.

    Args:
      over: ``"examples"`` weights each client by its number of examples (McMahan et al. 2017, algorithm 1);
        ``"clients"`` weights those that came equally; ``"expected_cohort"`` divides the plain sum by the sampler's
        expected cohort, a public constant, which is what noise needs.

    Guarantees:
      A client without examples has weight 0. A round in which nobody came decodes to zero.
      ``"clients"`` and ``"expected_cohort"`` keep the bound of a message; ``"examples"`` has none.
      Weighting, summing and dividing are done in float32 or wider, and the decoded mean has that dtype. So integer
      messages have a mean too, of a sum that is exact up to 2^24; the server rounds to the integer that it keeps.

    Raises:
      ValueError: an unknown ``over``.
    """
    checks.one_of("mean(over=...)", over, ("examples", "clients", "expected_cohort"))

    def encode(message, client, server, ctx):
        size = jnp.asarray(ctx.num_examples)
        weight = (size if over == "examples" else size > 0).astype(jnp.float32)
        # Weighted in float32 and sent so: 70,000 examples are beyond float16, and 257 is no bfloat16. Weights of 1
        # leave floats as they are.
        value = (
            tree.scale(tree.widen(message.value), weight) if over == "examples" else _summable(message.value)
        )
        # where, not a product alone: weight zero times NaN is NaN.
        value = tree.where(size > 0, value, tree.zeros_like(value))
        stack = message.stack if over == "expected_cohort" else (*message.stack, weight)
        return message._replace(value=value, stack=stack), client, {}

    def decode(message, server, ctx):
        value = tree.widen(message.value)
        if over == "expected_cohort":
            return message._replace(value=tree.scale(value, 1.0 / ctx.expected_clients)), server, {}
        *stack, weight = message.stack
        factor = jnp.where(weight > 0, 1.0 / jnp.where(weight > 0, weight, 1.0), 0.0)
        return message._replace(value=tree.scale(value, factor), stack=tuple(stack)), server, {}

    def bound(server, incoming):
        return jnp.inf if over == "examples" else incoming

    divisor = "public" if over == "expected_cohort" else "data"
    return Transform(
        lambda spec: ((), ()),
        bound,
        encode,
        decode,
        (Facts("mean", divisor=divisor, keeps_l1=divisor == "public"),),
    )


def coverage_mean() -> Transform:
    """Mean of every coordinate over the clients whose model contains it (HeteroFL, Diao et al. 2021, section 3).

    Clients send ``Message(update, {"coverage": ...})``, as ``rules.sliced`` does: ``coverage`` has the structure and
    shapes of the update and is 1 where the client's model has the coordinate. It is no part of what layers before this
    one clip or sparsify. A client counts once if it has examples. A coordinate that nobody covered decodes to zero.

    Guarantees:
      With full coverage it is ``mean(over="clients")``.

    Raises:
      ValueError: when a simulation starts, clients that send no coverage, or one of other shapes.
    """

    def init(spec: MessageSpec):
        coverage = _counts(
            "coverage_mean",
            "coverage",
            spec,
            "rules.sliced, or a rule that returns Message(update, {'coverage': ...})",
        )
        if jax.tree.map(lambda x: x.shape, coverage) != jax.tree.map(lambda x: x.shape, spec.value):
            raise ValueError(
                f"coverage_mean: the coverage is {coverage}, the update {spec.value}; expected the same structure and "
                "shapes."
            )
        return (), ()

    def encode(message, client, server, ctx):
        came = jnp.asarray(ctx.num_examples) > 0
        counts = jax.tree.map(lambda x: jnp.where(came, x, 0).astype(jnp.float32), message.aux["coverage"])

        def covered(x, c):
            return jnp.where(c > 0, x.astype(tree.wide_dtype(x.dtype)) * c, 0).astype(x.dtype)

        value = jax.tree.map(covered, _summable(message.value), counts)
        return message._replace(value=value, aux={**message.aux, "coverage": counts}), client, {}

    def decode(message, server, ctx):
        value = jax.tree.map(_divided, tree.widen(message.value), message.aux["coverage"])
        return message._replace(value=value), server, {}

    facts = Facts("coverage_mean", divisor="data")
    return Transform(init, lambda server, incoming: incoming, encode, decode, (facts,))


def mean_by_model() -> Transform:
    """Mean of each of several models over its members (IFCA, Ghosh et al. 2020, algorithm 1, model averaging).

    Clients send ``Message(update, {"members": ...})``, as ``rules.train_chosen`` does: the update's leaves have a
    leading axis ``[models]``, zero but for the client's own model, and ``members`` is its one-hot, ``f32[models]``. It
    is no part of what layers before this one clip or sparsify. A model without members decodes to zero.

    Guarantees:
      A client without examples is nobody's member. With one model it is ``mean(over="clients")``.

    Raises:
      ValueError: when a simulation starts, clients that send no members, or updates of another number of models.
    """

    def init(spec: MessageSpec):
        rule = "rules.train_chosen, or a rule that returns Message(update, {'members': one_hot})"
        models = _counts("mean_by_model", "members", spec, rule).shape
        for path, leaf in jax.tree.leaves_with_path(spec.value):
            if leaf.shape[:1] != models:
                raise ValueError(
                    f"mean_by_model: the update's {jax.tree_util.keystr(path) or 'root'} has shape {leaf.shape}, "
                    f"expected a leading axis {models}, one for each model that members counts."
                )
        return (), ()

    def encode(message, client, server, ctx):
        came = jnp.asarray(ctx.num_examples) > 0
        members = jnp.where(came, message.aux["members"], 0).astype(jnp.float32)
        value = _summable(message.value)
        value = tree.where(came, value, tree.zeros_like(value))
        return message._replace(value=value, aux={**message.aux, "members": members}), client, {}

    def decode(message, server, ctx):
        members = message.aux["members"]
        value = jax.tree.map(
            lambda x: _divided(x, members.reshape(-1, *(1,) * (x.ndim - 1))), tree.widen(message.value)
        )
        return message._replace(value=value), server, {}

    facts = Facts("mean_by_model", divisor="data")
    return Transform(init, lambda server, incoming: incoming, encode, decode, (facts,))


def _summable(value):
    """Integers as float32, so that their sum neither wraps nor is divided as integers; floats as they are."""
    return jax.tree.map(
        lambda x: x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(tree.wide_dtype(x.dtype)), value
    )


def _divided(total, count):
    return jnp.where(count > 0, total / jnp.where(count > 0, count, 1).astype(total.dtype), 0)


def _counts(layer: str, name: str, spec: Message, source: str):
    """Spec of the counts of that name that clients send beside their updates."""
    if name not in spec.aux:
        got = ", ".join(map(repr, sorted(spec.aux))) or "nothing"
        raise ValueError(
            f"{layer} divides by {name!r}, but the clients send {got} beside their updates. It belongs to {source}."
        )
    return spec.aux[name]
