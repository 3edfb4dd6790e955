"""The lane count when nobody gives one."""

from __future__ import annotations

from fedjax_sim.data.plans import Plan
from fedjax_sim.engines._costs import turn_costs
from fedjax_sim.engines._problem import Problem
from fedjax_sim.engines._state import SimState

_TURNS_PER_LANE = 12
"""With at least so many turns for each lane, longest first, the lanes that run dry early cost less than 5 %."""

_CPU_FLOPS = 8e6
"""A step of all lanes together that keeps one core busy; beyond it more lanes only spill the cache."""

_CPU_LANES = 4
_ACCELERATOR_LANES = 64


def auto_lanes(problem: Problem, state: SimState, plan: Plan, platform: str) -> int:
    """Lanes by backend, size of a step and length of the queue; ``docs/decisions/0004-auto-lanes.md`` has the figures."""
    turns = max(queue.entries.client.shape[-1] for queue in plan.queues)
    if platform == "cpu":
        flops = max(1.0, *(flops for costs in turn_costs(problem, state) for flops in costs.step_flops))
        wanted = min(_CPU_LANES, _CPU_FLOPS / flops)
    else:
        wanted = _ACCELERATOR_LANES
    return max(1, min(int(wanted), turns // _TURNS_PER_LANE if platform == "cpu" else turns))
