"""The lane count when nobody gives one."""

from __future__ import annotations

import jax

from fedjax_sim._src import tree
from fedjax_sim.engines._problem import Problem
from fedjax_sim.engines._state import SimState


def auto_lanes(problem: Problem, state: SimState, platform: str) -> int:
    """Lanes by backend and by the size of the model; see ``docs/decisions/0004-auto-lanes.md`` for the measurements."""
    parameters = tree.size(jax.tree.leaves(problem.algorithm().params(_one_replica(problem, state)).params))
    if platform == "cpu":
        return 16 if parameters < 30_000 else 1
    return 64


def _one_replica(problem: Problem, state: SimState):
    if problem.replicas is None:
        return state.server
    return jax.tree.map(lambda x: x[0], state.server)
