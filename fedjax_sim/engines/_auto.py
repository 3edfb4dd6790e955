"""The layout when nobody gives one: what was measured on this machine for these shapes, else a rule. And a chunk's length."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from fedjax_sim._src import machine
from fedjax_sim.data.plans import Plan
from fedjax_sim.engines._costs import step_flops, turn_costs
from fedjax_sim.engines._problem import Problem
from fedjax_sim.engines._state import SimState

FinishForm = Literal["compact", "masked"]

_TURNS_PER_LANE = 12
"""With at least so many turns for each lane, longest first, the lanes that run dry early cost less than 5 %."""

_CPU_FLOPS = 8e6
"""A step of all lanes together that keeps one core busy; beyond it more lanes only spill the cache."""

_CPU_LANES = 4
_ACCELERATOR_LANES = 64

CHUNK, _LONGEST_CHUNK = 10, 50
_CHUNK_FLOPS = 2e9
"""Of a chunk's training: some tenths of a second of one core, which is slow at the smallest models."""


class Layout(NamedTuple):
    """How clients share a device. It changes speed and memory, and results only by rounding.

    Attributes:
      lanes: clients that train at a time on a device.
      finish: how lanes whose client is done are finished, one at a time or all at once.
    """

    lanes: int
    finish: FinishForm

    def __str__(self) -> str:
        return f"{self.lanes} lane{'s' * (self.lanes > 1)}, {self.finish}"


def choose(problem: Problem, state: SimState, plan: Plan, device: Any, devices: int) -> Layout:
    """What ``remember`` was told of this machine and these shapes; else the rule of ``docs/decisions/0004-auto-lanes.md``."""
    known = recall(fingerprint(problem, state, plan, device, devices))
    return known or _rule(problem, state, plan, device.platform)


def default_finish(platform: str) -> FinishForm:
    return "compact" if platform == "cpu" else "masked"


def turns_of(plan: Plan) -> int:
    """Turns of the longest queue of a device, at most."""
    return max(queue.entries.client.shape[-1] for queue in plan.queues)


def _rule(problem: Problem, state: SimState, plan: Plan, platform: str) -> Layout:
    turns, finish = turns_of(plan), default_finish(platform)
    if platform != "cpu":
        return Layout(_accelerator_lanes(turns), finish)
    flops = max(1.0, step_flops(problem, state))
    return Layout(max(1, min(int(min(_CPU_LANES, _CPU_FLOPS / flops)), turns // _TURNS_PER_LANE)), finish)


def _accelerator_lanes(turns: int) -> int:
    """At most 64, as many turns for each lane: of 100 turns, 64 lanes would have 28 that compute a second one for nobody."""
    each = max(1, -(-turns // _ACCELERATOR_LANES))
    return max(1, -(-turns // each))


def chunk_length(problem: Problem, state: SimState, sizes: np.ndarray) -> int:
    """Rounds of a chunk: ten, or up to fifty short ones.

    What the host does once for a chunk was a tenth of rounds of two milliseconds. A chunk keeps callbacks and an interrupt
    waiting, so longer rounds have no longer ones. It is the same on every machine.

    Args:
      problem: what the rounds run.
      state: specs, with a replica axis if the problem has one.
      sizes: examples of every client, ``int64[population]``.
    """
    costs, works = turn_costs(problem, state), problem.works(problem.algorithm())
    of_turn = sum(
        float(np.mean(work.steps(sizes))) * max(group.step_flops[stage] for group in costs)
        for stage, work in enumerate(works)
    )
    of_round = of_turn * problem.expected_clients * (problem.replicas or 1)
    return int(np.clip(_CHUNK_FLOPS / max(of_round, 1.0), CHUNK, _LONGEST_CHUNK))


# --- what was measured before --------------------------------------------------------------------------------


def fingerprint(problem: Problem, state: SimState, plan: Plan, device: Any, devices: int) -> str:
    """Names the machine, its cores that this process may use, and the shapes that a layout's speed depends on.

    Not in it: the clients' sizes.
    """
    local, costs = problem.local, turn_costs(problem, state)
    facts = {
        "machine": [device.platform, device.device_kind, machine.processor(), machine.cores()],
        "versions": [sys.modules["fedjax_sim"].__version__, jax.__version__],
        "algorithm": problem.algorithm().name,
        "chain": [[layer.name for layer in stage.aggregate.facts] for stage in problem.algorithm().stages],
        "state": [[list(x.shape), str(x.dtype)] for x in jax.tree.leaves((state.server, state.aggregate))],
        "client": [[list(x.shape[1:]), str(x.dtype)] for x in jax.tree.leaves(state.clients)],
        "columns": {name: [list(x.shape[1:]), str(x.dtype)] for name, x in problem.columns.items()},
        "local": [local.batch_size, local.batches_per_step, local.epochs, local.max_steps, local.shuffle],
        "steps": [[group.step_flops, group.step_products] for group in costs],
        "turns": turns_of(plan),
        "replicas": problem.replicas,
        "devices": devices,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=int).encode()).hexdigest()[:32]


def file() -> Path:
    """Where layouts are kept: ``layouts.json`` in the user's cache folder. It may be deleted at any time.

    Raises:
      RuntimeError: the user has no home.
    """
    return machine.cache_folder() / "layouts.json"


def recall(name: str) -> Layout | None:
    """The layout that was remembered under a fingerprint, if there is one."""
    try:
        found = _read(file()).get(name)
    except (OSError, RuntimeError):
        return None  # no home, or none that can be read: then nothing was measured
    if not isinstance(found, Mapping):
        return None
    lanes = found.get("lanes")
    for finish in get_args(FinishForm):
        if isinstance(lanes, int) and lanes > 0 and found.get("finish") == finish:
            return Layout(lanes, finish)
    warnings.warn(f"{file()} has an entry that is no layout: {dict(found)}. Delete the file.", stacklevel=2)
    return None


def remember(name: str, layout: Layout, about: Mapping[str, Any]) -> Path:
    """Keeps a layout under a fingerprint, with what a reader may want to know about it; returns the file.

    Raises:
      OSError: the file cannot be written.
      RuntimeError: the user has no home.
    """
    path = file()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {**_read(path), name: {**layout._asdict(), **about}}
    # At once: a reader in another process sees the file before or after.
    with tempfile.NamedTemporaryFile("w", dir=path.parent, suffix=".part", delete=False) as part:
        json.dump(content, part, indent=1)
    os.replace(part.name, path)
    return path


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except ValueError:
        content = None
    if isinstance(content, dict):
        return content
    warnings.warn(f"{path} is no file of layouts and is not used. Delete it.", stacklevel=3)
    return {}
