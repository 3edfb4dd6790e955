"""Primitives that are products in three layouts, closed under differentiation."""

from __future__ import annotations

from typing import Any

from jax.extend.core import Primitive
from jax.interpreters import ad


def differentiate(primitive: Primitive, forth: str, to_left: str, to_right: str) -> None:
    """Gives a primitive its derivatives, in reverse and in forward mode, of any order.

    The primitive takes two arrays and a setting ``layout``. With ``forth`` it computes ``c`` from ``a`` and ``b``; with
    ``to_left`` the cotangent of ``a`` from those of ``c`` and ``b``, with ``to_right`` that of ``b`` from ``a`` and ``c``. Each of
    the three is bilinear, and its derivatives are the other two.
    """

    def of_left(cotangent: Any, a: Any, b: Any, *, layout: str, **settings: Any):
        if layout == to_right:
            return primitive.bind(b, cotangent, layout=to_left, **settings)
        return primitive.bind(cotangent, b, layout=to_left if layout == forth else forth, **settings)

    def of_right(cotangent: Any, a: Any, b: Any, *, layout: str, **settings: Any):
        if layout == to_left:
            return primitive.bind(cotangent, a, layout=to_right, **settings)
        return primitive.bind(a, cotangent, layout=to_right if layout == forth else forth, **settings)

    ad.defbilinear(primitive, of_left, of_right)
