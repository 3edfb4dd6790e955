"""How clients run a model: each with weights of its own, in a compiled loop."""

from __future__ import annotations

import contextlib
from contextlib import AbstractContextManager

import jax
from fedjax_sim_kernels import client_batched

from fedjax_sim._src.types import Batch, Key, Outputs, PyTree, Task, Variables


def apply(
    task: Task, variables: Variables, batch: Batch, key: Key | None, *, train: bool
) -> tuple[Outputs, PyTree]:
    """``task.apply`` with the operations that ``vmap`` over clients and loops make slow in faster forms.

    Differentiation comes after it: the gradients are those of the faster forms.
    """
    # The rules of custom derivatives (``jax.custom_jvp``) run in here, behind the tracing of task.apply.
    with products_at(task.products):
        return client_batched(lambda v, b, k: task.apply(v, b, k, train=train))(variables, batch, key)


def products_at(precision: str | None) -> AbstractContextManager:
    """Inside, matrix products are traced with a precision; with JAX's own setting for ``None``."""
    return contextlib.nullcontext() if precision is None else jax.default_matmul_precision(precision)
