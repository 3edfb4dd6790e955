"""What an engine adds encoded messages to."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src import keys
from fedjax_sim._src.types import ClientContext, Message, Transform


def example_client_context() -> ClientContext:
    """A context of the right types, for shape inference."""
    zero = jnp.zeros((), jnp.int32)
    return ClientContext(keys.root_key(0), zero, zero, zero, zero, zero, zero, zero, jnp.float32(jnp.inf))


def gathers(transform: Transform) -> bool:
    return bool(transform.facts) and transform.facts[0].reduction == "gather"


def accumulator_dtype(dtype) -> jnp.dtype:
    """Integers keep their type, so that modular sums wrap as they should; floats sum in at least float32."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else jnp.dtype(dtype)


def accumulator(spec: Message, shape: tuple[int, ...]) -> Message:
    """Zeros to add messages of this spec to, with leading axes ``shape`` (replicas; and rows under a gather)."""
    return jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), accumulator_dtype(x.dtype)), spec)
