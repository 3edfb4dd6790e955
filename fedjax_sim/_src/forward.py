"""How clients run a model: each with weights of its own, in a compiled loop."""

from __future__ import annotations

from fedjax_sim_kernels import client_batched

from fedjax_sim._src.types import Batch, Key, Outputs, PyTree, Task, Variables


def apply(
    task: Task, variables: Variables, batch: Batch, key: Key | None, *, train: bool
) -> tuple[Outputs, PyTree]:
    """``task.apply`` with the operations that ``vmap`` over clients and loops make slow in faster forms.

    Differentiation comes after it: the gradients are those of the faster forms.
    """
    return client_batched(lambda v, b, k: task.apply(v, b, k, train=train))(variables, batch, key)
