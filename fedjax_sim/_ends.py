"""Replicas of one program that end earlier than others, each behind the last round that its budget pays for."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim.engines import SimState


class Ends:
    """Where replicas end, and what they ended with.

    A replica that has ended stays in the program, and nobody comes to it any more: ``Planner.ends``. Noise alone would
    still move its model, so what it ended with is put back after every chunk; no chunk goes beyond an end.

    Args:
      of: rounds of the state's life after which each replica ends; ``None`` where all go on.
    """

    def __init__(self, of: tuple[int, ...] | None):
        self.of = of
        self._held: dict[int, Any] = {}

    @property
    def last(self) -> int | None:
        return None if self.of is None else max(self.of)

    def next(self, done: int) -> int | None:
        """The first end behind ``done`` rounds."""
        return min((end for end in self.of or () if end > done), default=None)

    def before(self, replica: int, rounds: int) -> int:
        """Of ``rounds`` rounds those that a replica has."""
        return rounds if self.of is None else min(rounds, self.of[replica])

    def over(self, replica: int, done: int) -> bool:
        return self.of is not None and self.of[replica] <= done

    def hold(self, state: SimState, done: int) -> SimState:
        """The state of all replicas after ``done`` rounds, those that have ended as they were then."""
        moving = (state.server, state.aggregate)
        for replica in range(len(self.of or ())):
            if replica in self._held:
                held = self._held[replica]
                moving = jax.tree.map(lambda x, own, r=replica: x.at[r].set(own), moving, held)
            elif self.over(replica, done):
                self._held[replica] = jax.tree.map(lambda x, r=replica: x[r].copy(), moving)
        return dataclasses.replace(state, server=moving[0], aggregate=moving[1])

    def dated(self, state: SimState) -> SimState:
        """The state with each replica's own number of rounds; while the program runs, all have that of the longest."""
        if self.of is None:
            return state
        return dataclasses.replace(state, round=jnp.minimum(state.round, jnp.array(self.of, jnp.int32)))
