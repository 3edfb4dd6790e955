"""Loops over time with what their gradient can know beforehand taken out, for CPUs.

A recurrence that is written with ``scan`` (flax's ``nn.RNN`` and ``nnx.RNN`` are) multiplies with the same weights at every time.
Its derivative adds ``rows_t^T @ cotangents_t`` to an accumulator of the size of the weights each time, and meets the weights the wrong way
round. Here the rows of all times are kept, as that derivative keeps them, and are one product with the cotangents of all times;
the weights are laid out once for either direction; and what is multiplied but not part of the recurrence is one product before the loop. ``lstm`` does the same by hand and
more. Forward mode keeps working.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.extend.core import Jaxpr, Literal, Var

from fedjax_sim_kernels.products import panels
from fedjax_sim_kernels.walk import bound

Instead = Callable[[Any, list[Any]], Sequence[Any] | None]
"""What an equation of the body becomes, ``None`` where it stays."""


class Loop(NamedTuple):
    """A ``scan``.

    Attributes:
      body: its program.
      evaluate: the body's results, of its operands and ``Instead``.
      places: among the body's operands, those of what is the same at all times, of what is carried and of what is given for each time.
      results: among the body's results, those of what is carried and of what is left for each time.
      length: times.
      reverse: from the last time to the first.
      unroll: as ``lax.scan`` has it.
    """

    body: Jaxpr
    evaluate: Callable[[list[Any], Instead], list[Any]]
    places: tuple[list[int], list[int], list[int]]
    results: tuple[list[int], list[int]]
    length: int
    reverse: bool
    unroll: Any


class Products(NamedTuple):
    """Products of a body with weights that are the same at all times, by their place among its equations.

    Attributes:
      weights: the variable of each.
      before: equations that make weights of what the loop is given.
      early: those whose rows are given for each time: the operand of the body that they are.
      late: those whose rows depend on what is carried, together where rows and precision are the same.
    """

    weights: dict[int, Any]
    before: list[Any]
    early: dict[int, int]
    late: dict[tuple[Any, Any], list[int]]


def products(loop: Loop) -> Products | None:
    """Those that can be taken apart, ``None`` where there is no recurrence, or nothing to gain from it.

    Where no product depends on what is carried, somebody may have written a loop to hold one piece at a time in memory.
    """
    if loop.body.effects or loop.length < 2:
        return None
    same: set[Any] = {loop.body.invars[place] for place in loop.places[0]} | set(loop.body.constvars)
    given = {loop.body.invars[place]: place for place in loop.places[2]}
    ahead = same | set(given)
    maker: dict[Any, int] = {}
    found = Products({}, [], {}, {})
    for place, equation in enumerate(loop.body.eqns):
        variables = {v for v in equation.invars if isinstance(v, Var)}
        ahead |= set(equation.outvars) if variables <= ahead else set()
        if variables <= same:
            same |= set(equation.outvars)
            maker |= dict.fromkeys(equation.outvars, place)
        elif _is_product(equation) and equation.invars[1] in same:
            rows, weights = equation.invars
            if rows in given:
                found.early[place] = given[rows]
            elif rows not in ahead:
                found.late.setdefault((rows, equation.params["precision"]), []).append(place)
            else:
                continue
            found.weights[place] = weights
    wanted, needed = list(found.weights.values()), set()
    while wanted:
        place = maker.get(wanted.pop())
        if place is not None and place not in needed:
            needed.add(place)
            wanted += [v for v in loop.body.eqns[place].invars if isinstance(v, Var)]
    return found._replace(before=[loop.body.eqns[place] for place in sorted(needed)]) if found.late else None


def _is_product(equation: Any) -> bool:
    """Of rows and weights, as a dense layer has them, all of one type."""
    if equation.primitive.name != "dot_general" or any(isinstance(v, Literal) for v in equation.invars):
        return False
    rows, weights = (v.aval for v in equation.invars)
    plain = equation.params["dimension_numbers"] == (((rows.ndim - 1,), (0,)), ((), ()))
    types = {rows.dtype, weights.dtype, equation.outvars[0].aval.dtype}
    floating = len(types) == 1 and jnp.issubdtype(rows.dtype, jnp.floating)
    return plain and rows.ndim > 1 and weights.ndim == 2 and floating


def scan(loop: Loop, taken: Products, operands: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """What the loop carries out and what it leaves for each time.

    Args:
      loop: the loop.
      taken: as ``products`` says.
      operands: of the loop.

    Rows that meet several weights, as a cell's gates do, meet all of them at once. In the derivative the weights are constants, and
    at each late product there is an addend of zero. What the weights' tangent adds there is one product of it with the rows of all
    times; its transpose, the gradient, is one of those rows with the addends' cotangents.
    """
    constants, carried, given = ([operands[place] for place in places] for places in loop.places)
    equations = loop.body.eqns
    known = dict(zip((loop.body.invars[place] for place in loop.places[0]), constants, strict=True))
    for equation in taken.before:
        values = [v.val if isinstance(v, Literal) else known[v] for v in equation.invars]
        known.update(zip(equation.outvars, bound(equation, values), strict=True))
    weights = {place: known[v] for place, v in taken.weights.items()}
    early = {
        place: panels.product(
            operands[rows], weights[place], precision=_said(equations[place].params["precision"])
        )
        for place, rows in taken.early.items()
    }
    place_of = {id(equation): place for place, equation in enumerate(equations)}
    late = [
        _Late(rows.aval.shape, _said(precision), places) for (rows, precision), places in taken.late.items()
    ]
    of_late = {place: number for number, part in enumerate(late) for place in part.places}

    def run(parts: _Parts, through: Callable[[int, jax.Array, Any], jax.Array], addends: Any, keep: bool):
        def body(carry: list[Any], at: Any):
            xs, before, added = at
            rows: dict[int, jax.Array] = {}
            made: dict[int, jax.Array] = {}

            def instead(equation: Any, values: list[Any]) -> Sequence[Any] | None:
                place = place_of[id(equation)]
                if place in before:
                    return [before[place]]
                if place not in of_late:
                    return None
                if place not in made:
                    number = of_late[place]
                    rows[number] = values[0]
                    product = through(number, values[0], added.get(number))
                    widths = [weights[each].shape[1] for each in late[number].places]
                    cuts = list(itertools.accumulate(widths[:-1]))
                    made.update(zip(late[number].places, jnp.split(product, cuts, axis=-1), strict=True))
                return [made[place]]

            values = dict(zip(loop.places[0], parts.constants, strict=True))
            values |= dict(zip(loop.places[1], carry, strict=True)) | dict(
                zip(loop.places[2], xs, strict=True)
            )
            results = loop.evaluate([values[place] for place in sorted(values)], instead)
            to_carry, to_ys = ([results[place] for place in places] for places in loop.results)
            return to_carry, (to_ys, rows if keep else None)

        xs = (parts.given, parts.early, addends)
        return lax.scan(body, parts.carried, xs, length=loop.length, reverse=loop.reverse, unroll=loop.unroll)

    def laid_out(weights: list[jax.Array], lay: Callable[..., jax.Array]) -> list[jax.Array]:
        return [
            lay(leaf, rows=math.prod(part.shape[:-1]), times=loop.length)
            for leaf, part in zip(weights, late, strict=True)
        ]

    @jax.custom_jvp
    def whole(parts: _Parts, weights: list[jax.Array]):
        laid = laid_out(weights, panels.panels)
        plain = lambda number, rows, _: panels.product(rows, laid[number], precision=late[number].precision)  # noqa: E731
        carry, (ys, _) = run(parts, plain, {}, keep=False)
        return carry, ys

    def derivative(primals: Any, tangents: Any):
        parts, weights = primals
        leaves, structure = jax.tree.flatten(parts)
        moved = dict(enumerate(jax.tree.leaves(tangents[0])))
        moved = {place: t for place, t in moved.items() if not isinstance(t, SymbolicZero)}
        shifts = {number: t for number, t in enumerate(tangents[1]) if not isinstance(t, SymbolicZero)}
        laid, turned = laid_out(weights, panels.panels), laid_out(weights, panels.turned)

        def of(varied: dict[int, Any], addends: dict[int, jax.Array]):
            def through(number: int, rows: jax.Array, added: Any) -> jax.Array:
                return _through(rows, laid[number], turned[number], added, late[number].precision)

            at = jax.tree.unflatten(structure, [varied.get(place, leaf) for place, leaf in enumerate(leaves)])
            carry, (ys, rows) = run(at, through, addends, keep=True)
            return (carry, ys), rows

        zeros = {
            number: jnp.zeros((loop.length, *late[number].shape[:-1], t.shape[1]), t.dtype)
            for number, t in shifts.items()
        }
        varied = {place: leaves[place] for place in moved}
        results, linear, rows = jax.linearize(of, varied, zeros, has_aux=True)
        addends = {
            number: panels.product(rows[number], t, precision=late[number].precision)
            for number, t in shifts.items()
        }
        return results, linear(moved, addends)

    whole.defjvp(derivative, symbolic_zeros=True)
    joined = [jnp.concatenate([weights[place] for place in part.places], axis=1) for part in late]
    return whole(_Parts(constants, carried, given, early), joined)


class _Late(NamedTuple):
    """Products of the same rows: their shape, the precision, and their places."""

    shape: tuple[int, ...]
    precision: Any
    places: list[int]


class _Parts(NamedTuple):
    constants: list[Any]
    carried: list[Any]
    given: list[Any]
    early: dict[int, jax.Array]


def _said(precision: Any) -> Any:
    """As an equation has it: nothing is the default, and not what is in force by now."""
    return precision or lax.Precision.DEFAULT


def _through(rows: jax.Array, weights: jax.Array, turned: jax.Array, added: jax.Array | None, precision: Any):
    """``rows @ weights + added``, where ``added`` is zero: it is there for its tangent. The weights are none of the variables."""

    @jax.custom_jvp
    def value(rows: jax.Array, weights: jax.Array, turned: jax.Array, added: jax.Array | None):
        return panels.product(rows, weights, precision=precision)

    def derivative(primals: Any, tangents: Any):
        by_rows, _, _, shift = tangents
        out = value(*primals)
        total = jnp.zeros_like(out)
        if not isinstance(by_rows, SymbolicZero):
            total = panels.product_of_turned(by_rows, primals[2], precision=precision)
        if shift is not None and not isinstance(shift, SymbolicZero):
            total = total + shift
        return out, total

    value.defjvp(derivative, symbolic_zeros=True)
    return value(rows, weights, turned, added)
