"""Clipping by parts of a message, clipping in L1, and zeroing of outliers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Array, Facts, Mean, MessageSpec, Transform
from fedjax_sim.aggregation._clipping import clip_metrics


def clip_by_leaf_norm(clip_norm: float) -> Transform:
    """Scales each leaf of a client's message down to L2 norm ``clip_norm`` (McMahan et al. 2018, section 3, per-layer clipping).

    Guarantees:
      Every leaf's L2 norm, taken in float32, is at most ``clip_norm`` up to rounding, and so the whole message's at most
      ``clip_norm * sqrt(leaves)``, which is the bound that layers behind it see. A message with a leaf whose norm is not finite
      becomes zero as a whole and is counted in the metric ``nonfinite``. A leaf within the norm is unchanged.

    Args:
      clip_norm: of each leaf, above 0; may be traced.

    Raises:
      ValueError: ``clip_norm`` is not a finite number of 1e-12 or above.
    """
    checks.clip_norm("clip_norm", clip_norm)
    return _by_parts(
        "clip_by_leaf_norm", lambda names: {index: ([index], clip_norm) for index in range(len(names))}
    )


def clip_by_group_norm(clip_norms: Mapping[str, float]) -> Transform:
    """Scales each group of leaves down to an L2 norm of its own (McMahan et al. 2018, section 3, per-layer clipping).

    Guarantees:
      The L2 norm over the leaves of a group, taken in float32, is at most the group's norm up to rounding, and so the whole
      message's at most the root of the sum of their squares, which is the bound that layers behind it see. A message with a
      group whose norm is not finite becomes zero as a whole and is counted in the metric ``nonfinite``. A group within its norm
      is unchanged.

    Args:
      clip_norms: from a regular expression, found anywhere in a leaf's path such as ``"params/Dense_1/kernel"``, to the norm
        of the leaves that it finds; each may be traced.

    Raises:
      ValueError: a norm that is not a finite number of 1e-12 or above; when a message is first seen, a leaf in no group or in two, or
        a group without leaves.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_sim import aggregation as agg
      >>> clip = agg.clip_by_group_norm({"bias": 3.0, "kernel": 4.0})
      >>> updates = {"bias": jnp.array([[30.0]]), "kernel": jnp.array([[0.0, 40.0]])}
      >>> total, (server, _), _ = agg.run(clip, updates, key=jax.random.key(0))
      >>> total["bias"].tolist(), total["kernel"].tolist(), float(agg.chain(clip).bound(server, jnp.inf))
      ([3.0], [0.0, 4.0], 5.0)
    """
    if not clip_norms:
        raise ValueError(
            "clip_norms is empty, expected a norm for each group of leaves, as in {'Dense_0': 1.0, '.': 0.5}."
        )
    for pattern, norm in clip_norms.items():
        checks.clip_norm(f"clip_norms[{pattern!r}]", norm)

    def groups_of(names: list[str]) -> dict[Any, tuple[list[int], Any]]:
        found = {pattern: [i for i, n in enumerate(names) if re.search(pattern, n)] for pattern in clip_norms}
        for index, name in enumerate(names):
            owners = [pattern for pattern, leaves in found.items() if index in leaves]
            if len(owners) != 1:
                where = " and ".join(map(repr, owners)) or "none"
                raise ValueError(
                    f"clip_by_group_norm: the leaf {name!r} is in {where} of the groups {', '.join(map(repr, clip_norms))}; "
                    "expected exactly one: clip_norms has patterns that are found anywhere in a leaf's path."
                )
        for pattern, leaves in found.items():
            if not leaves:
                raise ValueError(
                    f"clip_by_group_norm: the group {pattern!r} has no leaf; the leaves are {', '.join(names)}."
                )
        return {pattern: (leaves, clip_norms[pattern]) for pattern, leaves in found.items()}

    return _by_parts("clip_by_group_norm", groups_of)


def _by_parts(name: str, groups_of) -> Transform:
    """Clips groups of leaves, each to its norm; the composed bound is kept on the server."""

    def init(spec: MessageSpec):
        squares = [
            jnp.square(jnp.asarray(norm, jnp.float32)) for _, norm in groups_of(_names(spec.value)).values()
        ]
        return jnp.sqrt(sum(squares, start=jnp.zeros((), jnp.float32))), ()

    def encode(message, client, server, ctx):
        leaves, structure = jax.tree.flatten(message.value)
        factors, norms, above = [jnp.ones(())] * len(leaves), [], jnp.zeros((), bool)
        for members, norm in groups_of(_names(message.value)).values():
            actual = tree.global_norm([leaves[index] for index in members])
            norms.append(actual)
            above |= actual > norm
            for index in members:
                factors[index] = tree.shrinking(actual, norm)
        finite = jnp.all(jnp.isfinite(jnp.stack(norms))) if norms else jnp.ones((), bool)
        clipped = [tree.scaled(x, factor, finite) for x, factor in zip(leaves, factors, strict=True)]
        value = jax.tree.unflatten(structure, clipped)
        return message._replace(value=value), client, clip_metrics(finite & above, finite, ctx)

    return Transform(
        init=init,
        bound=lambda server, incoming: jnp.minimum(incoming, server),
        encode=encode,
        decode=lambda message, server, ctx: (message, server, {}),
        facts=(Facts(name, limits_norm=True, keeps_l1=True),),
    )


def _names(value) -> list[str]:
    """Paths of the leaves, as in ``params/Dense_1/kernel``."""
    paths = [path for path, _ in jax.tree.leaves_with_path(value)]
    return [jax.tree_util.keystr(path, simple=True, separator="/") for path in paths]


def clip_by_l1_norm(clip_norm: float) -> Transform:
    """Scales each client's message down to L1 norm ``clip_norm`` over the whole pytree, for noise with an L1 bound.

    Guarantees:
      The encoded value's L1 norm, taken in float32 over all leaves, is at most ``clip_norm`` up to rounding, for every input;
      and so is its L2 norm. A message whose norm is not finite becomes zero as a whole and is counted in the metric
      ``nonfinite``. A message within the norm is unchanged.

    Args:
      clip_norm: the bound, above 0; may be traced.

    Raises:
      ValueError: ``clip_norm`` is not a finite number of 1e-12 or above.
    """
    checks.clip_norm("clip_norm", clip_norm)

    def encode(message, client, server, ctx):
        actual = _norm(message.value, "l1")
        finite = jnp.isfinite(actual)
        factor = tree.shrinking(actual, clip_norm)
        value = jax.tree.map(lambda x: tree.scaled(x, factor, finite), message.value)
        return (
            message._replace(value=value),
            client,
            clip_metrics(finite & (actual > clip_norm), finite, ctx),
        )

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: jnp.minimum(incoming, clip_norm),
        encode=encode,
        decode=lambda message, server, ctx: (message, server, {}),
        facts=(Facts("clip_by_l1_norm", limits_norm=True, norm="l1", keeps_l1=True),),
    )


def zero_out(max_norm: float | None = None, norm: Literal["l2", "l1"] = "l2") -> Transform:
    """Replaces by zero the messages of clients that went wrong: too large by far, or not finite.

    Guarantees:
      A message whose norm is above ``max_norm`` becomes zero as a whole and is counted in the metric ``zeroed``; one whose
      norm is not finite likewise, whatever ``max_norm``, and in ``nonfinite``, too. All others are unchanged. With a
      ``max_norm`` it is a bound like a clip's. A zeroed client still counts in a mean.

    Args:
      max_norm: the largest norm that is kept, above 0; may be traced. ``None`` looks for values that are not finite alone.
      norm: over the whole pytree, in float32.

    Raises:
      ValueError: ``max_norm`` is not a finite number of 1e-12 or above.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_sim import aggregation as agg
      >>> robust = agg.chain(agg.zero_out(100.0), agg.clip_by_global_norm(1.0), agg.mean(over="clients"))
      >>> mean, _, metrics = agg.run(robust, jnp.array([[1.0], [jnp.nan], [1e9], [0.5]]), key=jax.random.key(0))
      >>> float(mean[0]), float(metrics["zero_out/zeroed"].total)
      (0.375, 2.0)
    """
    checks.one_of("zero_out(norm=...)", norm, ("l2", "l1"))
    if max_norm is not None:
        checks.clip_norm("max_norm", max_norm)

    def encode(message, client, server, ctx):
        actual = _norm(message.value, norm)
        finite = jnp.isfinite(actual)
        kept = finite if max_norm is None else finite & (actual <= max_norm)
        value = tree.where(kept, message.value, tree.zeros_like(message.value))
        came = (jnp.asarray(ctx.num_examples) > 0).astype(jnp.float32)
        counted = {
            "zeroed": Mean((~kept).astype(jnp.float32) * came, came),
            "nonfinite": Mean((~finite).astype(jnp.float32) * came, came),
        }
        return message._replace(value=value), client, counted

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: incoming if max_norm is None else jnp.minimum(incoming, max_norm),
        encode=encode,
        decode=lambda message, server, ctx: (message, server, {}),
        facts=(Facts("zero_out", limits_norm=max_norm is not None, norm=norm, keeps_l1=True),),
    )


def _norm(value, norm: Literal["l2", "l1"]) -> Array:
    """Over all leaves, in float32."""
    if norm == "l2":
        return tree.global_norm(value)
    total = jnp.zeros((), jnp.float32)
    for x in jax.tree.leaves(value):
        total += jnp.sum(jnp.abs(x.astype(jnp.float32)))
    return total
