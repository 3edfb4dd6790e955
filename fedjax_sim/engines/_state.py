"""The state of a simulation: one pytree, which is also the checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim._src import tree


class ClientTable(NamedTuple):
    """State that clients keep between rounds; one row per client.

    Attributes:
      states: client rule's state per group, leaves ``[clients, ...]``; shared by all stages.
      parts: client part of the chain per stage, leaves ``[clients, ...]``.
      seen: ``bool[clients]``: the row holds a state; before, the rule's ``init`` makes it at first participation.
        ``()`` when no rule keeps state.
    """

    states: tuple
    parts: tuple
    seen: Any


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class SimState:
    """Everything that changes from round to round.

    Attributes:
      server: the algorithm's server state.
      clients: state that clients keep; numpy arrays where it lies in the host's memory, and what is indexed and
        computed with as read-only ones where on disk or in a store.
      aggregate: server part of the chain, per stage.
      round: ``int32[]``, index of the next round.
      key: root key of the run; never changes, rounds are folded in.
    """

    server: Any
    clients: ClientTable
    aggregate: tuple
    round: Any
    key: Any

    def __repr__(self) -> str:
        # Leaves may be anything while JAX takes the tree apart.
        server, clients = (
            tree.readable_bytes(sum(getattr(x, "nbytes", 0) for x in jax.tree.leaves(part)))
            for part in (self.server, self.clients)
        )
        return f"SimState(round {self.round}; server {server}, clients {clients})"


def check_is_state(state: Any) -> None:
    """Refuses what is no state at all.

    Raises:
      TypeError: says what was got and where a state comes from.
    """
    if isinstance(state, SimState):
        return
    fix = "make one with sim.init(seed=0), then sim.run(state, rounds=10)"
    if isinstance(state, tuple) and state and isinstance(state[0], SimState):
        fix = "sim.run returns two things: state, history = sim.run(...)"
    raise TypeError(f"state is {type(state).__name__}, expected a SimState: {fix}.")


def check_state(state: Any, template: SimState, algorithm: str, population: int) -> None:
    """Refuses a state that another algorithm, model or population made.

    Args:
      state: what was given.
      template: specs of a state of this simulation.
      algorithm: its name, for messages.
      population: its clients. The client table may have more rows, up to equal shares for the devices of any mesh,
        as long as nobody has used them.

    Raises:
      TypeError: no state.
      ValueError: names the part, what it is and what was expected.
    """
    check_is_state(state)
    for part in ("server", "clients", "aggregate", "round", "key"):
        got, expected = getattr(state, part), getattr(template, part)
        if jax.tree.structure(got) != jax.tree.structure(expected):
            raise ValueError(
                f"state.{part} has structure {jax.tree.structure(got)}, {algorithm} expects "
                f"{jax.tree.structure(expected)}: it is the state of another algorithm, chain or model. Start with "
                "sim.init(seed); to go on from a trained model, sim.init(variables=other.algorithm.params(state.server))."
            )
        for (path, x), y in zip(
            jax.tree.leaves_with_path(tree.spec(got)), jax.tree.leaves(expected), strict=True
        ):
            skip = 1 if part == "clients" else 0
            if x.dtype != y.dtype or x.shape[skip:] != y.shape[skip:] or len(x.shape) != len(y.shape):
                raise ValueError(
                    f"state.{part}{jax.tree_util.keystr(path)} is {x.dtype}{list(x.shape)}, {algorithm} expects "
                    f"{y.dtype}{list(y.shape)}: it is the state of another model, or of several runs of a sweep "
                    "(take one of Histories.states). Start with sim.init(seed)."
                )
    rows = {len(x) for x in jax.tree.leaves(state.clients)}
    if rows and (min(rows) < population or (max(rows) > population and _used(state.clients, population))):
        raise ValueError(
            f"state.clients keeps state of {min(rows)} clients, the data has {population}: it is the state of another "
            "population, and whose row is whose cannot be known. Start with sim.init(seed); to go on from its model, "
            "sim.init(variables=other.algorithm.params(state.server))."
        )


def _used(table: ClientTable, population: int) -> bool:
    """Whether a row beyond the population belongs to somebody: it was seen, or differs from those that pad."""
    if not isinstance(table.seen, tuple) and np.any(table.seen[population:]):
        return True
    for leaf in jax.tree.leaves(table.parts):
        padding = np.asarray(leaf[population:])
        # Padding is as it was made, the same for all, or zero where the table grew.
        used = padding[(padding != 0).any(axis=tuple(range(1, padding.ndim)))]
        if len(used) and (used != used[0]).any():
            return True
    return False
