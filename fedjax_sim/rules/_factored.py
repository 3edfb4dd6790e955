"""Plain SGD that keeps wide dense layers as what all clients share plus a sum of outer products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from fedjax_sim_kernels import client_batched
from fedjax_sim_kernels.products import Outer

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Array, ClientRule, Delta, PyTree, Task, Variables
from fedjax_sim.rules._gradients import gradient

Leaves = dict[str, Array]
"""Parameters by path, ``"Dense_0/kernel"``."""


class Factors(NamedTuple):
    """What one dense layer has learned: its weights are those of the broadcast plus ``left^T @ right``.

    Attributes:
      left: ``f32[steps, batch, depth]``, the rows that the layer saw.
      right: ``f32[steps, batch, features]``, minus the learning rate times the gradient by its products.
    """

    left: Array
    right: Array


class FactoredTraining(NamedTuple):
    """A client's working state: parameters that it holds, factors of those that it does not, statistics, steps."""

    params: Leaves
    factors: dict[str, Factors]
    stats: PyTree
    step: Array


def factored_sgd(
    task: Task, learning_rate: float, layers: str | Sequence[str], *, steps: int, batch_size: int
) -> ClientRule:
    """``local_sgd`` with plain SGD, for models whose time goes into moving wide dense layers through memory.

    After a few steps of SGD the weights of a dense layer are ``W0 - lr * sum_s X_s^T D_s``: what the server sent, which is
    one array for all clients, and an outer product for every step, of the rows that the layer saw and the gradients by its
    outputs. Kept in that form, a client that sees ``n`` rows moves ``n * (depth + features)`` numbers and not several times
    ``depth * features`` in every step; the products with ``W0`` become one large product for all clients. The same to
    rounding as ``local_sgd(task, optax.sgd(learning_rate))``, whose update it sends. It moves less where ``steps * batch_size``
    is far below ``depth * features / (depth + features)``, which paid on a GPU; on a CPU it was not measured.

    Args:
      task: any whose statistics are not kept by the clients; the named layers must be dense ones that see one row per example, and nothing else may use their weights.
      learning_rate: of the clients' SGD.
      layers: paths of the layers' weights, such as ``"Dense_0/kernel"``; or one of them.
      steps: most local steps that a client takes.
      batch_size: rows of a batch, as in ``LocalWork``.

    Raises:
      ValueError: no layers, a path that the model does not have, other batches than ``batch_size`` says, a learning rate that
        is not above 0, or a task whose statistics stay with the clients.
      TypeError: weights that are used otherwise than in one dense layer.

    Example:
      >>> import jax, jax.numpy as jnp, optax, fedjax_sim as fs
      >>> task = fs.tasks.classification(fs.models.mlp(classes=3, hidden=(5,)), sample_input=jnp.zeros((1, 8)))
      >>> batches = {"x": jnp.ones((2, 4, 8)), "y": jnp.zeros((2, 4), int)}     # two steps of four rows
      >>> rule = fs.rules.factored_sgd(task, 0.1, ["Dense_0/kernel"], steps=2, batch_size=4)
      >>> plain = fs.rules.local_sgd(task, optax.sgd(0.1))
      >>> model, key = task.init(jax.random.key(0)), jax.random.key(1)
      >>> one, other = (fs.rules.run(r, model, batches, key).params["Dense_0"]["kernel"] for r in (rule, plain))
      >>> bool(jnp.allclose(one, other, atol=1e-6))
      True
    """
    checks.task(task)
    checks.positive_int("steps", steps)
    checks.positive_int("batch_size", batch_size)
    checks.positive("learning_rate", learning_rate)
    names = (layers,) if isinstance(layers, str) else tuple(layers)
    if not names:
        raise ValueError(
            "layers is empty, expected paths of dense layers' weights, such as 'Dense_0/kernel'."
        )
    if task.stats_policy == "local":
        raise ValueError(
            "factored_sgd keeps no statistics per client: use batch_stats='averaged', or local_sgd."
        )

    def begin(broadcast: Variables, state, ctx):
        leaves = _by_path(broadcast.params)
        factors = {name: _no_factors(name, leaves, steps, batch_size) for name in names}
        held = {name: leaf for name, leaf in leaves.items() if name not in factors}
        return FactoredTraining(held, factors, broadcast.stats, jnp.zeros((), jnp.int32))

    def step(broadcast: Variables, work: FactoredTraining, batch, ctx):
        if batch["mask"].shape != (batch_size,):
            raise ValueError(
                f"factored_sgd was made for batches of {batch_size} rows, one a step, and got a batch of shape "
                f"{batch['mask'].shape}: give it the batch_size of the local work, with batches_per_step=1."
            )
        bases = _by_path(broadcast.params)
        probes = {name: jnp.zeros_like(factors.right[0]) for name, factors in work.factors.items()}
        observed = _observed(task, bases, work.factors, jax.tree.structure(broadcast.params))
        variables = Variables((work.params, probes), broadcast.frozen, work.stats)
        (grads, by_outputs), (stats, seen), metrics = gradient(observed, variables, batch, ctx.key)
        held = jax.tree.map(lambda x, g: x - learning_rate * g, work.params, grads)
        factors = {
            name: Factors(
                _put(old.left, seen[name], work.step),
                _put(old.right, -learning_rate * by_outputs[name], work.step),
            )
            for name, old in work.factors.items()
        }
        return FactoredTraining(held, factors, stats, work.step + 1), metrics

    def change(broadcast: Variables, work: FactoredTraining) -> PyTree:
        moved = {
            name: work.params[name] - leaf
            for name, leaf in _by_path(broadcast.params).items()
            if name in work.params
        }
        moved |= {name: _written_out(factors, task.products) for name, factors in work.factors.items()}
        return _as_tree(moved, broadcast.params)

    def finish(broadcast: Variables, work: FactoredTraining, state, ctx):
        return Delta(change(broadcast, work), tree.subtract(work.stats, broadcast.stats)), state, {}

    def model(broadcast: Variables, work: FactoredTraining) -> Variables:
        return Variables(tree.add(broadcast.params, change(broadcast, work)), broadcast.frozen, work.stats)

    return ClientRule(lambda broadcast: (), begin, step, finish, model, most_steps=steps)


def _by_path(params: PyTree) -> Leaves:
    found, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(keys, simple=True, separator="/"): leaf for keys, leaf in found}


def _as_tree(leaves: Leaves, like: PyTree) -> PyTree:
    return jax.tree.unflatten(jax.tree.structure(like), [leaves[name] for name in _by_path(like)])


def _no_factors(name: str, leaves: Leaves, steps: int, batch_size: int) -> Factors:
    if name not in leaves or leaves[name].ndim != 2:
        wide = [path for path, leaf in leaves.items() if leaf.ndim == 2]
        raise ValueError(f"layers has {name!r}, expected weights of dense layers of the model: {wide}.")
    return Factors(*(jnp.zeros((steps, batch_size, size), jnp.float32) for size in leaves[name].shape))


def _observed(task: Task, bases: Leaves, factors: dict[str, Factors], structure: Any) -> Task:
    """The task over what a client holds and probes behind the other layers; as statistics also what those layers saw."""

    def apply(variables: Variables, batch, key, *, train: bool):
        held, probes = variables.params
        outers = {
            name: Outer(bases[name], _rows(found.left), _rows(found.right), probes[name])
            for name, found in factors.items()
        }
        params = jax.tree.unflatten(structure, [{**held, **outers}[name] for name in bases])
        run = client_batched(lambda v, b, k: task.apply(v, b, k, train=train))
        outputs, stats = run(Variables(params, variables.frozen, variables.stats), batch, key)
        for name, outer in outers.items():
            if len(outer.seen) != 1:
                raise TypeError(
                    f"layers has {name!r}, which the model uses {len(outer.seen)} times, expected once."
                )
        return outputs, (stats, {name: outer.seen[0] for name, outer in outers.items()})

    return task._replace(apply=apply)


def _put(rows: Array, new: Array, step: Array) -> Array:
    return tree.with_row(rows, step, new.astype(rows.dtype))


def _written_out(factors: Factors, precision: str | None) -> Array:
    return jnp.matmul(_rows(factors.left).T, _rows(factors.right), precision=precision)


def _rows(of_steps: Array) -> Array:
    """The rows of all steps, one below the other."""
    return of_steps.reshape(-1, of_steps.shape[-1])
