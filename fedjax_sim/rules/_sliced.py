"""A narrower model inside a wide one: HeteroFL's client."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src import tree
from fedjax_sim._src.types import ClientRule, Delta, PyTree, Variables


def sliced(rule: ClientRule, shapes: PyTree) -> ClientRule:
    """Runs ``rule`` on the leading corner of every parameter (Diao et al. 2021, section 3).

    The update has full shape, as ``coverage_mean`` wants it: ``(delta, coverage)``, zero outside the corner.

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
        return (Delta(full), Delta(jax.tree.map(widen, ones, broadcast.params))), state, metrics

    return ClientRule(
        lambda broadcast: (),
        lambda broadcast, state, ctx: rule.begin(own(broadcast), (), ctx),
        lambda broadcast, work, batch, ctx: rule.step(own(broadcast), work, batch, ctx),
        finish,
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
