"""Low-rank adapters: the pretrained weights stay as they are, and clients train a small product beside each."""

from __future__ import annotations

import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, traverse_util

from fedjax_sim._src import checks, keys
from fedjax_sim._src.types import Batch, Key, Outputs, PyTree, Task, Variables
from fedjax_sim.tasks.freeze import compiled, flat_params

__all__ = ["Adapters", "lora", "merge_lora"]


class Adapters(NamedTuple):
    """What ``lora`` trains.

    Attributes:
      a: ``{path: [inputs, rank]}``, of the kernel at the path with all axes but the last taken together; empty where they
        are frozen.
      b: ``{path: [rank, outputs]}``.
      full: nested dicts of the parameters that are trained as they are.
    """

    a: dict[str, Any]
    b: dict[str, Any]
    full: PyTree


class _Frozen(NamedTuple):
    base: PyTree
    a: dict[str, Any]
    scale: Any
    inner: PyTree


def lora(
    task: Task,
    rank: int,
    targets: str = "kernel$",
    *,
    alpha: float | None = None,
    full: str | None = None,
    freeze_a: bool = False,
) -> Task:
    """The same task with a trained product of two thin matrices beside each chosen kernel: ``W + alpha / rank * A B``.

    Everything else is frozen: broadcast once, never sent, never clipped, never noised. ``B`` starts at zero, so that the
    first model is the pretrained one. Beside a dense layer of flax.linen the product is taken with the input, ``x A B``, so
    that the clients of a program share the product ``x W``; any other kernel is replaced by the sum.

    Args:
      task: a task whose parameters are nested dicts with string keys, for example from ``tasks.pretrained``.
      rank: of the products.
      targets: a regular expression, found in a parameter's path such as ``"Dense_1/kernel"``; of what it finds, parameters
        with two axes or more get adapters.
      alpha: scale times rank; ``None`` takes ``rank``, a scale of 1.
      full: a regular expression for parameters that are trained as they are, such as a new head; none by default.
      freeze_a: ``A`` keeps its random start and is not sent (FFA-LoRA): with noise, that of ``A`` times that of ``B`` is
        gone, and half of what is noised.

    Raises:
      ValueError: a rank below 1, text that is no regular expression; at ``init``, ``targets`` or ``full`` find nothing, or both find the same parameter.
      TypeError: at ``init``, the parameters are not nested dicts.

    Source: Hu et al. 2022, "LoRA"; Sun et al. 2024, "Improving LoRA in Privacy-preserving Federated Learning" (FFA-LoRA).

    >>> import jax
    >>> from fedjax_sim import models, tasks
    >>> task = tasks.lora(tasks.classification(models.mlp(10), sample_input=(1, 64)), rank=2, full="^Dense_2/")
    >>> variables = task.init(jax.random.key(0))
    >>> sorted(variables.params.b), sorted(variables.params.full)
    (['Dense_0/kernel', 'Dense_1/kernel'], ['Dense_2'])
    """
    checks.positive_int("rank", rank)
    compiled("targets", targets)
    if full is not None:
        compiled("full", full)
    scale = 1.0 if alpha is None else alpha / rank
    checks.positive("alpha", scale)

    def init(key: Key, sample: Batch | None = None) -> Variables:
        variables = task.init(key, sample)
        flat = {"/".join(path): value for path, value in flat_params(variables.params).items()}
        whole = [] if full is None else [path for path in flat if re.search(full, path)]
        chosen = [p for p, x in flat.items() if re.search(targets, p) and jnp.ndim(x) >= 2 and p not in whole]
        for name, pattern, found in (("targets", targets, chosen), ("full", full, whole)):
            if pattern is not None and not found:
                raise ValueError(f"{name} {pattern!r} finds no parameter; the paths are {', '.join(flat)}.")
        a, b = {}, {}
        for number, path in enumerate(chosen):
            kernel = flat[path]
            inputs, outputs = math.prod(kernel.shape[:-1]), kernel.shape[-1]
            draw = jax.random.normal(keys.fold(key, keys.ADAPTERS, number), (inputs, rank), jnp.float32)
            a[path] = (draw / math.sqrt(inputs)).astype(kernel.dtype)
            b[path] = jnp.zeros((rank, outputs), kernel.dtype)
        base = _nested({path: value for path, value in flat.items() if path not in whole})
        trained = Adapters({} if freeze_a else a, b, _nested({path: flat[path] for path in whole}))
        frozen = _Frozen(base, a if freeze_a else {}, jnp.asarray(scale, jnp.float32), variables.frozen)
        return Variables(trained, frozen, variables.stats)

    def apply(variables: Variables, batch: Batch, key: Key | None, *, train: bool) -> tuple[Outputs, PyTree]:
        adapters, frozen = variables.params, variables.frozen
        a = adapters.a or frozen.a
        base = _flat(frozen.base)
        whole = Variables(_nested({**base, **_flat(adapters.full)}), frozen.inner, variables.stats)
        beside = _dense_kernels(task, whole, batch, key, train) & {p for p in a if jnp.ndim(base[p]) == 2}
        merged = {
            path: _plus(base[path], a[path], adapters.b[path], frozen.scale)
            for path in a
            if path not in beside
        }
        params = _nested({**base, **_flat(adapters.full), **merged})

        def add(call, args, kwargs, context):
            result, path = call(*args, **kwargs), _kernel_of(context)
            if path not in beside:
                return result
            x = args[0] if args else kwargs["inputs"]
            low = (x.astype(result.dtype) @ a[path].astype(result.dtype)) @ adapters.b[path].astype(
                result.dtype
            )
            return result + low * frozen.scale.astype(result.dtype)

        with linen.intercept_methods(add):
            return task.apply(Variables(params, frozen.inner, variables.stats), batch, key, train=train)

    return task._replace(init=init, apply=apply)


def merge_lora(variables: Variables) -> Variables:
    """The variables of the task inside, each product added to its kernel: what the adapted model is without adapters.

    Args:
      variables: of a task from ``lora``.

    Raises:
      TypeError: variables of another task.

    >>> import jax
    >>> from fedjax_sim import models, tasks
    >>> inner = tasks.classification(models.linear(10), sample_input=(1, 64))
    >>> merged = tasks.merge_lora(tasks.lora(inner, rank=2).init(jax.random.key(0)))
    >>> sorted(merged.params["Dense_0"])
    ['bias', 'kernel']
    """
    adapters, frozen = variables.params, variables.frozen
    if not isinstance(adapters, Adapters) or not isinstance(frozen, _Frozen):
        raise TypeError(
            f"variables.params is {type(adapters).__name__}, expected Adapters: variables of a task that tasks.lora made."
        )
    a, base = adapters.a or frozen.a, _flat(frozen.base)
    merged = {path: _plus(base[path], a[path], adapters.b[path], frozen.scale) for path in a}
    return Variables(_nested({**base, **_flat(adapters.full), **merged}), frozen.inner, variables.stats)


def _plus(kernel, a, b, scale):
    product = (a.astype(jnp.float32) @ b.astype(jnp.float32)) * scale
    return (kernel.astype(jnp.float32) + product.reshape(kernel.shape)).astype(kernel.dtype)


def _dense_kernels(task: Task, variables: Variables, batch: Batch, key: Key | None, train: bool) -> set[str]:
    """Paths of the kernels that flax.linen's dense layers multiply with, found by running the model on specs."""
    found = set()

    def look(call, args, kwargs, context):
        found.add(_kernel_of(context))
        return call(*args, **kwargs)

    with linen.intercept_methods(look):
        jax.eval_shape(lambda v, b: task.apply(v, b, key, train=train), variables, dict(batch))
    return found - {None}


def _kernel_of(context) -> str | None:
    """The path of the kernel that a call of a dense layer multiplies with; ``None`` for any other call."""
    if type(context.module) is not linen.Dense or context.method_name != "__call__":
        return None
    return "/".join((*context.module.path, "kernel"))


def _flat(params: PyTree) -> dict[str, Any]:
    return {"/".join(path): value for path, value in flat_params(params).items()}


def _nested(flat: dict[str, Any]) -> PyTree:
    return traverse_util.unflatten_dict({tuple(path.split("/")): value for path, value in flat.items()})
