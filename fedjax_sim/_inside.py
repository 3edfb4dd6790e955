"""The part of a simulation that shows what is inside: its description, its plans and its program."""

from __future__ import annotations

from typing import Any

import numpy as np

from fedjax_sim._client_state import ClientStates
from fedjax_sim._description import describe, model_precision
from fedjax_sim._feed import Feed
from fedjax_sim._runner import root_words
from fedjax_sim._src.types import Algorithm
from fedjax_sim.data.client_source import Clients
from fedjax_sim.data.cohorts import Cohort
from fedjax_sim.data.local_work import LocalWork
from fedjax_sim.data.plans import Plan, Planner
from fedjax_sim.engines import Engine, RoundFn, SimState
from fedjax_sim.engines._problem import Problem, group_names, keeps_client_state


class Inspected:
    """What a simulation is made of, to look at; nothing here trains."""

    algorithm: Algorithm
    cohort: Cohort
    data: Clients
    engine: Engine
    local: LocalWork
    rounds_per_chunk: int
    _clients: ClientStates
    _feed: Feed
    _group: np.ndarray
    _problem: Problem
    _rounds: RoundFn
    _template: SimState

    def planner(self, replicas: int = 1) -> Planner:
        """The host's side of a round: who trains where, for how long."""
        works = self._problem.works(self.algorithm)
        return Planner(
            self.data.sizes,
            self.data.offsets[:-1],
            self.cohort,
            works,
            self._group,
            len(group_names(self.algorithm)),
            replicas,
            self.engine.devices,
            homes=keeps_client_state(self._template) and self.engine.devices > 1,
        )

    def describe(self, state: SimState) -> dict[str, Any]:
        """What a run is, as far as it can be seen, in JSON's types; a checkpoint belongs to one such description.

        Hyper-parameters that an algorithm closes over cannot be seen: give them to ``Checkpoints(settings=...)``.
        The engine is not part of it, a run may go on with other devices or lanes.
        """
        precision = model_precision(self.algorithm, self._problem, self._template)
        return describe(self.algorithm, self.data, self._group, self.cohort, self.local, state, precision)

    def plan(self, state: SimState, rounds: int | None = None) -> Plan:
        """The plan of the next rounds, at most a chunk of them."""
        rounds = self.rounds_per_chunk if rounds is None else rounds
        return self.planner().plan(root_words(state), int(state.round), rounds, self.rounds_per_chunk)

    def lower(self, state: SimState):
        """The lowered program of a chunk of rounds: its memory, cost and text can be looked at."""
        return self._rounds.lower(*self._lent(state, self.rounds_per_chunk))

    @property
    def compilations(self) -> int:
        """Programs compiled so far for chunks of rounds."""
        return self._rounds.compilations()

    def chunk(self, state: SimState, rounds: int) -> tuple[Plan, Any]:
        """The plan of the next rounds, in arrays with room for as many, and the examples on the devices."""
        place, roots = self._rounds.place_columns, root_words(state)
        with self._feed.chunks(self.planner(), place, roots, rounds) as chunks:
            chunks.ask(int(state.round), rounds)
            return chunks.take()

    def _lent(self, state: SimState, rounds: int) -> tuple[SimState, Any, Plan]:
        """What the engine gets for the chunk of the next rounds: state, columns and plan."""
        plan, columns = self.chunk(state, rounds)
        lent, plan, _ = self._clients.lend(self._rounds, self._clients.fitted(state), plan)
        return lent, columns, plan
