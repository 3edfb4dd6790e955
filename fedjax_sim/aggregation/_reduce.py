"""What an engine adds encoded messages to."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from fedjax_sim._src import keys
from fedjax_sim._src.types import ClientContext, Message, Transform


def example_client_context() -> ClientContext:
    """A context of the right types, for shape inference."""
    zero = jnp.zeros((), jnp.int32)
    return ClientContext(keys.root_key(0), zero, zero, zero, zero, zero, zero, zero, jnp.float32(jnp.inf))


def as_message(sent) -> Message:
    """What a rule's ``finish`` sends, as a message: a plain update has nothing beside it.

    Raises:
      TypeError: the rule's own ``Message`` has no mapping as ``aux``, or something on the layers' stack.
    """
    if not isinstance(sent, Message):
        return Message(sent, {})
    if isinstance(sent.value, Message):
        raise TypeError(
            "a client's message holds another message: a rule around a rule must join their values and their aux."
        )
    if not isinstance(sent.aux, Mapping):
        raise TypeError(
            f"a client's message has {type(sent.aux).__name__} as aux, expected a mapping from names to arrays, for "
            "example Message(update, {'members': one_hot})."
        )
    if sent.stack != ():
        raise TypeError("a client's message has a stack, which belongs to the layers: put counts into aux.")
    return sent


def gathers(transform: Transform) -> bool:
    return bool(transform.facts) and transform.facts[0].reduction == "gather"


def accumulator_dtype(dtype) -> jnp.dtype:
    """Integers keep their type, so that modular sums wrap as they should; floats sum in at least float32."""
    return jnp.promote_types(dtype, jnp.float32) if jnp.issubdtype(dtype, jnp.floating) else jnp.dtype(dtype)


def accumulator(spec: Message, shape: tuple[int, ...]) -> Message:
    """Zeros to add messages of this spec to, with leading axes ``shape`` (replicas; and rows under a gather)."""
    return jax.tree.map(lambda x: jnp.zeros((*shape, *x.shape), accumulator_dtype(x.dtype)), spec)
