"""Convolution as one product over rows that are read where they stand (implicit GEMM), as Pallas kernels.

No buffer of patches and no group per client: clients with kernels of their own are one more axis of the grid. The product
and the two products that its gradients are, are one primitive: they are closed under differentiation, in reverse and in
forward mode. The kernels are in ``gather.py`` for GPUs and in ``pallas_tpu.py`` for TPUs, to which nothing dispatches.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from fedjax_sim_kernels import backends, bilinear
from fedjax_sim_kernels.conv.gather import SUMS, TILE, Platform, Sliding, Sums, Tile, correlated, gathered
from fedjax_sim_kernels.conv.spec import ConvSpec, plain, restored, window_of
from fedjax_sim_kernels.windows import window_counts


def supports(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec) -> bool:
    """Convolutions without groups, in types of at most 32 bits whose results need no wider one, with a result to compute.

    Not inside a ``shard_map`` that keeps account of what varies over devices: a kernel of Pallas does not.
    """
    image, kernel = jax.eval_shape(lambda x, k: plain(x, k, spec), lhs, rhs)
    positions = window_counts(image.shape[1:-1], kernel.shape[:-2], spec.strides, spec.rhs_dilation)
    return (
        spec.feature_group_count == spec.batch_group_count == 1
        and lhs.dtype == rhs.dtype
        and lhs.dtype in (jnp.float32, jnp.bfloat16, jnp.float16)
        and (spec.preferred_element_type is None or spec.preferred_element_type == lhs.dtype)
        and 0 not in (*positions, *lhs.shape, *rhs.shape)
        and not backends.varies(lhs)
        and not backends.varies(rhs)
    )


def conv(
    lhs: jax.Array,
    rhs: jax.Array,
    spec: ConvSpec,
    *,
    tile: Tile = TILE,
    sums: Sums = SUMS,
    interpret: Platform | None = None,
) -> jax.Array:
    """Equals ``reference.conv`` for what it supports; ``interpret`` runs that platform's kernels where there is none."""
    x, kernel, sliding = opened(lhs, rhs, spec, tile, sums, interpret)
    return closed(sliding_p.bind(x, kernel, layout="forth", sliding=sliding), spec, sliding)


def opened(
    lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, tile: Tile, sums: Sums, interpret: Platform | None
) -> tuple[jax.Array, jax.Array, Sliding]:
    """Images and kernel as the primitives take them, of one client, and how the window slides."""
    x, kernel = plain(lhs, rhs, spec)
    *window, channels, features = kernel.shape
    space = x.shape[1:-1]
    precision = spec.precision
    if precision is None:
        # As lax.conv_general_dilated does: what is in force when the convolution is written.
        precision = jax.config.jax_default_matmul_precision  # type: ignore
    sliding = Sliding(
        x.shape[0], space, window_counts(space, tuple(window), spec.strides, spec.rhs_dilation),
        window_of(rhs, spec), tuple(spec.strides), tuple(spec.rhs_dilation), precision, tile, sums,
        interpret,
    )  # fmt: skip
    return x.reshape(1, -1, channels), kernel.reshape(1, -1, features), sliding


def closed(rows: jax.Array, spec: ConvSpec, sliding: Sliding) -> jax.Array:
    """One client's results as the convolution has them."""
    return restored(rows.reshape(sliding.batch, *sliding.positions, rows.shape[-1]), spec)


# --- one primitive -------------------------------------------------------------------------------------------

Layout = Literal["forth", "to_x", "to_kernel"]
"""Images and kernels to results, results and kernels to images, images and results to kernels."""

sliding_p = Primitive("sliding")
"""Images ``[clients, batch * space, channels]``, kernels ``[clients, offsets * channels, features]``, results
``[clients, batch * positions, features]``: any two of them to the third."""


def forward(x: jax.Array, kernel: jax.Array, sliding: Sliding, bias: jax.Array | None = None) -> jax.Array:
    """Results; with a bias, the ReLU of their sum with it."""
    rows = sliding.batch * math.prod(sliding.positions)
    return gathered(x, kernel.swapaxes(1, 2), rows, sliding.seen, sliding, bias)


def _compute(a: jax.Array, b: jax.Array, *, layout: Layout, sliding: Sliding) -> jax.Array:
    if layout == "to_kernel":
        return correlated(a, b, sliding)
    if layout == "forth":
        return forward(a, b, sliding)
    clients, terms, features = b.shape
    turned = b.reshape(clients, sliding.offsets, -1, features).swapaxes(1, 2)
    turned = turned.reshape(clients, terms // sliding.offsets, sliding.offsets * features)
    return gathered(a, turned, sliding.batch * math.prod(sliding.space), sliding.seeing, sliding)


def _compute_on_tpu(a: jax.Array, b: jax.Array, *, layout: Layout, sliding: Sliding) -> jax.Array:
    """By the kernels for TPUs, or by XLA's convolution what they do not support."""
    # Imported here, not to load Mosaic for a GPU.
    pallas_tpu = importlib.import_module("fedjax_sim_kernels.conv.pallas_tpu")
    channels = a.shape[-1] if layout == "to_kernel" else b.shape[1] // sliding.offsets
    if not pallas_tpu.supports(sliding, channels, b.shape[-1], a.dtype):
        return _elsewhere(a, b, layout=layout, sliding=sliding)
    run = {"forth": pallas_tpu.forward, "to_x": pallas_tpu.to_images, "to_kernel": pallas_tpu.to_kernels}
    return run[layout](a, b, sliding)


def _abstract(a, b, *, layout: Layout, sliding: Sliding):
    if layout == "forth":
        shape = (sliding.batch * math.prod(sliding.positions), b.shape[-1])
    elif layout == "to_x":
        shape = (sliding.batch * math.prod(sliding.space), b.shape[1] // sliding.offsets)
    else:
        shape = (sliding.offsets * a.shape[-1], b.shape[-1])
    return a.update(shape=(a.shape[0], *shape))


def _elsewhere(a: jax.Array, b: jax.Array, *, layout: Layout, sliding: Sliding) -> jax.Array:
    """The same where Pallas cannot be compiled: on the CPU of a machine whose models were rewritten for its GPU."""
    batch, space = sliding.batch, "DHW"[-len(sliding.space) :]

    def one(a: jax.Array, b: jax.Array) -> jax.Array:
        channels = b.shape[0] // sliding.offsets if layout != "to_kernel" else a.shape[-1]
        features = b.shape[-1]

        def forth(x: jax.Array, kernel: jax.Array) -> jax.Array:
            results = lax.conv_general_dilated(
                x.reshape(batch, *sliding.space, channels),
                kernel.reshape(*sliding.window, channels, features),
                sliding.strides,
                "VALID",
                rhs_dilation=sliding.dilation,
                dimension_numbers=(f"N{space}C", f"{space}IO", f"N{space}C"),
                precision=sliding.precision,
            )
            return results.reshape(-1, features)

        x = jax.ShapeDtypeStruct((batch * math.prod(sliding.space), channels), a.dtype)
        kernel = jax.ShapeDtypeStruct((sliding.offsets * channels, features), a.dtype)
        if layout == "forth":
            return forth(a, b)
        if layout == "to_x":
            return jax.linear_transpose(lambda x: forth(x, b), x)(a)[0]
        return jax.linear_transpose(lambda kernel: forth(a, kernel), kernel)(b)[0]

    return jax.vmap(one)(a, b)


def _anywhere(a: jax.Array, b: jax.Array, *, layout: Layout, sliding: Sliding) -> jax.Array:
    compute = {None: _elsewhere, "cuda": _compute, "tpu": _compute_on_tpu}[sliding.interpret]
    return compute(a, b, layout=layout, sliding=sliding)


def with_clients(bind: Callable[..., jax.Array], operands, axes, shared: bool, sliding: Sliding):
    """A primitive under ``vmap``: more clients, or one client's more images where they share all but these."""
    if shared:
        a, *rest = operands
        a = jnp.moveaxis(a, axes[0], 1)
        clients, size, rows, depth = a.shape
        many = sliding._replace(batch=size * sliding.batch)
        found = bind(a.reshape(clients, size * rows, depth), *rest, sliding=many)
        return found.reshape(clients, size, -1, found.shape[-1]), 1
    size = next(x.shape[axis] for x, axis in zip(operands, axes, strict=True) if axis is not None)
    merged = []
    for x, axis in zip(operands, axes, strict=True):
        x = jnp.broadcast_to(x, (size, *x.shape)) if axis is None else jnp.moveaxis(x, axis, 0)
        merged.append(x.reshape(-1, *x.shape[2:]))
    found = bind(*merged, sliding=sliding)
    return found.reshape(size, -1, *found.shape[1:]), 0


def _batched(operands, axes, *, layout: Layout, sliding: Sliding):
    shared = layout != "to_kernel" and axes[1] is None
    return with_clients(functools.partial(sliding_p.bind, layout=layout), operands, axes, shared, sliding)


@functools.partial(jax.jit, static_argnames=("layout", "sliding"))
def _evaluate(a: jax.Array, b: jax.Array, *, layout: Layout, sliding: Sliding) -> jax.Array:
    return sliding_p.bind(a, b, layout=layout, sliding=sliding)


sliding_p.def_impl(_evaluate)
sliding_p.def_abstract_eval(_abstract)
bilinear.differentiate(sliding_p, "forth", "to_x", "to_kernel")
batching.primitive_batchers[sliding_p] = _batched
mlir.register_lowering(sliding_p, mlir.lower_fun(_anywhere, multiple_results=False))
mlir.register_lowering(sliding_p, mlir.lower_fun(_compute, multiple_results=False), platform="cuda")
mlir.register_lowering(sliding_p, mlir.lower_fun(_compute_on_tpu, multiple_results=False), platform="tpu")
