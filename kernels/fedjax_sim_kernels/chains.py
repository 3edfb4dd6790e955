"""A bias and the ReLU, where they cost least: in the pass of the convolution before them, or behind the pooling after them.

The largest value of a window grows with its values, so a bias that all of the window has and the ReLU may come after it, with the same
results: a quarter of the numbers for windows of two by two, forth and back. (Where rounding makes two sums equal, the gradient goes to
the larger value rather than to the first.) What a ReLU without a pooling follows on NVIDIA GPUs, where
a convolution is a kernel of ours that XLA puts nothing into, is one pass with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence, Set
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Jaxpr, Var, jaxprs_in_params

from fedjax_sim_kernels import backends, conv
from fedjax_sim_kernels.walk import bound


class Convolution(NamedTuple):
    """One that is not computed yet."""

    lhs: jax.Array
    rhs: jax.Array
    spec: conv.ConvSpec


class Waiting(NamedTuple):
    """A value that is not computed yet: ``x``, with its bias if that has come."""

    x: Any
    bias: Any = None


def waiting(program: Jaxpr) -> Set[Any]:
    """Variables of a program whose value waits for the end of their chain, a pooling or a ReLU; nothing else uses them."""
    uses = [(v, equation) for equation in program.eqns for v in equation.invars if isinstance(v, Var)]
    times = Counter([*(v for v, _ in uses), *(v for v in program.outvars if isinstance(v, Var))])
    user = {v: equation for v, equation in uses if times[v] == 1}
    maker: dict[Any, Any] = {v: equation for equation in program.eqns for v in equation.outvars}
    found: set[Any] = set()
    for relu in program.eqns:
        if len(relu.invars) != 1 or len(relu.outvars) != 1 or not isinstance(relu.invars[0], Var):
            continue
        before, after = relu.invars[0], relu.outvars[0]
        added = maker.get(before) if user.get(before) is relu else None
        pool, links = user.get(after), set()
        if pool is not None and _takes_the_largest(pool):
            biased = added is not None and _bias_of(added, _moving(pool)) is not None
            links = {before, after} if biased else {after}
        elif added is not None and backends.current() == "nvidia":
            x = _convolution_behind(added, maker, user)
            links = set() if x is None else {x, before}
        # Last, for it traces.
        if links and _is_relu(relu):
            found |= links
    return found


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
    name = equation.primitive.name
    begun = next((operand for operand in operands if isinstance(operand, Waiting)), None)
    if not waits.isdisjoint(equation.outvars):
        if name == "conv_general_dilated":
            lhs, rhs = operands
            return Waiting(Convolution(lhs, rhs, conv.ConvSpec.of(equation.params)))
        place = _bias_place(equation)
        if place is None:  # a ReLU
            return begun or Waiting(operands[0])
        x = operands[1 - place]
        return Waiting(x.x if isinstance(x, Waiting) else x, operands[place])
    if begun is None:
        return None
    if isinstance(begun.x, Convolution):
        return conv.with_relu(
            begun.x.lhs, begun.x.rhs, lax.reshape(begun.bias, (begun.bias.size,)), begun.x.spec
        )
    (largest,) = usual([begun.x])
    return jax.nn.relu(largest if begun.bias is None else largest + begun.bias)


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


def _moving(pool: Any) -> list[int]:
    """Axes along which a window has more than one value, or other positions than the array."""
    settings = zip(
        pool.params["window_dimensions"], pool.params["window_strides"], pool.params["padding"], strict=True
    )
    return [axis for axis, setting in enumerate(settings) if setting != (1, 1, (0, 0))]


def _bias_place(equation: Any) -> int | None:
    """Which operand of a sum is the smaller one, of as many axes; ``None`` for any other equation."""
    if equation.primitive.name != "add":
        return None
    left, right = (v.aval for v in equation.invars)
    if left.ndim != right.ndim or left.size == right.size:
        return None
    return int(right.size < left.size)


def _bias_of(equation: Any, axes: Collection[int]) -> Any:
    """The smaller operand of a sum if it is the same along these axes of the larger one."""
    place = _bias_place(equation)
    if place is None or any(equation.invars[place].aval.shape[axis] != 1 for axis in axes):
        return None
    return equation.invars[place]


def _convolution_behind(added: Any, maker: dict[Any, Any], user: dict[Any, Any]) -> Any:
    """The result of a convolution that takes the form "pallas" and gets nothing but a bias over its features."""
    place = _bias_place(added)
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
