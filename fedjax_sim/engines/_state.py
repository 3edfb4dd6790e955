"""The state of a simulation: one pytree, which is also the checkpoint."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax


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
      clients: state that clients keep.
      aggregate: server part of the chain, per stage.
      round: ``int32[]``, index of the next round.
      key: root key of the run; never changes, rounds are folded in.
    """

    server: Any
    clients: ClientTable
    aggregate: tuple
    round: Any
    key: Any
