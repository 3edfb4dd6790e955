"""Convolutions of a traced program that a bias and the ReLU follow, put off until the three are one operation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.extend.core import Jaxpr, Var, jaxprs_in_params

from fedjax_sim_kernels import backends
from fedjax_sim_kernels.conv.dispatch import choose, rectified
from fedjax_sim_kernels.conv.spec import ConvSpec
from fedjax_sim_kernels.walk import bound


class PutOff(NamedTuple):
    """A convolution that is not computed yet, of a bias ``[features]`` too where it was added."""

    lhs: jax.Array
    rhs: jax.Array
    spec: ConvSpec
    bias: jax.Array | None = None


def before_relu(program: Jaxpr) -> Collection[Any]:
    """Convolutions, and their sums with a bias over features, that nothing uses but the next step to their ReLU."""
    if backends.current() != "nvidia":
        return ()
    uses = [(v, equation) for equation in program.eqns for v in equation.invars if isinstance(v, Var)]
    times = Counter([*(v for v, _ in uses), *(v for v in program.outvars if isinstance(v, Var))])
    user = {v: equation for v, equation in uses if times[v] == 1}
    found = set()
    for equation in program.eqns:
        if equation.primitive.name != "conv_general_dilated":
            continue
        result = equation.outvars[0]
        added = user.get(result)
        features = equation.params["dimension_numbers"].out_spec[1]
        if added is None or not _adds_a_bias(added, result, features, found):
            continue
        last = user.get(added.outvars[0])
        if last is not None and _is_relu(last):
            found |= {result, added.outvars[0]}
    return found


def continued(equation: Any, operands: Sequence[Any], put_off: Collection[Any]) -> Any:
    """What a step of such a chain becomes; ``None`` if the equation is none, or the convolution takes another form."""
    begun = next((operand for operand in operands if isinstance(operand, PutOff)), None)
    if begun is None:
        if equation.primitive.name != "conv_general_dilated" or equation.outvars[0] not in put_off:
            return None
        lhs, rhs = operands
        spec = ConvSpec.of(equation.params)
        return PutOff(lhs, rhs, spec) if choose(lhs, rhs, spec)[0] == "pallas" else None
    if begun.bias is None:
        (bias,) = (operand for operand in operands if operand is not begun)
        return begun._replace(bias=lax.reshape(bias, (bias.size,)))
    return rectified(begun.lhs, begun.rhs, begun.bias, begun.spec)


def _adds_a_bias(equation: Any, result: Any, features: int, taken: Collection[Any]) -> bool:
    if equation.primitive.name != "add":
        return False
    (bias,) = (v for v in equation.invars if v is not result)
    shape = tuple(size if axis == features else 1 for axis, size in enumerate(result.aval.shape))
    return bias.aval.shape == shape and bias.aval.dtype == result.aval.dtype and bias not in taken


def _is_relu(equation: Any) -> bool:
    """Whether value and derivative are ``jax.nn.relu``'s; or it is a call of that and nothing else."""
    name = equation.primitive.name
    if name in ("jit", "pjit"):
        (program,) = jaxprs_in_params(equation.params)
        inner = program.eqns[0] if len(program.eqns) == 1 else None
        same = inner is not None and (inner.invars, inner.outvars) == (program.invars, program.outvars)
        return same and _is_relu(inner)
    if name != "custom_jvp_call" or len(equation.invars) != 1 or len(equation.outvars) != 1:
        return False
    x = jax.ShapeDtypeStruct(equation.invars[0].aval.shape, equation.invars[0].aval.dtype)
    return _derivative(lambda x: bound(equation, [x])[0], x) == _derivative(jax.nn.relu, x)


def _derivative(function: Callable[[jax.Array], jax.Array], x: jax.ShapeDtypeStruct) -> str:
    """The program of value and derivative, as text."""
    return str(jax.make_jaxpr(lambda x, t: jax.jvp(function, (x,), (t,)))(x, x))
