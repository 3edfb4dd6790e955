"""ReLU of a convolution and its bias in one pass, as Pallas kernels for GPUs: what XLA cannot fuse behind a kernel of ours.

Forward, a program starts from the bias and stores what is above zero. Backward, the gradient by kernel and bias reads the
results beside their cotangents and counts these where the ReLU was active, if elements are narrow, all terms of the kernel fit
one block, as those of a first layer do, and nobody asks for the gradient by images: else the masked cotangents would be read more
than once, and XLA writes them.
"""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from fedjax_sim_kernels.conv.gather import SUMS, TILE, Platform, Sliding, Sums, Tile, correlated
from fedjax_sim_kernels.conv.pallas import closed, forward, opened, sliding_p, with_clients
from fedjax_sim_kernels.conv.spec import ConvSpec


def conv(
    lhs: jax.Array,
    rhs: jax.Array,
    bias: jax.Array,
    spec: ConvSpec,
    *,
    tile: Tile = TILE,
    sums: Sums = SUMS,
    interpret: Platform | None = None,
) -> jax.Array:
    """Equals ``jax.nn.relu(conv(lhs, rhs) + bias)`` for what ``pallas.supports``; ``bias`` is ``[features]``."""
    x, kernel, sliding = opened(lhs, rhs, spec, tile, sums, interpret)
    return closed(rectified_p.bind(x, kernel, bias[None], sliding=sliding), spec, sliding)


MASKED_BYTES = 2
"""Elements that the gradient by the kernel masks itself: of float32 it took 122 us, and 72 in two passes; 76 and 113 of bfloat16."""


# --- the results ---------------------------------------------------------------------------------------------

rectified_p = Primitive("rectified_sliding")
"""As ``sliding_p`` with the layout ``forth``, and a bias ``[clients, features]``: the ReLU of their sum."""


def _compute(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, sliding: Sliding) -> jax.Array:
    return forward(x, kernel, sliding, bias)


def _abstract(x, kernel, bias, *, sliding: Sliding):
    if bias.shape != (kernel.shape[0], kernel.shape[-1]):
        raise TypeError(
            f"the bias has shape {bias.shape}, expected one for each of {kernel.shape[-1]} features."
        )
    return sliding_p.abstract_eval(x, kernel, layout="forth", sliding=sliding)[0]


def _composed(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, sliding: Sliding) -> jax.Array:
    return jax.nn.relu(sliding_p.bind(x, kernel, layout="forth", sliding=sliding) + bias[:, None])


def _anywhere(x: jax.Array, kernel: jax.Array, bias: jax.Array, *, sliding: Sliding) -> jax.Array:
    return (_compute if sliding.interpret == "cuda" else _composed)(x, kernel, bias, sliding=sliding)


def _differentiated(primals, tangents, *, sliding: Sliding):
    x, kernel, bias = primals
    y = rectified_p.bind(x, kernel, bias, sliding=sliding)
    of_x, of_kernel, of_bias = (None if isinstance(tangent, ad.Zero) else tangent for tangent in tangents)
    narrow = x.dtype.itemsize <= MASKED_BYTES
    if narrow and of_x is None and of_kernel is not None and kernel.shape[1] < sliding.sums.height:
        weights = jnp.concatenate([of_kernel, ad.instantiate_zeros(tangents[2])[:, None]], axis=1)
        return y, tangent_p.bind(x, weights, y, layout="forth", sliding=sliding)
    forth = functools.partial(sliding_p.bind, layout="forth", sliding=sliding)
    parts = []
    if of_bias is not None:
        # Turned round, this is a sum over rows: in float32.
        parts.append(jnp.broadcast_to(of_bias.astype(jnp.float32)[:, None], y.shape).astype(y.dtype))
    for a, b in ((of_x, kernel), (x, of_kernel)):
        if a is not None and b is not None:
            parts.append(forth(a, b))
    return y, _where(y, sum(parts[1:], parts[0]))


def _batched(operands, axes, *, sliding: Sliding):
    shared = axes[1] is None and axes[2] is None
    return with_clients(rectified_p.bind, operands, axes, shared, sliding)


def _where(y: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where(y > 0, values, jnp.zeros_like(values))


# --- their derivative by kernel and bias ---------------------------------------------------------------------

Layout = Literal["forth", "to_kernel"]

tangent_p = Primitive("rectified_tangent")
"""Images, tangents of kernels and results to tangents of the results; images, cotangents of the results and results to kernels.

As the layouts of ``sliding_p``, but that kernels have one more row at the end, the bias, and nothing passes where a result is
zero. Either is linear in the second operand and the other's transpose.
"""


def _with_kernels_alone(x: jax.Array, b: jax.Array, y: jax.Array, *, layout: Layout, sliding: Sliding):
    """What is linear in the images."""
    if layout == "forth":
        return _where(y, sliding_p.bind(x, b[:, :-1], layout=layout, sliding=sliding))
    found = sliding_p.bind(x, _where(y, b), layout=layout, sliding=sliding)
    return jnp.pad(found, ((0, 0), (0, 1), (0, 0)))


def _tangent_composed(x: jax.Array, b: jax.Array, y: jax.Array, *, layout: Layout, sliding: Sliding):
    found = _with_kernels_alone(x, b, y, layout=layout, sliding=sliding)
    if layout == "forth":
        return found + _where(y, jnp.broadcast_to(b[:, -1:], y.shape))
    return found.at[:, -1].set(jnp.sum(_where(y, b), axis=1))


def _tangent_compute(x: jax.Array, b: jax.Array, y: jax.Array, *, layout: Layout, sliding: Sliding):
    """Nothing but forward mode evaluates the layout ``forth``."""
    if layout == "forth":
        return _tangent_composed(x, b, y, layout=layout, sliding=sliding)
    return correlated(x, b, sliding, y)


def _tangent_anywhere(x: jax.Array, b: jax.Array, y: jax.Array, *, layout: Layout, sliding: Sliding):
    compute = _tangent_compute if sliding.interpret == "cuda" else _tangent_composed
    return compute(x, b, y, layout=layout, sliding=sliding)


def _tangent_abstract(x, b, y, *, layout: Layout, sliding: Sliding):
    if layout == "forth":
        return y.update()
    return x.update(shape=(x.shape[0], sliding.offsets * x.shape[-1] + 1, b.shape[-1]))


def _tangent_transposed(cotangent, x, b, y, *, layout: Layout, sliding: Sliding):
    if isinstance(cotangent, ad.Zero):
        return None, ad.Zero(b.aval), None
    other = "to_kernel" if layout == "forth" else "forth"
    return None, tangent_p.bind(x, cotangent, y, layout=other, sliding=sliding), None


def _tangent_batched(operands, axes, *, layout: Layout, sliding: Sliding):
    return with_clients(functools.partial(tangent_p.bind, layout=layout), operands, axes, False, sliding)


rectified_p.def_impl(jax.jit(rectified_p.bind, static_argnames=("sliding",)))
rectified_p.def_abstract_eval(_abstract)
ad.primitive_jvps[rectified_p] = _differentiated
batching.primitive_batchers[rectified_p] = _batched
mlir.register_lowering(rectified_p, mlir.lower_fun(_anywhere, multiple_results=False))
mlir.register_lowering(rectified_p, mlir.lower_fun(_compute, multiple_results=False), platform="cuda")

tangent_p.def_impl(jax.jit(tangent_p.bind, static_argnames=("layout", "sliding")))
tangent_p.def_abstract_eval(_tangent_abstract)
ad.defjvp(
    tangent_p,
    lambda t, x, b, y, **settings: _with_kernels_alone(t, b, y, **settings),
    lambda t, x, b, y, **settings: tangent_p.bind(x, t, y, **settings),
    None,
)
ad.primitive_transposes[tangent_p] = _tangent_transposed
batching.primitive_batchers[tangent_p] = _tangent_batched
mlir.register_lowering(tangent_p, mlir.lower_fun(_tangent_anywhere, multiple_results=False))
mlir.register_lowering(tangent_p, mlir.lower_fun(_tangent_compute, multiple_results=False), platform="cuda")
