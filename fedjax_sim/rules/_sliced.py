"""A narrower model inside a wide one: HeteroFL's client."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src import tree
from fedjax_sim._src.types import ClientRule, Delta, Message, PyTree, Variables


def sliced(rule: ClientRule, shapes: PyTree) -> ClientRule:
    """Runs ``rule`` on the leading corner of every parameter (Diao et al. 2021, section 3).

    The update is a ``Delta`` of full shape, zero outside the corner, and beside it travels, as ``coverage_mean`` wants
    it, ``{"coverage": ...}``: 1 inside the corner. Traffic is counted for the corner alone: the server knows the rest.

    Args:
      rule: takes ``Variables``, keeps no state, sends a ``Delta`` without statistics.
      shapes: the narrow model's parameters, arrays or ``ShapeDtypeStruct``, of the same structure as the wide one's.
    """

    def corner(x, small):
        return x[tuple(slice(0, n) for n in small.shape)]

    def own(broadcast: Variables) -> Variables:
        _check_corner(shapes, broadcast.params)
        return broadcast._replace(params=jax.tree.map(corner, broadcast.params, shapes))

    def widen(x, full):
        return jnp.pad(x, [(0, n - m) for n, m in zip(full.shape, x.shape, strict=True)])

    def finish(broadcast: Variables, work, state, ctx):
        update, _, metrics = rule.finish(own(broadcast), work, (), ctx)
        full = jax.tree.map(widen, update.params, broadcast.params)
        ones = jax.tree.map(lambda s: jnp.ones(s.shape, jnp.float32), tree.spec(shapes))
        coverage = Delta(jax.tree.map(widen, ones, broadcast.params))
        return Message(Delta(full), {"coverage": coverage}), state, metrics

    def sends(message: Message):
        if not isinstance(message.value, Delta):  # a layer has made something else of it
            return message
        aux = {name: value for name, value in message.aux.items() if name != "coverage"}
        return message._replace(value=jax.tree.map(corner, message.value.params, shapes), aux=aux)

    return ClientRule(
        lambda broadcast: (),
        lambda broadcast, state, ctx: rule.begin(own(broadcast), (), ctx),
        lambda broadcast, work, batch, ctx: rule.step(own(broadcast), work, batch, ctx),
        finish,
        receives=own,
        sends=sends,
        most_steps=rule.most_steps,
    )


def _check_corner(narrow: PyTree, wide: PyTree) -> None:
    if jax.tree.structure(narrow) != jax.tree.structure(wide):
        raise ValueError(
            f"the narrow model has parameters {jax.tree.structure(narrow)}, the wide one "
            f"{jax.tree.structure(wide)}: they must have the same layers."
        )
    for (path, small), large in zip(jax.tree.leaves_with_path(narrow), jax.tree.leaves(wide), strict=True):
        if len(small.shape) != len(large.shape) or any(
            m > n for m, n in zip(small.shape, large.shape, strict=False)
        ):
            raise ValueError(
                f"parameter {jax.tree_util.keystr(path)} of the narrow model has shape {small.shape}, which does not "
                f"fit into the wide one's {large.shape}."
            )
