"""A rule over given batches, for a loop of your own."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim._src import keys
from fedjax_sim._src.types import (
    Batch,
    Broadcast,
    ClientContext,
    ClientRule,
    ClientState,
    Metrics,
    StepContext,
    Update,
)


def run(rule: ClientRule, broadcast: Broadcast, batches: Batch, key: jax.Array) -> Update:
    """A client's update: begin, scanned steps, finish. Pure, so ``jit``, ``vmap`` and ``grad`` apply.

    Args:
      rule: a client rule.
      broadcast: what the rule expects from the server, ``Variables`` for most.
      batches: columns ``[steps, batch, ...]``; an optional ``"mask"``, ``bool[steps, batch]``, marks rows that exist.
      key: threefry key of the client in this round.

    Returns:
      The rule's update; a ``Message`` where the rule sends counts beside it. ``aggregation.run`` takes either, stacked.

    Raises:
      ValueError: columns disagree on their first two axes, or there are more steps than the rule has room for.
    """
    return run_with_state(rule, broadcast, rule.init(broadcast), batches, key)[0]


def run_with_state(
    rule: ClientRule, broadcast: Broadcast, state: ClientState, batches: Batch, key: jax.Array
) -> tuple[Update, ClientState, Metrics]:
    """As ``run``, for rules that keep a state: also takes it, and returns update, new state and summed metrics."""
    key = keys.root_key(key)
    batches = _with_mask(batches)
    steps = batches["mask"].shape[0]
    if rule.most_steps is not None and steps > rule.most_steps:
        raise ValueError(f"batches have {steps} steps, but the rule was made for at most {rule.most_steps}.")
    ctx = context(key, num_examples=jnp.sum(batches["mask"]), num_steps=steps)

    def body(work, item):
        index, batch = item
        inner = StepContext(
            keys.fold(key, keys.STEP, index), index, jnp.zeros((), jnp.int32), index / max(steps, 1)
        )
        return rule.step(broadcast, work, batch, inner)

    work, measured = jax.lax.scan(
        body,
        rule.begin(broadcast, state, ctx._replace(key=keys.fold(key, keys.BEGIN))),
        (jnp.arange(steps), batches),
    )
    update, state, metrics = rule.finish(
        broadcast, work, state, ctx._replace(key=keys.fold(key, keys.FINISH))
    )
    return update, state, {**jax.tree.map(lambda x: jnp.sum(x, axis=0), measured), **metrics}


def context(key: jax.Array, num_examples: Any, num_steps: Any) -> ClientContext:
    """A client context of a loop that has neither rounds nor groups."""
    zero = jnp.zeros((), jnp.int32)
    return ClientContext(
        key,
        zero,
        zero,
        zero,
        jnp.asarray(num_examples, jnp.int32),
        jnp.asarray(num_steps, jnp.int32),
        zero,
        zero,
        jnp.float32(jnp.inf),
    )


def _with_mask(batches: Batch) -> dict[str, jax.Array]:
    shapes = {name: jnp.shape(column)[:2] for name, column in batches.items()}
    if len(set(shapes.values())) != 1 or len(next(iter(shapes.values()))) != 2:
        raise ValueError(
            f"batches have leading axes {shapes}, expected the same [steps, batch] for every column."
        )
    shape = next(iter(shapes.values()))
    return {"mask": jnp.ones(shape, bool), **{name: jnp.asarray(column) for name, column in batches.items()}}
