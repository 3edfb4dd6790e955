"""A bias and the ReLU, where they cost least: in the pass of the convolution before them, or behind the pooling after them.

The largest value of a window grows with its values, so a bias that all of the window has and the ReLU may come after it, with the same
results: a quarter of the numbers for windows of two by two, forth and back. (Where rounding makes two sums equal, the gradient goes to
the larger value rather than to the first.) Winograd's tiles are
the windows of a pooling by two, which then takes the largest of what they give before it comes together. What a ReLU without a pooling follows on NVIDIA GPUs, where
a convolution is a kernel of ours that XLA puts nothing into, is one pass with it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Collection, Sequence, Set
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Jaxpr, Var, jaxprs_in_params

from fedjax_sim_kernels import backends, conv, pooling
from fedjax_sim_kernels.walk import bound


class Convolution(NamedTuple):
    """One that is not computed yet."""

    lhs: jax.Array
    rhs: jax.Array
    spec: conv.ConvSpec


class Waiting(NamedTuple):
    """A value that is not computed yet: ``x``, with what has come after it."""

    x: Any
    bias: Any = None
    relu: bool = False


def waiting(program: Jaxpr) -> Set[Any]:
    """Variables of a program whose value waits for the end of their chain, a pooling or a ReLU; nothing else uses them."""
    uses = [(v, equation) for equation in program.eqns for v in equation.invars if isinstance(v, Var)]
    times = Counter([*(v for v, _ in uses), *(v for v in program.outvars if isinstance(v, Var))])
    user = {v: equation for v, equation in uses if times[v] == 1}
    maker: dict[Any, Any] = {v: equation for equation in program.eqns for v in equation.outvars}
    found: set[Any] = set()
    for pool in filter(_takes_the_largest, program.eqns):
        found |= _before_pooling(pool, maker, user)
    if backends.current() == "nvidia":
        for relu in program.eqns:
            if found.isdisjoint(relu.outvars):
                found |= _before_relu(relu, maker, user)
    return found


def _before_pooling(pool: Any, maker: dict[Any, Any], user: dict[Any, Any]) -> set[Any]:
    """A ReLU, a bias that all of a window has, and a convolution that is made in the pooling's windows; each may lack."""
    links: set[Any] = set()

    def made_for(end: Any, x: Any) -> Any:
        return maker.get(x) if isinstance(x, Var) and user.get(x) is end else None

    end, x = pool, pool.invars[0]
    made = made_for(end, x)
    if made is not None and _is_relu(made):
        links.add(x)
        end, x = made, made.invars[0]
        made = made_for(end, x)
    bias = None if made is None else _bias_of(made, _moving(pool))
    if made is not None and bias is not None:
        links.add(x)
        end, x = made, next(v for v in made.invars if v is not bias)
        made = made_for(end, x)
    if made is not None and made.primitive.name == "conv_general_dilated" and _in_quarters(made, pool):
        links.add(x)
    return links


def _before_relu(relu: Any, maker: dict[Any, Any], user: dict[Any, Any]) -> set[Any]:
    """A bias, and a convolution before it that can be one operation with both."""
    if len(relu.invars) != 1 or len(relu.outvars) != 1 or not isinstance(relu.invars[0], Var):
        return set()
    after = relu.invars[0]
    added = maker.get(after) if user.get(after) is relu else None
    x = None if added is None else _convolution_behind(added, maker, user)
    # The last question, for it traces.
    return {x, after} if x is not None and _is_relu(relu) else set()


def continued(
    equation: Any,
    operands: Sequence[Any],
    waits: Set[Any],
    usual: Callable[[list[Any]], Sequence[Any]],
) -> Any:
    """What an equation of such a chain becomes, ``None`` for any other.

    Args:
      equation: of the program.
      operands: its values, arrays or ``Waiting``.
      waits: as ``waiting`` says.
      usual: the equation's results for arrays.
    """
    if not waits.isdisjoint(equation.outvars):
        if equation.primitive.name == "conv_general_dilated":
            lhs, rhs = operands
            return Waiting(Convolution(lhs, rhs, conv.ConvSpec.of(equation.params)))
        place = _place_of_bias(equation)
        x = operands[0 if place is None else 1 - place]
        x = x if isinstance(x, Waiting) else Waiting(x)
        return x._replace(relu=True) if place is None else x._replace(bias=operands[place])
    begun = next((operand for operand in operands if isinstance(operand, Waiting)), None)
    if begun is None:
        return None
    made = begun.x
    if not _takes_the_largest(equation):
        return conv.with_relu(made.lhs, made.rhs, lax.reshape(begun.bias, (begun.bias.size,)), made.spec)
    if isinstance(made, Convolution):
        result = functools.reduce(pooling.first_largest, conv.quarters(*made))
    else:
        (result,) = usual([made])
    result = result if begun.bias is None else result + begun.bias
    return jax.nn.relu(result) if begun.relu else result


# --- what stands in a chain ----------------------------------------------------------------------------------


def _takes_the_largest(equation: Any) -> bool:
    """Whether it is the largest value of windows, in each of which there is one."""
    if equation.primitive.name != "reduce_window_max":
        return False
    settings = equation.params
    dilated = {*settings["base_dilation"], *settings["window_dilation"]} != {1}
    inside = (
        max(pads) < extent
        for pads, extent in zip(settings["padding"], settings["window_dimensions"], strict=True)
    )
    return not dilated and all(inside)


def _in_quarters(made: Any, pool: Any) -> bool:
    """Whether a convolution makes just what a pooling takes the largest of: windows of two by two that touch."""
    spec, (lhs, rhs) = conv.ConvSpec.of(made.params), (v.aval for v in made.invars)
    space = spec.dimension_numbers.out_spec[2:]
    settings = zip(
        pool.params["window_dimensions"], pool.params["window_strides"], pool.params["padding"], strict=True
    )
    fits = all(
        setting == ((2, 2, (0, 0)) if axis in space else (1, 1, (0, 0)))
        for axis, setting in enumerate(settings)
    )
    return fits and conv.choose(lhs, rhs, spec)[0] == "winograd"


def _moving(pool: Any) -> list[int]:
    """Axes along which a window has more than one value, or other positions than the array."""
    settings = zip(
        pool.params["window_dimensions"], pool.params["window_strides"], pool.params["padding"], strict=True
    )
    return [axis for axis, setting in enumerate(settings) if setting != (1, 1, (0, 0))]


def _place_of_bias(equation: Any) -> int | None:
    """Which operand of a sum is the smaller one, of as many axes; ``None`` for any other equation."""
    if equation.primitive.name != "add":
        return None
    left, right = (v.aval for v in equation.invars)
    if left.ndim != right.ndim or left.size == right.size:
        return None
    return int(right.size < left.size)


def _bias_of(equation: Any, axes: Collection[int]) -> Any:
    """The smaller operand of a sum if it is the same along these axes of the larger one."""
    place = _place_of_bias(equation)
    if place is None or any(equation.invars[place].aval.shape[axis] != 1 for axis in axes):
        return None
    return equation.invars[place]


def _convolution_behind(added: Any, maker: dict[Any, Any], user: dict[Any, Any]) -> Any:
    """The result of a convolution that takes the form "pallas" and gets nothing but a bias over its features."""
    place = _place_of_bias(added)
    x: Any = None if place is None else added.invars[1 - place]
    made = maker.get(x)
    if made is None or made.primitive.name != "conv_general_dilated" or user.get(x) is not added:
        return None
    spec = conv.ConvSpec.of(made.params)
    others = [
        axis
        for axis in range(len(spec.dimension_numbers.out_spec))
        if axis != spec.dimension_numbers.out_spec[1]
    ]
    lhs, rhs = (v.aval for v in made.invars)
    bias, features = _bias_of(added, others), x.aval.shape[spec.dimension_numbers.out_spec[1]]
    fits = bias is not None and bias.aval.size == features and conv.choose(lhs, rhs, spec)[0] == "pallas"
    return x if fits else None


def _is_relu(equation: Any) -> bool:
    """Whether value and derivative are ``jax.nn.relu``'s; or it is a call of that and nothing else."""
    name = equation.primitive.name
    if name in ("jit", "pjit"):
        (program,) = jaxprs_in_params(equation.params)
        steps = [(step.invars, step.outvars) for step in program.eqns]
        return steps == [(program.invars, program.outvars)] and _is_relu(program.eqns[0])
    if name != "custom_jvp_call" or len(equation.invars) != 1 or len(equation.outvars) != 1:
        return False
    x = jax.ShapeDtypeStruct(equation.invars[0].aval.shape, equation.invars[0].aval.dtype)
    try:
        return _derivative(lambda x: bound(equation, [x])[0], x) == _derivative(jax.nn.relu, x)
    except (
        Exception
    ):  # somebody's own derivative, which may refuse, or cannot be taken where the program is traced
        return False


def _derivative(function: Callable[[jax.Array], jax.Array], x: jax.ShapeDtypeStruct) -> str:
    """The program of value and derivative, as text."""
    return str(jax.make_jaxpr(lambda x, t: jax.jvp(function, (x,), (t,)))(x, x))
