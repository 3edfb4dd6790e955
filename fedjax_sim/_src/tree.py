"""Arithmetic on pytrees of arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp


def add(a, b):
    return jax.tree.map(jnp.add, a, b)


def subtract(a, b):
    return jax.tree.map(jnp.subtract, a, b)


def wide_dtype(dtype) -> jnp.dtype:
    """What a leaf is weighted, added and divided in: at least float32, also for integers."""
    return jnp.promote_types(dtype, jnp.float32)


def widen(tree):
    """Every leaf in its wide dtype."""
    return jax.tree.map(lambda x: x.astype(wide_dtype(x.dtype)), tree)


def scale(tree, factor):
    """Multiplies every leaf, in at least float32; each keeps its dtype. For integers, ``widen`` first."""

    def multiply(x):
        wide = wide_dtype(x.dtype)
        return (x.astype(wide) * jnp.asarray(factor).astype(wide)).astype(x.dtype)

    return jax.tree.map(multiply, tree)


def move(start, change):
    """``start + change`` in the dtypes of ``start``; added in at least float32, an integer moves by the nearest integer.

    What a server does with a decoded mean, which is float32 whatever the model's dtypes.
    """

    def add_to(x, d):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return x + (jnp.round(d) if jnp.issubdtype(d.dtype, jnp.inexact) else d).astype(x.dtype)
        wide = wide_dtype(x.dtype)
        return (x.astype(wide) + d.astype(wide)).astype(x.dtype)

    return jax.tree.map(add_to, start, change)


def strong(tree):
    """Drops weak types, so that loop carries keep theirs."""
    return jax.tree.map(
        lambda x: jax.lax.convert_element_type(x, jnp.result_type(x)) if not _is_key(x) else x, tree
    )


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key) if hasattr(x, "dtype") else False


def zeros_like(tree):
    """Zeros of the shapes and dtypes of ``tree``, which may hold ``ShapeDtypeStruct``."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), tree)


def where(condition, a, b):
    """Leafwise ``jnp.where``; ``condition`` is broadcast over trailing axes."""
    condition = jnp.asarray(condition)

    def select(x, y):
        return jnp.where(condition.reshape(condition.shape + (1,) * (jnp.ndim(x) - condition.ndim)), x, y)

    return jax.tree.map(select, a, b)


def squared_norm(tree) -> jax.Array:
    """Sum of squares over all leaves in float32, ``f32[]``."""
    parts = _in_few_rows([x.astype(jnp.float32) for x in jax.tree.leaves(tree)])
    return sum((jnp.sum(jnp.square(x)) for x in parts), start=jnp.zeros((), jnp.float32))


_SHORT = 4096
"""Up to so many elements a leaf is joined with others before it is reduced."""


def _in_few_rows(leaves: Sequence[jax.Array]) -> list[jax.Array]:
    """The leaves, short ones of one type as one row: every reduction is operations to compile and to call."""
    rows = [x for x in leaves if x.size > _SHORT]
    short: dict[Any, list[jax.Array]] = {}
    for x in leaves:
        if x.size <= _SHORT:
            short.setdefault(x.dtype, []).append(jnp.ravel(x))
    return rows + [jnp.concatenate(of_type) for of_type in short.values()]


def global_norm(tree) -> jax.Array:
    """L2 norm over all leaves in float32, ``f32[]``."""
    return jnp.sqrt(squared_norm(tree))


def clip(value, norm):
    """Scales a tree down to an L2 norm over all leaves, in float32.

    Returns:
      The clipped value, zero where the norm is not finite; whether the norm was above the limit; whether it was finite.
    """
    actual = global_norm(value)
    finite = jnp.isfinite(actual)
    factor = shrinking(actual, norm)
    return jax.tree.map(lambda x: scaled(x, factor, finite), value), finite & (actual > norm), finite


def shrinking(actual, norm):
    """What brings the norm ``actual`` down to ``norm``, at most 1."""
    # By comparison, so that a message whose squares underflow (norm 0) is not scaled by the norm itself.
    return jnp.where(actual > norm, norm / jnp.where(actual > 0, actual, 1.0), 1.0)


def scaled(x, factor, kept):
    """A leaf times a factor up to 1, or zero unless it is kept; a factor of 1 leaves it as it is.

    A narrow float is rounded once, from float32, and the factor is smaller by as much as that can lengthen it: its norm
    stays at or below what was asked for.
    """
    wide = wide_dtype(x.dtype)
    factor = jnp.asarray(factor).astype(wide)
    if jnp.issubdtype(x.dtype, jnp.floating) and x.dtype != wide:
        factor = jnp.where(factor < 1, factor * (1 - float(jnp.finfo(x.dtype).eps) / 2), factor)
    # where, not a product alone: zero times NaN is NaN.
    return jnp.where(kept, x.astype(wide) * factor, 0).astype(x.dtype)


def all_finite(tree) -> jax.Array:
    """``bool[]``: no inexact leaf holds NaN or infinity."""
    # Nothing times 0 is 0 but what is finite, and a sum takes the CPU and its compiler half the time of a conjunction. Not a maximum:
    # that of some thousand numbers passes over NaN there (jax 0.10.2).
    inexact = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    nothing = [jnp.sum(x * 0) == 0 for x in _in_few_rows(inexact)]
    return jnp.all(jnp.stack(nothing)) if nothing else jnp.ones((), bool)


def size(tree) -> int:
    """Number of elements over all leaves."""
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def num_bytes(tree) -> int:
    """Bytes over all leaves, which may be ``ShapeDtypeStruct``."""
    return sum(math.prod(x.shape) * jnp.dtype(x.dtype).itemsize for x in jax.tree.leaves(tree))


def readable_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def spec(tree) -> Any:
    """Shapes and dtypes of a tree, as ``ShapeDtypeStruct`` leaves."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), tree)


def squeezed(tree, axis: int = 0) -> Any:
    """Every leaf without an axis of length 1."""
    return jax.tree.map(lambda x: jax.lax.squeeze(x, (axis,)), tree)


def expanded(tree) -> Any:
    """Every leaf with a first axis of length 1."""
    return jax.tree.map(lambda x: jax.lax.expand_dims(x, (0,)), tree)


def row(tree, index, keepdims: bool = False) -> Any:
    """Row ``index`` of every leaf, which is none from the end: to allow for those takes three operations a leaf."""
    get = functools.partial(jax.lax.dynamic_index_in_dim, keepdims=keepdims, allow_negative_indices=False)
    return jax.tree.map(lambda x: get(x, index), tree)


def with_row(tree, index, new) -> Any:
    """The tree with ``new`` as row ``index`` of its leaves, which is none from the end."""
    put = functools.partial(jax.lax.dynamic_update_index_in_dim, axis=0, allow_negative_indices=False)
    return jax.tree.map(lambda x, one: put(x, one, index), tree, new)


def pack(tree) -> tuple[jax.Array, ...]:
    """All leaves in one array ``[elements]`` per dtype: what is copied often and small is copied at once."""
    leaves = jax.tree.leaves(tree)
    return tuple(
        jnp.concatenate([jnp.ravel(x) for x in leaves if x.dtype == dtype]) for dtype in _dtypes(leaves)
    )


def unpack(packed: tuple[jax.Array, ...], like) -> Any:
    """The inverse of ``pack``; ``like`` has the shapes and dtypes of the tree."""
    leaves, structure = jax.tree.flatten(like)
    sizes = {dtype: [math.prod(x.shape) for x in leaves if x.dtype == dtype] for dtype in _dtypes(leaves)}
    pieces = {
        dtype: iter(jax.lax.split(array, sizes[dtype])) for dtype, array in zip(sizes, packed, strict=True)
    }
    return jax.tree.unflatten(structure, [next(pieces[x.dtype]).reshape(x.shape) for x in leaves])


def _dtypes(leaves) -> list:
    return list(dict.fromkeys(x.dtype for x in leaves))
