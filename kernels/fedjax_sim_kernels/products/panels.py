"""Products of few rows with weights that a loop meets at every time, for CPUs.

The CPU's library of products seems to copy the weights into panels of ``WIDTH`` features before it multiplies, which for
the few rows of a client's batch takes as long as the product itself. Where the weights are the same at all times of a loop they
are laid out so once, before it. What says that to XLA is a sum, written out: XLA makes a product of it, and the library
takes a panel as it lies. The measurements are in ``docs/decisions/0015-products.md``.
"""

from __future__ import annotations

import functools
import math
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
"""Features in a panel: the fastest of 8, 16 and 32 where a register holds eight numbers."""

SMALLEST = 2**16
"""Elements of weights from which on panels were no slower, with 4 rows."""

FEWEST = 16
"""Products from which on what they gain is more than what laying the weights out takes."""

MOST_ROWS = 64
"""Rows up to which panels gain something: with 128 they do not."""


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
    return laid_out(weights, 1) if _gains(weights, 1, rows, times) else weights


def turned(weights: jax.Array, rows: int, times: int) -> jax.Array:
    """Weights for ``product_of_turned``; arguments as those of ``panels``.

    Returns:
      ``[depth / WIDTH, features, WIDTH]``, or the transposed weights.
    """
    return laid_out(weights, 0) if _gains(weights, 0, rows, times) else weights.T


def laid_out(weights: jax.Array, axis: int) -> jax.Array:
    """The axis in panels: ``[depth, features]`` as ``[features / WIDTH, depth, WIDTH]``, or ``[depth / WIDTH, features, WIDTH]``."""
    shape = list(weights.shape)
    shape[axis : axis + 1] = [shape[axis] // WIDTH, WIDTH]
    return _written(jnp.moveaxis(_written(weights).reshape(shape), (axis, axis + 1), (0, 2)))


def product(rows: jax.Array, weights: jax.Array, *, precision: Any = None) -> jax.Array:
    """``rows @ weights``.

    Args:
      rows: ``[..., depth]``: all axes but the last are rows.
      weights: as ``panels`` returns them.
      precision: as in ``lax.dot_general``.

    Returns:
      ``[..., features]``.
    """
    flat = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
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

    Returns:
      ``[..., features]``.
    """
    flat = rows.reshape(math.prod(rows.shape[:-1]), rows.shape[-1])
    if weights.ndim == 2:
        out = lax.dot_general(flat, weights, (((1,), (1,)), ((), ())), precision)
    else:
        out = panels_p.bind(flat, weights, layout="turned", precision=precision)
    return out.reshape(*rows.shape[:-1], out.shape[-1])


def _gains(weights: jax.Array, axis: int, rows: int, times: int) -> bool:
    """Whether products with ``[depth, features]`` are faster with this axis in panels."""
    large = weights.size >= SMALLEST and weights.shape[axis] % WIDTH == 0
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


def _computed(a: jax.Array, b: jax.Array, *, layout: Layout, precision: Any) -> jax.Array:
    if layout == "product":
        return _sum(a, b)
    if layout == "turned":
        split = a.reshape(*a.shape[:-1], a.shape[-1] // WIDTH, WIDTH)
        return jnp.einsum("...rjt,...jdt->...rd", split, b, precision=precision)
    found = jnp.einsum("...rd,...rf->...df", a, b, precision=precision)
    return jnp.swapaxes(found.reshape(*found.shape[:-1], found.shape[-1] // WIDTH, WIDTH), -3, -2)


def _sum(rows: jax.Array, panels: jax.Array) -> jax.Array:
    """The product, ``[..., rows, depth]`` with ``[..., panels, depth, WIDTH]``, float32 as it is.

    Barriers keep the compiler from making loops of it: from spreading rows that meet several weights out once for all of them, and
    from adding up in the same pass what is a sum over results, such as a mean.
    """
    rows, panels = lax.optimization_barrier((rows, panels))
    found = lax.optimization_barrier(jnp.sum(rows[..., None, :, None] * panels[..., None, :, :, :], -2))
    return found.reshape(*found.shape[:-2], panels.shape[-3] * WIDTH)


def _abstract(a: Any, b: Any, *, layout: Layout, precision: Any) -> ShapedArray:
    if a.dtype != b.dtype:
        raise TypeError(
            f"a product of {a.dtype} and {b.dtype} in panels, expected one dtype: convert either."
        )
    shape = jax.eval_shape(functools.partial(_computed, layout=layout, precision=precision), a, b).shape
    return ShapedArray(shape, a.dtype)


def _batched(operands: Any, axes: Any, *, layout: Layout, precision: Any):
    a, b = operands
    of_a, of_b = axes
    bind = functools.partial(panels_p.bind, layout=layout, precision=precision)
    if of_b is None and layout != "gradient":
        # Panels that all share: one product over everybody's rows.
        a = jnp.moveaxis(a, of_a, -3)
        out = bind(a.reshape(*a.shape[:-3], a.shape[-3] * a.shape[-2], a.shape[-1]), b)
        return out.reshape(*a.shape[:-1], out.shape[-1]), a.ndim - 3
    size = a.shape[of_a] if of_a is not None else b.shape[of_b]
    a, b = (
        jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        for x, axis in ((a, of_a), (b, of_b))
    )
    return bind(a, b), 0


@functools.cache
def _makes_products() -> bool:
    """Whether XLA makes products of such sums, of rows that meet two weights, too: as loops they take ten times as long."""
    rows, weights = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 256), (16, 256, WIDTH)))
    program = (
        jax.jit(lambda a, b, c: (_sum(a, b), jnp.mean(_sum(a, c), -1)))
        .lower(rows, weights, weights)
        .compile()
    )
    spread = rows.dtype.itemsize * rows.size * weights.shape[0] * WIDTH
    memory, text = program.memory_analysis(), program.as_text() or ""
    kept = memory is not None and memory.temp_size_in_bytes < spread
    return (
        kept and text.count("kind=kCustom") >= 2 and text.count(" f32[4,16,256,16]{3,2,1,0} multiply(") == 2
    )


@functools.partial(jax.jit, static_argnames=("layout", "precision"))
def _evaluate(a: jax.Array, b: jax.Array, *, layout: Layout, precision: Any) -> jax.Array:
    return panels_p.bind(a, b, layout=layout, precision=precision)


panels_p.def_impl(_evaluate)
panels_p.def_abstract_eval(_abstract)
bilinear.differentiate(panels_p, "product", "turned", "gradient")
batching.primitive_batchers[panels_p] = _batched
mlir.register_lowering(panels_p, mlir.lower_fun(_computed, multiple_results=False))
