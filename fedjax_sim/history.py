"""What a run leaves behind: metrics of every round, evaluations, and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fedjax_sim.evaluation import Evaluation


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a run cost.

    Attributes:
      compile_seconds: tracing and compiling (the first chunk's call until it was dispatched).
      run_seconds: the rest of the wall-clock time of ``run``, evaluations and checkpoints left out.
      evaluation_seconds: time in evaluations.
      checkpoint_seconds: time that rounds waited for checkpoints; their writing overlaps with later rounds.
      examples: examples trained on, every pass counted.
      steps: local steps with at least one example.
      lane_steps: steps times lanes that the program ran.
      flops: floating-point operations of the local steps, by XLA's count of one step.
      lanes: clients that trained at a time on a device.
      bytes_up: what clients sent, uncompressed encoded messages.
      bytes_down: what clients received.
      rows_per_step: rows that a step computes on, real or not.
    """

    compile_seconds: float = 0.0
    run_seconds: float = 0.0
    evaluation_seconds: float = 0.0
    checkpoint_seconds: float = 0.0
    examples: int = 0
    steps: int = 0
    lane_steps: int = 0
    flops: float = 0.0
    lanes: int = 1
    bytes_up: int = 0
    bytes_down: int = 0
    rows_per_step: int = 1

    @property
    def step_occupancy(self) -> float:
        """Share of lane-steps that trained a real batch."""
        return self.steps / self.lane_steps if self.lane_steps else 0.0

    @property
    def example_occupancy(self) -> float:
        """Share of the rows of all lane-steps that held a real example."""
        rows = self.lane_steps * self.rows_per_step
        return self.examples / rows if rows else 0.0

    @property
    def examples_per_second(self) -> float:
        return self.examples / self.run_seconds if self.run_seconds else 0.0

    @property
    def flops_per_second(self) -> float:
        return self.flops / self.run_seconds if self.run_seconds else 0.0

    def __str__(self) -> str:
        return (
            f"{self.run_seconds:.2f} s and {self.compile_seconds:.2f} s to compile; "
            f"{self.examples_per_second:,.0f} examples/s at {self.lanes} lanes, {self.flops_per_second / 1e9:.1f} GFLOP/s; "
            f"occupancy {self.step_occupancy:.1%} of steps, {self.example_occupancy:.1%} of rows; "
            f"{self.bytes_up / 1e6:.1f} MB up, {self.bytes_down / 1e6:.1f} MB down"
        )


@dataclasses.dataclass(frozen=True)
class History:
    """Metrics of the rounds that ran.

    Attributes:
      first_round: index of the first of them.
      metrics: ``{name: f64[rounds]}``, means over the round.
      evaluations: ``{rounds done: Evaluation}``.
      costs: what the run cost.
    """

    first_round: int
    metrics: Mapping[str, np.ndarray]
    evaluations: Mapping[int, Evaluation]
    costs: Costs

    @property
    def rounds(self) -> int:
        """How many rounds ran."""
        return len(next(iter(self.metrics.values()))) if self.metrics else 0

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.metrics:
            raise KeyError(f"no metric {name!r}; there are {', '.join(sorted(self.metrics))}.")
        return self.metrics[name]


@dataclasses.dataclass(frozen=True)
class Histories(Sequence[History]):
    """Histories of a sweep, one per replica, with the final states.

    Attributes:
      members: one ``History`` per replica; costs are those of the whole program.
      states: final ``SimState`` per replica.
    """

    members: tuple[History, ...]
    states: tuple

    def __getitem__(self, index):
        return self.members[index]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[History]:
        return iter(self.members)

    def stacked(self, name: str) -> np.ndarray:
        """One metric of all replicas, ``f64[replicas, rounds]``."""
        return np.stack([member[name] for member in self.members])
