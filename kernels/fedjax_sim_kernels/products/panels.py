"""Products of few rows with weights that a loop meets at every time, for CPUs.

The CPU's library of products seems to copy the weights into panels of ``WIDTH`` features before it multiplies, which for
the few rows of a client's batch takes as long as the product itself. Where the weights are the same at all times of a loop they
are laid out so once, before it. What says that to XLA is a sum, written out: XLA makes a product of it, and the library
takes a panel as it lies. The measurements are in ``docs/decisions/0015-products.md``.
"""

from __future__ import annotations

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from fedjax_sim_kernels import backends, bilinear
from fedjax_sim_kernels.products import contract

Layout = Literal["product", "turned", "gradient"]
"""Of rows and panels the results, of results and panels the rows, of rows and results the panels."""

WIDTH = 16
"""Features in a panel, as the library lays them out itself where a register holds eight numbers."""

SMALLEST = 2**16
"""Elements of weights from which on their copy takes longer than what every product takes at its start."""

FEWEST = 16
"""Products from which on it pays to lay the weights out."""

MOST_ROWS = 64
"""Rows up to which it does: of more, the copy is a small part of a product."""


def panels(weights: jax.Array, rows: int, times: int) -> jax.Array:
    """Weights for ``product``, laid out where that gains something.

    Args:
      weights: ``[depth, features]``.
      rows: of each product.
      times: products.

    Returns:
      ``[features / WIDTH, depth, WIDTH]``, or the weights as they are.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim_kernels.products.panels import panels
    >>> panels(jnp.ones((60, 10)), rows=4, times=80).shape
    (60, 10)
    """
    return laid_out(weights) if _gains(weights, weights.shape[1], rows, times) else weights


def turned(weights: jax.Array, rows: int, times: int) -> jax.Array:
    """Weights for ``product_of_turned``; arguments as those of ``panels``.

    Returns:
      ``[depth / WIDTH, features, WIDTH]``, or the transposed weights.
    """
    if not _gains(weights, weights.shape[0], rows, times):
        return weights.T
    depth, features = weights.shape
    return _written(jnp.swapaxes(_written(weights).reshape(depth // WIDTH, WIDTH, features), 1, 2))


def laid_out(weights: jax.Array) -> jax.Array:
    """``[depth, features]`` as ``[features / WIDTH, depth, WIDTH]``."""
    depth, features = weights.shape
    return _written(jnp.swapaxes(_written(weights).reshape(depth, features // WIDTH, WIDTH), 0, 1))


def product(rows: jax.Array, weights: jax.Array, *, precision: Any = None) -> jax.Array:
    """``rows @ weights``.

    Args:
      rows: ``[..., depth]``: all axes but the last are rows.
      weights: as ``panels`` returns them.
      precision: as in ``lax.dot_general``.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    if weights.ndim == 2:
        out = contract.product(flat, weights, precision=precision)
    else:
        out = panels_p.bind(flat, weights, layout="product", precision=precision)
    return out.reshape(*rows.shape[:-1], out.shape[-1])


def product_of_turned(rows: jax.Array, weights: jax.Array, *, precision: Any = None) -> jax.Array:
    """``rows @ weights``, of which it is the transpose, cotangents times transposed weights, that is fast.

    Args:
      rows: ``[..., depth]``: all axes but the last are rows.
      weights: as ``turned`` returns them.
      precision: as in ``lax.dot_general``.
    """
    flat = rows.reshape(-1, rows.shape[-1])
    if weights.ndim == 2:
        out = lax.dot_general(flat, weights, (((1,), (1,)), ((), ())), precision)
    else:
        out = panels_p.bind(flat, weights, layout="turned", precision=precision)
    return out.reshape(*rows.shape[:-1], out.shape[-1])


def _gains(weights: jax.Array, features: int, rows: int, times: int) -> bool:
    large = weights.size >= SMALLEST and features % WIDTH == 0
    # Of one row the compiler makes a loop.
    few = 1 < rows <= MOST_ROWS and times >= FEWEST
    # The primitive keeps no account of devices.
    plain = weights.dtype == jnp.float32 and not backends.varies(weights)
    return large and few and plain and backends.current() == "cpu" and _makes_products()


def _written(x: jax.Array) -> jax.Array:
    """Elements in this order: by itself the compiler copies twice, and strides where it need not."""
    return lax.optimization_barrier(x.reshape(-1)).reshape(x.shape)


panels_p = Primitive("panels")
"""The three products of rows, panels and results; axes before the two or three of each are a batch that both operands have."""


def _sum(a: jax.Array, b: jax.Array, *, layout: Layout, precision: Any = None) -> jax.Array:
    del precision  # there is one for float32 on CPUs
    # Rows that meet several weights would be spread out once for all of them, and written to memory.
    a, b = lax.optimization_barrier((a, b))
    if layout == "product":
        found = jnp.sum(a[..., None, :, None] * b[..., None, :, :, :], -2)
        return found.reshape(*found.shape[:-2], b.shape[-3] * WIDTH)
    if layout == "turned":
        return jnp.sum(_split(a) * b[..., None, :, :, :], (-3, -1))
    return jnp.sum(a[..., None, :, None] * _split(b), -4)


def _split(x: jax.Array) -> jax.Array:
    """``[..., rows, features]`` as ``[..., rows, features / WIDTH, 1, WIDTH]``."""
    return x.reshape(*x.shape[:-1], x.shape[-1] // WIDTH, 1, WIDTH)


def _abstract(a: Any, b: Any, *, layout: Layout, precision: Any) -> ShapedArray:
    shape = jax.eval_shape(functools.partial(_sum, layout=layout), a, b).shape
    return ShapedArray(shape, a.dtype)


def _batched(operands: Any, axes: Any, **settings: Any):
    if None in axes:
        return jax.vmap(functools.partial(_sum, **settings), in_axes=axes)(*operands), 0
    a, b = (jnp.moveaxis(operand, axis, 0) for operand, axis in zip(operands, axes, strict=True))
    return panels_p.bind(a, b, **settings), 0


@functools.cache
def _makes_products() -> bool:
    """Whether XLA makes products of such sums, of rows that meet two weights, too: as loops they take ten times as long."""
    rows, weights = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 256), (16, 256, WIDTH)))
    both = jax.jit(lambda a, b, c: (_sum(a, b, layout="product"), _sum(a, c, layout="product")))
    program = both.lower(rows, weights, weights).compile()
    spread = rows.dtype.itemsize * rows.size * weights.shape[0] * WIDTH
    memory = program.memory_analysis()
    kept = memory is not None and memory.temp_size_in_bytes < spread
    return kept and (program.as_text() or "").count("kind=kCustom") == 2


@functools.partial(jax.jit, static_argnames=("layout", "precision"))
def _evaluate(a: jax.Array, b: jax.Array, *, layout: Layout, precision: Any) -> jax.Array:
    return panels_p.bind(a, b, layout=layout, precision=precision)


panels_p.def_impl(_evaluate)
panels_p.def_abstract_eval(_abstract)
bilinear.differentiate(panels_p, "product", "turned", "gradient")
batching.primitive_batchers[panels_p] = _batched
mlir.register_lowering(panels_p, mlir.lower_fun(_sum, multiple_results=False))
