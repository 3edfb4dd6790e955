"""Which layout is the fastest on this machine: rounds of a simulation, measured for one layout after the other."""

from __future__ import annotations

import dataclasses
import datetime
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from fedjax_sim.data.plans import Plan
from fedjax_sim.engines import Engine, Layout, SimState
from fedjax_sim.engines._auto import default_finish, fingerprint, remember, turns_of
from fedjax_sim.engines._problem import Problem

_WORSE = 1.25
"""Lanes are doubled no further once they are slower than the best by this factor."""

_CLOSE = 1.1
"""Layouts that are slower than the best by less are measured again, in turn."""

_MOST_LANES = 512


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of a round with one layout.

    Attributes:
      layout: how clients shared a device.
      seconds: one value per repetition; a repetition is a chunk of rounds.
      compile_seconds: of the chunk's program, tracing included.
    """

    layout: Layout
    seconds: tuple[float, ...]
    compile_seconds: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclasses.dataclass(frozen=True)
class Tuning:
    """What ``Simulation.tune`` measured.

    Attributes:
      timings: one per layout, the fastest first.
      file: where the best is kept for ``lanes="auto"``; ``None`` when it was not, or could not be.
    """

    timings: tuple[Timing, ...]
    file: Path | None

    @property
    def best(self) -> Layout:
        return self.timings[0].layout

    def __str__(self) -> str:
        best = self.timings[0].median
        lines = [
            f"{t.layout!s:20s} {1e3 * t.median:10.2f} ms/round {t.median / best:6.2f} x {t.compile_seconds:6.1f} s to compile"
            for t in self.timings
        ]
        return "\n".join(lines)


def tune(
    engine: Engine,
    problem: Problem,
    state: SimState,
    columns: Any,
    plan: Plan,
    layouts: Sequence[Layout] | None,
    repeats: int,
    keep: bool,
) -> Tuning:
    """Measures chunks of rounds; see ``Simulation.tune``."""
    if engine.at is None:
        raise ValueError(
            f"the engine {engine.name} trains one client at a time: it has no lanes to measure. Use fs.engines.lanes()."
        )
    # Where the data lies is where the engine trains.
    device = next(iter(jax.tree.leaves(columns)[0].sharding.device_set))
    name = fingerprint(problem, state, plan, device, engine.devices)
    measured: dict[Layout, list[float]] = {}
    calls: dict[Layout, Callable[[], float]] = {}
    compiling: dict[Layout, float] = {}

    def best() -> float:
        return min(min(times) for times in measured.values())

    def measure(layout: Layout) -> float:
        calls[layout], compiling[layout] = _compiled(engine.at(layout), problem, state, columns, plan)  # type: ignore[misc]
        measured[layout] = [calls[layout]()]
        return measured[layout][0]

    if layouts is None:
        usual = default_finish(device.platform)
        for lanes in _doubling(turns_of(plan)):
            forms = dict.fromkeys([usual, "compact", "masked"]) if lanes > 1 else ["compact"]
            found = [measure(Layout(lanes, form)) for form in forms]  # type: ignore[arg-type]
            if min(found) > _WORSE * best():
                break
    elif not layouts:
        raise ValueError("layouts is empty, expected layouts to measure, or None for the usual ones.")
    else:
        for layout in dict.fromkeys(layouts):
            measure(layout)
    # Those that are close to the best, and then those that are close to what the best turned out to be.
    while close := _close(measured, repeats):
        for _ in range(repeats - 1):
            for layout in close:
                measured[layout].append(calls[layout]())
    timings = [Timing(layout, tuple(times), compiling[layout]) for layout, times in measured.items()]
    timings.sort(key=lambda timing: timing.median)
    file = None
    if keep:
        about = {
            "what": f"{problem.algorithm().name} with {engine.name} on {engine.devices} device(s)",
            "milliseconds_per_round": round(1e3 * timings[0].median, 4),
            "measured": datetime.date.today().isoformat(),
        }
        try:
            file = remember(name, timings[0].layout, about)
        except (OSError, RuntimeError) as error:
            warnings.warn(f"the fastest layout is not kept: {error}", stacklevel=3)
    return Tuning(tuple(timings), file)


def _close(measured: dict[Layout, list[float]], repeats: int) -> list[Layout]:
    """Layouts that come close to the best so far and were measured less often than ``repeats``."""
    medians = {layout: statistics.median(times) for layout, times in measured.items()}
    limit = _CLOSE * min(medians.values())
    return [layout for layout, times in measured.items() if len(times) < repeats and medians[layout] <= limit]


def _doubling(turns: int) -> Iterator[int]:
    lanes = 1
    while lanes <= min(turns, _MOST_LANES):
        yield lanes
        lanes *= 2


def _compiled(
    engine: Engine, problem: Problem, state: SimState, columns: Any, plan: Plan
) -> tuple[Callable[[], float], float]:
    """A call that runs the plan and returns seconds per round, and the seconds of its first call beyond a later one."""
    rounds = engine.compile(problem)

    def call() -> float:
        # Placed anew, so that between its calls a layout holds no state on the device.
        placed = jax.block_until_ready(rounds.place_state(state))
        start = time.perf_counter()
        jax.block_until_ready(rounds(placed, columns, plan))
        return (time.perf_counter() - start) / int(plan.rounds)

    first = call()
    return call, max(0.0, (first - call()) * int(plan.rounds))
