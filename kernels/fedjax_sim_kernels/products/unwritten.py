"""Products of few terms that are not written out while nothing but scaling, selecting and summing is done with them.

What a client learned of a dense layer in a few steps is a product ``left^T @ right`` of some fifty rows. Written out for every client, it
is moved through memory three times on its way into the sum over clients: when it is written, for its norm, and by the sum. Its norm also
follows from the Gram matrices of the factors, a number scales one of them, and the sum over clients is one product over everybody's rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import ClosedJaxpr

from fedjax_sim_kernels import backends
from fedjax_sim_kernels.walk import bound, evaluate

PARTS = 8
"""A Gram matrix is the sum of so many: of few rows, one product has too few results to keep a GPU busy."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["left", "right", "kept"], meta_fields=["precision"]
)
@dataclasses.dataclass(frozen=True)
class OuterSum:
    """``left^T @ right``, not written out, or zero. A pytree, so that ``vmap`` may return it.

    Attributes:
      left: ``f32[..., rank, depth]``.
      right: ``f32[..., rank, features]``.
      kept: ``bool[...]``; where it is False it is zero, whatever the factors hold.
      precision: of the product.
    """

    left: jax.Array
    right: jax.Array
    kept: jax.Array
    precision: Any = None

    def written(self) -> jax.Array:
        """``f32[depth, features]``, of one of them."""
        product = lax.dot_general(self.left, self.right, (((0,), (0,)), ((), ())), self.precision)
        return jnp.where(self.kept, product, 0)

    def times(self, factor: Any) -> OuterSum:
        """That many times itself; the factor is a finite number."""
        return dataclasses.replace(self, right=self.right * factor)

    def where(self, condition: Any) -> OuterSum:
        """Itself or zero; the condition has the axes in front of the last two."""
        return dataclasses.replace(self, kept=self.kept & condition)

    def squared_norm(self) -> jax.Array:
        """The sum of squares of one of them, ``f32[]``: of the products of the factors' Gram matrices, in full float32.

        Where the terms all but cancel, it is less exact than that of the written product. It is no finite number where a factor has
        an element that is none.
        """
        # Rounding must not make a negative number of it. NaN stays what it is.
        squares = jnp.maximum(jnp.sum(_gram(self.left) * _gram(self.right)), 0)
        return jnp.where(self.kept, squares, 0)

    def total(self, finite: jax.Array) -> jax.Array:
        """The sum over the axis in front, ``f32[depth, features]``: one product over everybody's rows.

        Args:
          finite: ``bool[...]``, False at least where a factor has an element that is no finite number.
        """

        def product(left: jax.Array, right: jax.Array) -> jax.Array:
            return lax.dot_general(left, right, (((0, 1), (0, 1)), ((), ())), self.precision)

        def zeroed(x: jax.Array) -> jax.Array:
            return jnp.where(self.kept[:, None, None], x, 0)

        right = zeroed(self.right)
        # Zero times infinity is not zero. The wide factor is written anew only where that might matter.
        return lax.cond(
            jnp.all(finite),
            lambda left: product(left, right),
            lambda left: product(zeroed(left), right),
            self.left,
        )


def _gram(rows: jax.Array) -> jax.Array:
    rank, size = rows.shape
    if size % PARTS == 0 and size >= 64 * PARTS:
        parts = rows.reshape(rank, PARTS, -1)
        return jnp.einsum("ipk,jpk->pij", parts, parts, precision=_exact()).sum(axis=0)
    return jnp.einsum("ik,jk->ij", rows, rows, precision=_exact())


def _exact() -> Any:
    """Products of float32 that are exact to its rounding; on an NVIDIA GPU three on tensor cores are faster than one beside them."""
    return (
        lax.DotAlgorithmPreset.TF32_TF32_F32_X3 if backends.current() == "nvidia" else lax.Precision.HIGHEST
    )


def unwritten(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, of which results that are a product of few terms come as ``OuterSum``.

    The function is traced and evaluated operation by operation. A product over the first axes of two matrices that is larger than
    both is kept as it is while it is multiplied with numbers, replaced by zero or not, and while its squares are summed up;
    anything else that is done with it writes it out.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim_kernels.products import OuterSum, unwritten
    >>> def update(x, y, weight):
    ...     product = jax.lax.dot_general(x, y, (((0,), (0,)), ((), ())))
    ...     return weight * product, jnp.sum(product ** 2)
    >>> scaled, squares = unwritten(update)(jnp.ones((2, 30)), jnp.ones((2, 40)), 0.5)
    >>> isinstance(scaled, OuterSum), scaled.written().shape, float(squares)
    (True, (30, 40), 4800.0)
    """

    @functools.wraps(function)
    def run(*arguments: Any) -> Any:
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments)
        found = evaluate(traced, jax.tree.leaves(arguments), _results)
        kept = [x if isinstance(x, OuterSum) else _written(x) for x in found]
        return jax.tree.unflatten(jax.tree.structure(shape), kept)

    return run


def written(values: Any) -> Any:
    """A pytree with every ``OuterSum`` in it written out."""
    return jax.tree.map(_written, values, is_leaf=lambda x: isinstance(x, OuterSum))


# --- walking through the program -----------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Spread:
    """One number everywhere in an array."""

    value: Any
    shape: tuple[int, ...]

    def written(self) -> jax.Array:
        return jnp.broadcast_to(jnp.reshape(self.value, ()), self.shape)


@dataclasses.dataclass(frozen=True)
class _Squares:
    """The squares of a product's elements."""

    of: OuterSum

    def written(self) -> jax.Array:
        return jnp.square(self.of.written())


def _written(value: Any) -> Any:
    return value.written() if isinstance(value, (OuterSum, _Spread, _Squares)) else value


def _results(equation: Any, operands: list[Any]) -> Sequence[Any]:
    name, settings = equation.primitive.name, equation.params
    if name in ("jit", "pjit"):
        inside: ClosedJaxpr = settings["jaxpr"]
        return evaluate(inside, operands, _results)
    rule = _RULES.get(name)
    found = None if rule is None else rule(*operands, **settings)
    return bound(equation, [_written(x) for x in operands]) if found is None else [found]


def _dot(left: Any, right: Any, *, dimension_numbers, precision, preferred_element_type, **_: Any) -> Any:
    left, right = _written(left), _written(right)
    fits = left.ndim == right.ndim == 2 and dimension_numbers == (((0,), (0,)), ((), ()))
    wide = left.dtype == right.dtype == jnp.float32 and preferred_element_type in (None, jnp.float32)
    if not (fits and wide):
        return None
    (rank, depth), features = left.shape, right.shape[1]
    if rank * (depth + features) >= depth * features:
        return None
    return OuterSum(left, right, jnp.ones((), bool), precision)


def _number(value: Any) -> Any:
    """The one number that a value is everywhere, or ``None``."""
    if isinstance(value, _Spread):
        return jnp.reshape(value.value, ())
    return value if not isinstance(value, (OuterSum, _Squares)) and np.ndim(value) == 0 else None


def _mul(left: Any, right: Any, **_: Any) -> Any:
    if left is right and isinstance(left, OuterSum):
        return _Squares(left)
    for product, factor in ((left, right), (right, left)):
        if isinstance(product, OuterSum) and _number(factor) is not None:
            return product.times(_number(factor))
    return None


def _square(value: Any, **settings: Any) -> Any:
    return _Squares(value) if isinstance(value, OuterSum) and settings.get("y", 2) == 2 else None


def _reduce_sum(value: Any, *, axes: tuple[int, ...], **_: Any) -> Any:
    return value.of.squared_norm() if isinstance(value, _Squares) and len(axes) == 2 else None


def _broadcast(value: Any, *dynamic: Any, shape: tuple[int, ...], **_: Any) -> Any:
    value = _written(value)
    one = np.size(value) == 1 < math.prod(shape) and jnp.result_type(value) in (jnp.float32, jnp.bool_)
    return _Spread(value, shape) if one and not dynamic else None


def _convert(value: Any, *, new_dtype: Any, **_: Any) -> Any:
    # A constant stays one, so that a zero is known to be zero.
    return np.asarray(value, new_dtype) if isinstance(value, (np.generic, np.ndarray, float, int)) else None


def _select(which: Any, *cases: Any) -> Any:
    """One product or zero."""
    condition = _number(which)
    if condition is None or len(cases) != 2 or condition.dtype != jnp.bool_:
        return None
    for place, (product, other) in enumerate((cases, cases[::-1])):
        if isinstance(product, OuterSum) and _is_zero(other):
            return product.where(condition if place else ~condition)
    return None


def _is_zero(value: Any) -> bool:
    return (
        isinstance(value, _Spread)
        and isinstance(value.value, (np.generic, np.ndarray))
        and not np.any(value.value)
    )


_RULES: dict[str, Callable[..., Any]] = {
    "dot_general": _dot, "mul": _mul, "square": _square, "integer_pow": _square, "reduce_sum": _reduce_sum,
    "broadcast_in_dim": _broadcast, "convert_element_type": _convert, "select_n": _select,
}  # fmt: skip
"""By name of the primitive: the result where a product need not be written out, else ``None``."""
