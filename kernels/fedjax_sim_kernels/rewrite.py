"""Rewrites a traced function so that it stays fast under ``vmap`` over its weights and inside compiled loops.

The function is traced to a jaxpr and evaluated again, operation by operation, with the ones that have faster forms
replaced. Control flow is entered; the rest is bound as it was, custom derivatives included. It must come before
differentiation: the gradients are then those of the faster forms.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, Jaxpr, jaxprs_in_params

from fedjax_sim_kernels import backends, chains, conv, pooling, recurrences, threefry
from fedjax_sim_kernels.products import Outer, product
from fedjax_sim_kernels.walk import bound, evaluate

Function = TypeVar("Function", bound=Callable[..., Any])


def client_batched(function: Function) -> Function:
    """The same function with convolutions and pooling in forms that stay fast when every client has its own weights.

    ``vmap`` over per-client weights turns a convolution into a grouped one, and on CPU a convolution or a pooling
    inside a compiled loop runs on naive paths. A bias and a ReLU in front of a pooling that takes the largest come behind it,
    and on NVIDIA GPUs into the convolution otherwise. On CPU a recurrence, which is a ``scan``, has the gradient of its weights
    behind the loop. Values and derivatives are those of the function, to rounding; of values that rounding makes equal, another one
    may have a pooling's gradient.

    Args:
      function: of pytrees of arrays; what is static is bound before. Any traced code: flax modules, linen or nnx, too.
        An argument may hold an ``Outer`` in place of the weights of a dense layer.

    Warns:
      RuntimeWarning: an operation has no faster form and stays as it is; once for each reason.

    >>> import jax, jax.numpy as jnp
    >>> from flax import linen as nn
    >>> from fedjax_sim_kernels import client_batched
    >>> model = nn.Conv(features=4, kernel_size=(3, 3))
    >>> x = jnp.ones((2, 8, 8, 3))
    >>> variables = model.init(jax.random.key(0), x)
    >>> text = str(jax.make_jaxpr(client_batched(model.apply))(variables, x))
    >>> "conv_general_dilated" in text, "contract" in text
    (False, True)
    """

    @functools.wraps(function)
    def batched(*args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        factored = any(isinstance(leaf, Outer) for leaf in leaves)
        if _UNTOUCHED.value and not factored:
            return function(*args, **kwargs)
        arrays = [leaf.base if isinstance(leaf, Outer) else leaf for leaf in leaves]
        plain, named = jax.tree.unflatten(structure, arrays)
        traced, shape = jax.make_jaxpr(function, return_shape=True)(*plain, **named)
        if not factored and not _concerns(traced.jaxpr, REPLACED):
            return function(*args, **kwargs)
        results = _evaluate(traced, leaves)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return batched  # type: ignore[return-value]


_UNTOUCHED = jax.make_user_context(False)
"""Part of the key under which JAX keeps traces: a jitted function is traced once inside ``as_written`` and once outside."""


def as_written() -> AbstractContextManager[Any]:
    """Inside, ``client_batched`` leaves functions as they are: to count what a model asks for, not how it is done."""
    return _UNTOUCHED(True)


# --- what is replaced ----------------------------------------------------------------------------------------


def _conv(lhs: jax.Array, rhs: jax.Array, **settings: Any) -> jax.Array | None:
    spec = conv.ConvSpec.of(settings)
    form, reason = conv.choose(lhs, rhs, spec)
    if form == "reference":
        _stays(f"a convolution with {reason}")
        return None
    return conv.conv(lhs, rhs, spec, form)


def _pool(kind: pooling.Kind) -> Callable[..., jax.Array | None]:
    def replace(x: jax.Array, **settings: Any) -> jax.Array | None:
        spec = pooling.PoolSpec(
            kind,
            settings["window_dimensions"],
            settings["window_strides"],
            tuple(settings["padding"]),
            settings["base_dilation"],
            settings["window_dilation"],
        )
        form, reason = pooling.choose(x, spec)
        if form == "reference":
            _stays(f"a pooling with {reason}")
            return None
        return pooling.pool(x, spec, form)

    return replace


def _dot(lhs: jax.Array, rhs: jax.Array, **settings: Any) -> jax.Array | None:
    """A dense layer's product; others stay, for nothing is slow about them."""
    (left, right), batch = settings["dimension_numbers"]
    plain = lhs.ndim > 1 and rhs.ndim == 2 and (left, right) == ((lhs.ndim - 1,), (0,)) and batch == ((), ())
    if not plain or jax.default_backend() != "cpu":
        return None
    rows = lax.reshape(lhs, (math.prod(lhs.shape[:-1]), lhs.shape[-1]))
    precision = settings["precision"] or lax.Precision.DEFAULT  # None was settled when the model was traced
    result = product(
        rows, rhs, precision=precision, preferred_element_type=settings["preferred_element_type"]
    )
    return lax.reshape(result, (*lhs.shape[:-1], rhs.shape[1]))


def _random_bits(key: jax.Array, *, bit_width: int, shape: tuple[int, ...]) -> jax.Array | None:
    """The same bits, on CPU written out, else along one axis: so threefry counts them, and with several it takes long to compile."""
    if key.ndim or jax.random.key_impl(key) != "threefry2x32":
        return None
    count = math.prod(shape)
    if jax.default_backend() == "cpu" and bit_width == 32 and threefry.supports(count):
        return lax.reshape(threefry.bits(key, count), shape)
    if len(shape) < 2:
        return None
    return lax.reshape(jax.random.bits(key, (count,), jnp.dtype(f"uint{bit_width}")), shape)


REPLACED: Mapping[str, Callable[..., jax.Array | None]] = {
    "conv_general_dilated": _conv,
    "dot_general": _dot,
    "reduce_window_max": _pool("max"),
    "reduce_window_min": _pool("min"),
    "reduce_window_sum": _pool("sum"),
    "random_bits": _random_bits,
}
"""By name of the primitive: what takes its operands and settings, and returns ``None`` where it has no faster form."""

SLOW = REPLACED.keys() - {"dot_general", "random_bits"}
"""Those that are slow where they stay; products and random bits that stay are only not faster."""


@functools.cache
def _stays(what: str) -> None:
    warnings.warn(
        f"{what} has no form for clients with weights of their own and stays as it is, which may be slow: measure it.",
        RuntimeWarning,
        stacklevel=2,
    )


# --- walking through the program -----------------------------------------------------------------------------


def _concerns(program: Jaxpr, names: Collection[str]) -> bool:
    """Whether an operation of these names is in it, at any depth."""
    return any(e.primitive.name in names or _concerns_inside(e, names) for e in program.eqns)


def _concerns_inside(equation: Any, names: Collection[str]) -> bool:
    return any(_concerns(program, names) for program in jaxprs_in_params(equation.params))


def _evaluate(
    program: ClosedJaxpr, arguments: Sequence[Any], instead: recurrences.Instead | None = None
) -> list[Any]:
    """The results of a program, with operations replaced, those first that ``instead`` knows."""
    waits = frozenset() if _UNTOUCHED.value else chains.waiting(program.jaxpr)

    def results(equation: Any, operands: list[Any]) -> Sequence[Any]:
        known = None if instead is None else instead(equation, operands)
        if known is not None:
            return known
        found = chains.continued(equation, operands, waits, functools.partial(_results, equation))
        return _results(equation, operands) if found is None else [found]

    return evaluate(program, arguments, results)


def _results(equation: Any, operands: list[Any]) -> Sequence[Any]:
    name = equation.primitive.name
    if any(isinstance(operand, Outer) for operand in operands):
        return _with_outer(equation, operands)
    if name in REPLACED and not _UNTOUCHED.value:
        result = REPLACED[name](*operands, **equation.params)
        if result is not None:
            return [result]
    elif _concerns_inside(equation, REPLACED):
        if name in ENTERED:
            return ENTERED[name](operands, **equation.params)
        if _concerns_inside(equation, SLOW):
            _stays(f"a convolution or pooling inside {name}")
    return bound(equation, operands)


def _with_outer(equation: Any, operands: list[Any]) -> Sequence[Any]:
    """What becomes of weights that are a sum of products: a dense layer's product, and nothing else."""
    name, settings = equation.primitive.name, equation.params
    if name == "convert_element_type":
        return [operands[0].astype(settings["new_dtype"])]
    if name in _CALLS:
        return ENTERED[name](operands, **settings)
    if name == "dot_general" and isinstance(operands[1], Outer) and not isinstance(operands[0], Outer):
        rows, weights = operands
        if settings["dimension_numbers"] == (((1,), (0,)), ((), ())) and rows.ndim == 2:
            return [weights.product(rows, settings["precision"], settings["preferred_element_type"])]
    raise TypeError(
        f"the model uses weights of shape {next(o.base.shape for o in operands if isinstance(o, Outer))} in "
        f"{name}, expected rows [rows, depth] times weights [depth, features] and nothing else: such weights can be "
        "kept as a sum of outer products only in a dense layer that sees one row per example."
    )


def _as_function(program: ClosedJaxpr | Jaxpr) -> Callable[..., list[Any]]:
    closed = program if isinstance(program, ClosedJaxpr) else ClosedJaxpr(program, ())
    return lambda *operands: _evaluate(closed, operands)


def _call(operands: list[Any], *, jaxpr: ClosedJaxpr, **_: Any) -> Sequence[Any]:
    return _as_function(jaxpr)(*operands)


def _checkpoint(operands: list[Any], *, jaxpr: Jaxpr, prevent_cse, policy, **_: Any) -> Sequence[Any]:
    return jax.checkpoint(_as_function(jaxpr), prevent_cse=prevent_cse, policy=policy)(*operands)


def _scan(operands: list[Any], *, jaxpr: ClosedJaxpr, length, reverse, unroll, **parts: Any) -> Sequence[Any]:
    function = _as_function(jaxpr)
    inputs, outputs = len(operands), len(jaxpr.out_avals)
    (of_constants, of_carry, of_xs), (to_carry, to_ys) = _places(inputs, outputs, **parts)

    def body(carry: list[Any], xs: list[Any]):
        constants = [operands[place] for place in of_constants]
        given = zip([*of_constants, *of_carry, *of_xs], [*constants, *carry, *xs], strict=True)
        results = function(*(value for _, value in sorted(given, key=lambda item: item[0])))
        return [results[place] for place in to_carry], [results[place] for place in to_ys]

    loop = recurrences.Loop(
        jaxpr.jaxpr,
        functools.partial(_evaluate, jaxpr),
        (of_constants, of_carry, of_xs),
        (to_carry, to_ys),
        length,
        reverse,
        unroll,
    )
    stays = _UNTOUCHED.value or jax.default_backend() != "cpu" or any(map(backends.varies, operands))
    taken = None if stays else recurrences.products(loop)
    if taken is not None:
        carry, ys = recurrences.scan(loop, taken, operands)
    else:
        start, xs = ([operands[place] for place in places] for places in (of_carry, of_xs))
        carry, ys = lax.scan(body, start, xs, length=length, reverse=reverse, unroll=unroll)
    made = zip([*to_carry, *to_ys], [*carry, *ys], strict=True)
    return [value for _, value in sorted(made, key=lambda item: item[0])]


def _places(inputs: int, outputs: int, **parts: Any) -> tuple[list[list[int]], list[list[int]]]:
    """Where the constants, the carry and the rows stand among a scan's operands, and carry and rows among its results."""
    if "ft_in" in parts:  # from jax 0.11
        found = parts["ft_in"].update(list(range(inputs))), parts["ft_out"].update(list(range(outputs)))
        return [list(part) for part in found[0].unpack()], [list(part) for part in found[1].unpack()]
    consts, carry = parts["num_consts"], parts["num_carry"]
    places, results = list(range(inputs)), list(range(outputs))
    of = [places[:consts], places[consts : consts + carry], places[consts + carry :]]
    return of, [results[:carry], results[carry:]]


def _while(
    operands: list[Any],
    *,
    cond_jaxpr: ClosedJaxpr,
    body_jaxpr: ClosedJaxpr,
    cond_nconsts: int,
    body_nconsts: int,
) -> Sequence[Any]:
    of_cond, of_body = operands[:cond_nconsts], operands[cond_nconsts : cond_nconsts + body_nconsts]
    condition, body = _as_function(cond_jaxpr), _as_function(body_jaxpr)
    return lax.while_loop(
        lambda carry: condition(*of_cond, *carry)[0],
        lambda carry: body(*of_body, *carry),
        operands[cond_nconsts + body_nconsts :],
    )


def _cond(operands: list[Any], *, branches: Sequence[ClosedJaxpr], **_: Any) -> Sequence[Any]:
    return lax.switch(operands[0], [_as_function(branch) for branch in branches], *operands[1:])


ENTERED: Mapping[str, Callable[..., Sequence[Any]]] = {
    "jit": _call, "pjit": _call, "closed_call": _call, "core_call": _call, "checkpoint": _checkpoint, "remat2": _checkpoint, "remat": _checkpoint,
    "scan": _scan, "while": _while, "cond": _cond,
}  # fmt: skip
"""By name of the primitive: how the programs inside are entered; inside others nothing is replaced."""

_CALLS = tuple(name for name, entered in ENTERED.items() if entered is _call)
"""Those that hand their operands to the program inside as they are."""
