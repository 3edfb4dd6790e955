"""Matrix products in the order that the CPU is fast at, derivatives included.

The gradient of ``rows @ weights`` is two products of other layouts, ``cotangents @ weights^T`` and ``rows^T @ cotangents``.
XLA hands each to its library as it stands, and the CPU's libraries are two to four times slower at a transposed left
operand, and at the few and narrow rows of a client's batch. Here each layout has a form of its own. The three are closed
under differentiation, so one primitive holds them all, in reverse and in forward mode and under ``vmap``. The measurements
behind the limits are in ``docs/decisions/0015-products.md``.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from fedjax_sim_kernels import bilinear

Layout = Literal["nn", "nt", "tn"]
"""Which operand is given transposed: none, the right one, the left one."""

_CONTRACTED: dict[Layout, tuple[int, int]] = {"nn": (1, 0), "nt": (1, 1), "tn": (0, 0)}

NARROW = 16
"""Up to so many features the result is computed transposed."""

TALL_DEPTH = 128
"""From so many terms on, transposing the left operand costs more than it saves, but where there are ``WIDE`` features."""

WIDE = 512
"""From so many features on the CPU's library is half as fast with a transposed left operand."""

LARGE = 100_000
"""Transposing a larger operand costs more than it saves."""


def product(
    rows: jax.Array, weights: jax.Array, *, precision: Any = None, preferred_element_type: Any = None
) -> jax.Array:
    """``rows @ weights``, with gradients that are fast on CPU.

    Args:
      rows: ``[..., rows, depth]``.
      weights: ``[..., depth, features]``, with the same axes in front, of a batch.
      precision: as in ``lax.dot_general``; likewise ``preferred_element_type``.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim_kernels.products import product
    >>> gradient = jax.grad(lambda w: product(jnp.ones((2, 3)), w).sum())(jnp.zeros((3, 4)))
    >>> gradient.shape, float(gradient[0, 0])
    ((3, 4), 2.0)
    """
    # Not "in (None, dtype)": numpy takes None for float64.
    wider = preferred_element_type is not None and preferred_element_type != rows.dtype
    if wider or rows.dtype != weights.dtype:
        return lax.dot_general(rows, weights, _dimensions(rows.ndim, "nn"), precision, preferred_element_type)
    if precision is None:
        # As lax.dot_general does: what is in force when the product is written, not when it is compiled.
        precision = jax.config.jax_default_matmul_precision or lax.Precision.DEFAULT  # type: ignore
    return contract_p.bind(rows, weights, layout="nn", precision=precision)


contract_p = Primitive("contract")
"""``a @ b`` over the last two axes, either given transposed; axes before them are a batch that both have."""


def _dot(a: jax.Array, b: jax.Array, *, layout: Layout, precision: Any) -> jax.Array:
    return lax.dot_general(a, b, _dimensions(a.ndim, layout), precision=precision)


def _dimensions(rank: int, layout: Layout):
    batch = tuple(range(rank - 2))
    left, right = (rank - 2 + axis for axis in _CONTRACTED[layout])
    return ((left,), (right,)), (batch, batch)


def _abstract(a, b, *, layout: Layout, precision: Any):
    return lax.dot_general_p.abstract_eval(
        a,
        b,
        dimension_numbers=_dimensions(a.ndim, layout),
        precision=precision,
        preferred_element_type=None,
        out_sharding=None,
    )[0]


# --- vmap -----------------------------------------------------------------------------------------------------


def _batched(operands, axes, *, layout: Layout, precision: Any):
    a, b = operands
    of_a, of_b = axes
    settings = {"layout": layout, "precision": precision}
    if of_a is not None and of_b is not None:
        return contract_p.bind(jnp.moveaxis(a, of_a, 0), jnp.moveaxis(b, of_b, 0), **settings), 0
    if of_a is not None and b.ndim == 2 and layout != "tn":
        # Weights that all clients share: one product over everybody's rows.
        a = jnp.moveaxis(a, of_a, 0)
        clients, rows, depth = a.shape
        joined = contract_p.bind(a.reshape(clients * rows, depth), b, **settings)
        return joined.reshape(clients, rows, joined.shape[-1]), 0
    return jax.vmap(functools.partial(_dot, **settings), in_axes=(of_a, of_b))(a, b), 0


# --- forms ---------------------------------------------------------------------------------------------------


def _on_cpu(a: jax.Array, b: jax.Array, *, layout: Layout, precision: Any) -> jax.Array:
    dot = functools.partial(_dot, precision=precision)
    if a.dtype != jnp.float32:
        return dot(a, b, layout=layout)
    if layout == "tn":
        (depth, height), width = a.shape[-2:], b.shape[-1]
        if depth < TALL_DEPTH and width <= NARROW:
            return _turned(dot(_turned(b), a, layout="nn"))
        if (depth < TALL_DEPTH or width >= WIDE) and depth * height <= LARGE:
            return dot(_turned(a), b, layout="nn")
        if depth >= TALL_DEPTH and height > width:
            return _turned(dot(b, a, layout="tn"))
    return dot(a, b, layout=layout)


def _turned(x: jax.Array) -> jax.Array:
    """The transpose, written out.

    The barrier keeps the compiler from turning the product round again. It holds the elements in one row, because a
    transpose may also be read as another layout of the same elements, on which the CPU's small batched products abort.
    """
    turned = jnp.swapaxes(lax.optimization_barrier(x), -1, -2)
    return lax.optimization_barrier(turned.reshape(-1)).reshape(turned.shape)


@functools.partial(jax.jit, static_argnames=("layout", "precision"))
def _evaluate(a: jax.Array, b: jax.Array, *, layout: Layout, precision: Any) -> jax.Array:
    return contract_p.bind(a, b, layout=layout, precision=precision)


contract_p.def_impl(_evaluate)
contract_p.def_abstract_eval(_abstract)
bilinear.differentiate(contract_p, "nn", "nt", "tn")
batching.primitive_batchers[contract_p] = _batched
mlir.register_lowering(contract_p, mlir.lower_fun(_dot, multiple_results=False))
mlir.register_lowering(contract_p, mlir.lower_fun(_on_cpu, multiple_results=False), platform="cpu")
