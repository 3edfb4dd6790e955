"""The precision that a model computes with: chosen for a task, and read off a traced one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, jaxprs_in_params

from fedjax_sim._src import checks, forward
from fedjax_sim._src.types import Batch, Key, Outputs, PyTree, Task, Variables

__all__ = ["precision_of", "with_precision"]

Compute = Literal["float32", "bfloat16"]
Products = Literal["default", "high", "highest"]


def with_precision(task: Task, compute: Compute | None = None, products: Products | None = None) -> Task:
    """The same task, its model computing in another dtype, or its products with another precision.

    Parameters, gradients, optimizer state, updates, sums over clients, losses, metrics and batch statistics stay as
    they are, float32 as a rule. With ``compute``, ``apply`` casts what it is given, the parameters (those that are
    frozen, too) and the batch's floating columns, and casts the outputs to float32: so the gradient is float32 again.
    Whole numbers, masks, and batch statistics pass as they are. A layer that was told a dtype or a precision of its
    own keeps it, and a float32 array inside a model (a constant, or the statistics of an ``nnx.BatchNorm`` without a
    dtype) makes float32 of what it meets. Of two calls the inner one decides. ``History.costs.precision`` and
    checkpoints say what the program really computes with.

    In bfloat16, products add up in float32 and are rounded once, but other sums inside the model (the gradient of a
    bias, over the rows and positions that it was added to) are taken as the backend takes sums of bfloat16.

    Args:
      task: any task; ``tasks.trainable`` may stand on either side.
      compute: dtype that the model computes in; float16 is left out, for its gradients vanish without a scaled loss.
      products: JAX's precision of products of float32 matrices and of convolutions, forward and in the gradient (see
        ``jax.lax.Precision``). On CPU they are float32 whatever it says. On NVIDIA GPUs from A100 on, H100 and H200
        included, ``"default"`` and ``"high"`` are TF32, with a mantissa of 10 bits, and ``"highest"`` is float32. On
        TPU they are one, three and six passes of bfloat16. Where it is not given, it is JAX's setting
        ``jax_default_matmul_precision``, which is ``"default"`` if nobody has changed it.

    Raises:
      TypeError: something else than a task.
      ValueError: another dtype or precision.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.classification(models.linear(10), sample_input=(1, 64))
    >>> task = tasks.with_precision(task, compute="bfloat16")
    >>> batch = {"x": jnp.zeros((2, 64)), "y": jnp.array([3, 7]), "mask": jnp.ones(2, bool)}
    >>> variables = task.init(jax.random.key(0))
    >>> outputs, _ = task.apply(variables, batch, None, train=False)
    >>> outputs.dtype, {str(x.dtype) for x in jax.tree.leaves(variables.params)}
    (dtype('float32'), {'float32'})
    """
    checks.task(task)
    if compute is not None:
        checks.one_of("compute", compute, get_args(Compute))
    if products is not None:
        checks.one_of("products", products, get_args(Products))

    def apply(variables: Variables, batch: Batch, key: Key | None, *, train: bool) -> tuple[Outputs, PyTree]:
        with forward.products_at(products):
            if compute is None:
                return task.apply(variables, batch, key, train=train)
            params, frozen, columns = _cast((variables.params, variables.frozen, dict(batch)), compute)
            outputs, stats = task.apply(Variables(params, frozen, variables.stats), columns, key, train=train)
        kept = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), stats, variables.stats)
        return _cast(outputs, "float32"), kept

    if compute is None and products is None:
        return task
    return task._replace(apply=apply, products=task.products or products)


def _cast(values: PyTree, dtype: Compute) -> PyTree:
    """Floating arrays in another dtype; integers, masks and keys as they are."""
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, values
    )


def precision_of(task: Task, variables: Variables, batch: Mapping[str, Any]) -> str:
    """What a task's model computes with, read off its traced program; nothing is computed.

    Args:
      task: whose ``apply`` is traced, as in training.
      variables: arrays, or ``ShapeDtypeStruct``.
      batch: likewise, ``[batch, ...]``.

    Returns:
      Dtypes of the parameters, and of the operands of matrix products and convolutions, with the precision that those
      ask for.

    >>> import jax, jax.numpy as jnp
    >>> from fedjax_sim import models, tasks
    >>> from fedjax_sim.tasks.precision import precision_of
    >>> task = tasks.classification(models.linear(10), sample_input=(1, 64))
    >>> batch = {"x": jnp.zeros((2, 64)), "y": jnp.array([3, 7]), "mask": jnp.ones(2, bool)}
    >>> precision_of(tasks.with_precision(task, "bfloat16"), task.init(jax.random.key(0)), batch)
    'float32 parameters, bfloat16 products at default precision'
    """
    key = jax.eval_shape(lambda: jax.random.key(0))
    traced = jax.jit(task.apply, static_argnames="train").trace(variables, batch, key, train=True)
    parameters = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(variables.params)})
    said = products_of(traced.jaxpr.jaxpr)
    return f"{' and '.join(parameters)} parameters, {', '.join(said) or 'no products'}"


def products_of(program: Jaxpr) -> tuple[str, ...]:
    """Dtypes and precisions of the products in a program, each once."""
    found = sorted(set(_products(program)))
    return tuple(f"{dtype} products at {precision} precision" for dtype, precision in found)


def _products(program: Jaxpr) -> Iterator[tuple[str, str]]:
    """Dtype and precision of every product in a program, at any depth."""
    for equation in program.eqns:
        if equation.primitive.name in ("dot_general", "contract", "panels", "conv_general_dilated"):
            operands: Any = [operand.aval for operand in equation.invars]
            dtypes = dict.fromkeys(str(operand.dtype) for operand in operands)
            yield " x ".join(dtypes), _said(equation.params["precision"])
        for inner in jaxprs_in_params(equation.params):
            yield from _products(inner)


def _said(precision: Any) -> str:
    """A product's setting in JAX's words: nothing, one for each operand, or an algorithm."""
    each = precision if isinstance(precision, tuple) else (precision,)
    return " x ".join(dict.fromkeys("default" if one is None else str(one).lower() for one in each))
