"""The server's side that most algorithms share: an optax step on the pseudo-gradient."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Delta, Mean, PyTree, Transform, Variables


class ServerState(NamedTuple):
    """The global model and the server optimizer's state."""

    variables: Variables
    optimizer: PyTree


def init(optimizer: optax.GradientTransformation):
    """``Algorithm.init`` for an optimizer."""
    checks.optimizer("server optimizer", optimizer)

    def init_(variables: Variables) -> ServerState:
        return ServerState(variables, optimizer.init(variables.params))

    return init_


def apply_delta(
    optimizer: optax.GradientTransformation, variables: Variables, state: PyTree, delta: Delta
) -> tuple[Variables, PyTree]:
    """One server step: minus the mean update is the pseudo-gradient (Reddi et al. 2021, algorithm 1).

    Statistics move by their mean change, integers among them by the nearest integer; the optimizer does not see them.

    Raises:
      TypeError: the update is no ``Delta``, or has another structure or other shapes than the model; names the leaf.
    """
    _check_delta(delta, variables)
    pseudo_gradient = tree.scale(delta.params, -1.0)
    updates, state = optimizer.update(pseudo_gradient, state, variables.params)
    params = optax.apply_updates(variables.params, updates)
    stats = variables.stats if delta.stats == () else tree.move(variables.stats, delta.stats)
    return variables._replace(params=params, stats=stats), state


def _check_delta(delta: Delta, variables: Variables) -> None:
    if not isinstance(delta, Delta):
        raise TypeError(
            f"the clients' mean update is a {type(delta).__name__}, expected a Delta: let the rule's finish return "
            "Delta(params, stats), whose params have the structure and shapes of the model's, Variables.params."
        )
    for name, moves, moved in (
        ("params", delta.params, variables.params),
        ("stats", delta.stats, () if delta.stats == () else variables.stats),
    ):
        if jax.tree.structure(moves) != jax.tree.structure(moved):
            raise TypeError(
                f"the update's {name} have the structure {jax.tree.structure(moves)}, expected that of the model's, "
                f"{jax.tree.structure(moved)}."
            )
        for (path, move), leaf in zip(jax.tree.leaves_with_path(moves), jax.tree.leaves(moved), strict=True):
            if jnp.shape(move) != jnp.shape(leaf):
                raise TypeError(
                    f"the update's {name}{jax.tree_util.keystr(path)} has the shape {list(jnp.shape(move))}, expected that "
                    f"of the model's, {list(jnp.shape(leaf))}."
                )


def refuse_plain_mean(algorithm: str, aggregate: Transform, instead: str) -> None:
    """Refuses ``mean(...)`` where each coordinate has a number of clients of its own.

    Raises:
      ValueError: ``aggregate`` holds a ``mean``.
    """
    if any(fact.name == "mean" for fact in aggregate.facts):
        raise ValueError(
            f"{algorithm}'s aggregate holds mean(...), which divides every coordinate by the whole cohort, also where "
            f"only some of the clients have it. Use {instead}(), for example chain(clip_by_global_norm(C), {instead}())."
        )


def update(optimizer: optax.GradientTransformation):
    """``Stage.update`` for an optimizer and a ``Delta``."""

    def update_(server: ServerState, delta: Delta, ctx) -> tuple[ServerState, dict[str, Mean]]:
        variables, state = apply_delta(optimizer, server.variables, server.optimizer, delta)
        return ServerState(variables, state), {
            "aggregate_norm": Mean(tree.global_norm(delta.params), jnp.ones(()))
        }

    return update_
