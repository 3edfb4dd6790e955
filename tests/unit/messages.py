"""Three clients' updates, and what encodes and aggregates them: what the tests of transforms share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim._src import tree
from fedjax_sim.aggregation._reduce import example_client_context

KEY = jax.random.key(0)
UPDATES = {"a": jnp.array([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0]]), "b": jnp.array([[12.0], [0.0], [0.0]])}
SIZES = np.array([2, 5, 1])
NORMS = np.array([13.0, 0.5, 10.0])


def round_context(key=KEY, *, clients=3, expected=3.0, bound=np.inf, mask=None) -> fs.RoundContext:
    return fs.RoundContext(key, jnp.int32(0), jnp.int32(clients), expected, 10, mask, jnp.float32(bound))


def client_context(**changes) -> fs.ClientContext:
    return example_client_context()._replace(num_examples=jnp.int32(1), **changes)


def encode(transform, value, *, client=None, server=None, **context):
    """One client's encoded value, its part and metrics; compiled as a whole, which is faster than operation by operation."""
    message = fs.Message(value)
    first_server, first_client = transform.init(tree.spec(message))
    return jax.jit(transform.encode)(
        message,
        first_client if client is None else client,
        first_server if server is None else server,
        client_context(**context),
    )


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def run(transform, updates, **options):
    """``agg.run`` with one key, compiled as a whole."""
    return jax.jit(lambda updates: agg.run(transform, updates, key=KEY, **options))(updates)


def stacked(transform, sizes=None, **options):
    """The three, aggregated."""
    return run(transform, UPDATES, num_examples=SIZES if sizes is None else sizes, **options)
