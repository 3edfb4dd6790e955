"""A transform over stacked updates, for a loop of your own."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src import keys
from fedjax_sim._src.types import RoundContext, Transform
from fedjax_sim.aggregation._chain import chain
from fedjax_sim.aggregation._reduce import accumulator_dtype, as_message, example_client_context, gathers


def run(
    transform: Transform, updates, *, key, num_examples=None, expected_clients=None, state=None, round_=0
):
    """Aggregates stacked updates with a transform: encode each, sum, decode. For a loop of your own.

    Args:
      transform: a layer or a chain.
      updates: pytree with a leading axis ``[clients, ...]``, or a ``Message`` of such, where counts travel beside them.
      key: threefry key of the round, for this call alone: noise must not share it with what the clients drew.
      num_examples: ``int[clients]``; 1 each by default. A client with 0 examples did not come: its update counts as zeros.
      expected_clients: divisor of ``mean(over="expected_cohort")``; the number of rows by default.
      state: what the previous call returned; ``None`` in the first round.
      round_: index of the round.

    Returns:
      The aggregate (one update), the state for the next round, and metrics.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_sim import aggregation as agg
      >>> updates = {"w": jnp.array([[3.0, 4.0], [0.3, 0.4]])}
      >>> clients_key, key = jax.random.split(jax.random.key(0))     # the first is for what clients draw
      >>> mean, state, metrics = agg.run(
      ...     agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="clients")), updates, key=key)
      >>> [round(float(x), 4) for x in mean["w"]]
      [0.45, 0.6]
    """
    transform, key = chain(transform), keys.root_key(key)
    updates = as_message(updates)
    clients = jax.tree.leaves(updates)[0].shape[0]
    sizes = jnp.ones(clients, jnp.int32) if num_examples is None else jnp.asarray(num_examples, jnp.int32)
    if sizes.shape != (clients,):
        raise ValueError(
            f"num_examples has shape {sizes.shape}, expected ({clients},): one count per update."
        )
    if state is None:
        server, part = transform.init(
            jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), updates)
        )
        state = server, jax.tree.map(lambda x: jnp.broadcast_to(x, (clients, *jnp.shape(x))), part)
    server, parts = state

    def encode(update, part, size, client):
        context = example_client_context()._replace(
            key=keys.fold(keys.client_key(key, round_, 0, client, 0), keys.ENCODE),
            round=jnp.asarray(round_, jnp.int32),
            client=client,
            num_examples=size,
        )
        # Who did not come sends zeros, as in an engine, whatever stands in its row.
        sent = jax.tree.map(lambda x: jnp.where(size > 0, x, jnp.zeros_like(x)), update)
        return transform.encode(sent, part, server, context)

    messages, parts, measured = jax.vmap(encode)(updates, parts, sizes, jnp.arange(clients, dtype=jnp.int32))
    rows = gathers(transform)
    if not rows:
        messages = jax.tree.map(lambda x: jnp.sum(x, axis=0, dtype=accumulator_dtype(x.dtype)), messages)
    context = RoundContext(
        key=keys.server_key(key, round_, 0),
        round=jnp.asarray(round_, jnp.int32),
        clients=jnp.sum(sizes > 0, dtype=jnp.int32),
        expected_clients=float(clients if expected_clients is None else expected_clients),
        population=clients,
        mask=sizes > 0 if rows else None,
        bound=jnp.float32(jnp.inf),
    )
    decoded, server, metrics = transform.decode(messages, server, context)
    measured = jax.tree.map(lambda x: jnp.sum(x, axis=0), measured)
    return decoded.value, (server, parts), {**measured, **metrics}
