"""Random rotation by a Walsh-Hadamard transform, which spreads a message evenly over its coordinates."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks, keys
from fedjax_sim._src.types import Array, Facts, Transform


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["vector"], meta_fields=["structure", "shapes"]
)
@dataclasses.dataclass(frozen=True)
class Flat:
    """A pytree as one vector, which knows what it was.

    Attributes:
      vector: ``f32[size]``, the leaves one after the other, zeros behind them.
      structure: of the pytree.
      shapes: of its leaves.
    """

    vector: Any
    structure: Any
    shapes: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, value, size: int | None = None) -> Flat:
        leaves, structure = jax.tree.flatten(value)
        flat = [jnp.ravel(x).astype(jnp.float32) for x in leaves]
        vector = jnp.concatenate(flat) if flat else jnp.zeros(0, jnp.float32)
        if size is not None:
            vector = jnp.pad(vector, (0, size - vector.shape[0]))
        return cls(vector, structure, tuple(x.shape for x in leaves))

    def restored(self):
        """The pytree, its leaves of the vector's dtype."""
        leaves, start = [], 0
        for shape in self.shapes:
            count = math.prod(shape)
            leaves.append(self.vector[start : start + count].reshape(shape))
            start += count
        return jax.tree.unflatten(self.structure, leaves)

    def with_vector(self, vector: Array) -> Flat:
        return dataclasses.replace(self, vector=vector)


def hadamard_rotation(seed: int = 0) -> Transform:
    """Rotates each client's message at random, and the sum back (Kairouz, Liu and Steinke 2021, section 4.1).

    The leaves are joined to one vector, zeros fill it up to a power of two, coordinates get random signs and go through the
    Walsh-Hadamard transform. Every coordinate of the result has an expected square of the squared norm over the dimension,
    and tails no heavier than a Gaussian's: what a sum in few bits needs, in front of ``discrete_gaussian_noise``.

    Guarantees:
      The L2 norm stays, up to rounding in float32. The sum is rotated back, so that the layer alone changes nothing but rounding.
      The signs are public: they follow from ``seed`` and the round, are the same for all clients, and no privacy rests on them.

    Args:
      seed: of the signs.

    Raises:
      ValueError: ``seed`` is negative.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_sim import aggregation as agg
      >>> rotated = agg.chain(agg.hadamard_rotation(), agg.mean(over="clients"))
      >>> mean, _, _ = agg.run(rotated, {"w": jnp.array([[3.0, 4.0], [1.0, 0.0]])}, key=jax.random.key(0))
      >>> [round(float(x), 4) for x in mean["w"]]
      [2.0, 2.0]
    """
    checks.not_negative_int("seed", seed)

    def signs(round_, size: int):
        key = keys.fold(keys.root_key(seed), keys.ROTATION, round_)
        return 1.0 - 2.0 * jax.random.bernoulli(key, 0.5, (size,)).astype(jnp.float32)

    def encode(message, client, server, ctx):
        count = sum(x.size for x in jax.tree.leaves(message.value))
        flat = Flat.of(message.value, _power_of_two(count))
        rotated = walsh_hadamard(flat.vector * signs(ctx.round, flat.vector.shape[0]))
        return message._replace(value=flat.with_vector(rotated)), client, {}

    def decode(message, server, ctx):
        flat: Flat = message.value
        back = walsh_hadamard(flat.vector) * signs(ctx.round, flat.vector.shape[0])
        return message._replace(value=flat.with_vector(back).restored()), server, {}

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: incoming,
        encode=encode,
        decode=decode,
        facts=(Facts("hadamard_rotation"),),
    )


_FACTOR = 64
"""Largest factor of the transform that is done as one product."""


def walsh_hadamard(x: Array) -> Array:
    """The orthonormal Walsh-Hadamard transform of ``f32[size]``, ``size`` a power of two; its own inverse.

    The matrix is the Kronecker product of small ones (Sylvester), so each axis of a reshaped vector is transformed on its own.
    """
    size, factors = x.shape[0], []
    while math.prod(factors) < size:
        factors.append(min(_FACTOR, size // math.prod(factors)))
    y = x.reshape(factors or (1,))
    for axis, factor in enumerate(factors):
        # At the highest precision: accelerators would round the message to a shorter type, and the norm would not stay.
        product = jnp.tensordot(_sylvester(factor), y, axes=(1, axis), precision=jax.lax.Precision.HIGHEST)
        y = jnp.moveaxis(product, 0, axis)
    return y.reshape(x.shape)


def _sylvester(size: int) -> np.ndarray:
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (matrix / math.sqrt(size)).astype(np.float32)


def _power_of_two(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()
