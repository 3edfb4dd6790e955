"""What a run leaves behind: metrics of every round, evaluations, and what it cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedjax_sim.evaluation import Evaluation, higher_is_better

Stopped = Literal["budget", "callback"]


@dataclasses.dataclass(frozen=True)
class Costs:
    """What a run cost.

    Attributes:
      compile_seconds: tracing and compiling (the first chunk's call until it was dispatched).
      run_seconds: the rest of the wall-clock time of ``run``, evaluations and checkpoints left out.
      evaluation_seconds: time that the host spent on evaluations. Where it gives an accelerator work ahead, it waits there for rounds
        that were given before, too: ``run_seconds`` is then too short by as much, and only their sum means something.
      checkpoint_seconds: time that rounds waited for checkpoints; their writing overlaps with later rounds.
      examples: examples trained on, every pass counted.
      steps: local steps with at least one example.
      lane_steps: steps times lanes that the program ran.
      flops: floating-point operations of the local steps: two for every product that is added up, one for other arithmetic.
      lanes: clients that trained at a time on a device.
      bytes_up: what clients sent, uncompressed encoded messages; of integers modulo ``2^bits``, so many bits each.
      bytes_down: what clients received.
      rows_per_step: rows that a step computes on, real or not.
      precision: what the global model's program computes with: dtypes of its parameters and of the operands of its
        products, and the precision that those ask for (what it means on a backend: ``tasks.with_precision``).
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
    precision: str = ""

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
        lanes = f"{self.lanes} lane" if self.lanes == 1 else f"{self.lanes} lanes"
        said = (
            f"{self.run_seconds:.2f} s and {self.compile_seconds:.2f} s to compile",
            f"{self.examples_per_second:,.0f} examples/s at {lanes}, {self.flops_per_second / 1e9:.1f} GFLOP/s",
            self.precision,
            f"occupancy {self.step_occupancy:.1%} of steps, {self.example_occupancy:.1%} of rows",
            f"{self.bytes_up / 1e6:.1f} MB up, {self.bytes_down / 1e6:.1f} MB down",
        )
        return "; ".join(part for part in said if part)


class Score(NamedTuple):
    """A value of an evaluation, and after how many rounds of the state's life it was measured."""

    rounds: int
    value: float


@dataclasses.dataclass(frozen=True)
class History:
    """Metrics of the rounds that ran.

    Attributes:
      first_round: index of the first of them.
      metrics: ``{name: f64[rounds]}``, means over the round; and what it took: ``clients`` that came,
        ``slowest_steps`` (most local steps of one client), ``bytes_up`` and ``bytes_down`` of the round.
      evaluations: ``{rounds done: {name of the set: Evaluation}}``; a single set without a name is ``"eval"``.
      costs: what the run cost.
      stopped: why it ended before the rounds that were asked for: ``"budget"``, which pays for no more, or
        ``"callback"``; ``None`` where it did not.

    Example:
      >>> import fedjax_sim as fs, optax
      >>> data = fs.data.load("digits", clients=10, alpha=1.0, seed=0)
      >>> algorithm = fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=10)), optax.sgd(0.1))
      >>> sim = fs.Simulation(algorithm, data.train, cohort=fs.cohorts.uniform(3))
      >>> _, history = sim.run(sim.init(seed=0), rounds=4, evaluate_on={"test": data.test}, every=2)
      >>> list(history.evaluations), history.last("accuracy").rounds
      ([2, 4], 4)
      >>> history.best("accuracy").value >= history.last("accuracy").value
      True
    """

    first_round: int
    metrics: Mapping[str, np.ndarray]
    evaluations: Mapping[int, Mapping[str, Evaluation]]
    costs: Costs
    stopped: Stopped | None = None

    def __repr__(self) -> str:
        named = [name for name in self.metrics if "/" not in name]
        parts = [f"{self.rounds} rounds from {self.first_round}", f"metrics {', '.join(named)}"]
        if self.evaluations:
            sets = dict.fromkeys(name for one in self.evaluations.values() for name in one)
            parts.append(f"evaluated {len(self.evaluations)} times on {', '.join(sets)}")
        if self.stopped is not None:
            parts.append(f"stopped by {self.stopped}")
        return f"History({'; '.join(parts)})"

    @property
    def rounds(self) -> int:
        """How many rounds ran."""
        return len(next(iter(self.metrics.values()))) if self.metrics else 0

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self.metrics:
            raise KeyError(f"no metric {name!r}; there are {', '.join(sorted(self.metrics))}.")
        return self.metrics[name]

    def best(self, metric: str, *, on: str | None = None, over: str = "examples") -> Score:
        """The best value of a metric in the evaluations, the first of equals; NaN is never the best.

        A model chosen by it has seen the set: report the value on another one.

        Args:
          metric: ``"accuracy"``, ``"loss"``, or one of the task's own; ``evaluation.higher_is_better`` says which
            value is better.
          on: name of the set; not needed where there is one.
          over: ``"examples"``, or one of the names of ``Evaluation.clients``, such as ``"worst_decile"``.

        Raises:
          KeyError: there is no such metric, set or name.
          ValueError: nothing was evaluated, or no value is a number.
        """
        scores = [score for score in self._scores(metric, on, over) if not np.isnan(score.value)]
        if not scores:
            raise ValueError(f"{metric} over {over} is NaN in every evaluation: there is no best one.")
        sign = 1 if higher_is_better(metric, over) else -1
        return max(scores, key=lambda score: sign * score.value)

    def last(self, metric: str, *, on: str | None = None, over: str = "examples") -> Score:
        """The latest value of a metric in the evaluations, NaN included; arguments and errors as for ``best``."""
        return self._scores(metric, on, over)[-1]

    def _scores(self, metric: str, on: str | None, over: str) -> list[Score]:
        """In the order of the rounds; at least one."""
        sets = list(dict.fromkeys(name for named in self.evaluations.values() for name in named))
        if not sets:
            raise ValueError("nothing was evaluated in these rounds: give run(..., evaluate_on=data).")
        if on is None and len(sets) > 1:
            raise ValueError(f"the run was evaluated on {', '.join(sets)}: say which is meant with on=...")
        on = sets[0] if on is None else _known("set", on, sets)
        scores = []
        for rounds in sorted(self.evaluations):
            evaluation = self.evaluations[rounds][on]
            over_clients = evaluation.clients[_known("metric", metric, evaluation.clients)]
            values = {"examples": evaluation.examples[metric], **over_clients}
            scores.append(Score(rounds, values[_known("over", over, values)]))
        return scores


def _known(what: str, name: str, names: Iterable[str]) -> str:
    if name not in names:
        raise KeyError(f"no {what} {name!r} in the evaluations; there are {', '.join(map(repr, names))}.")
    return name


@dataclasses.dataclass(frozen=True)
class Histories(Sequence[History]):
    """Histories of a sweep, one per replica, with the final states.

    Attributes:
      members: one ``History`` per replica, shorter for one whose budget was spent earlier; costs are those of the whole
        program.
      states: final ``SimState`` per replica.
    """

    members: tuple[History, ...]
    states: tuple

    def __repr__(self) -> str:
        return f"Histories({len(self)} replicas, {max((member.rounds for member in self), default=0)} rounds)"

    def __getitem__(self, index):
        return self.members[index]

    def __len__(self) -> int:
        return len(self.members)

    def __iter__(self) -> Iterator[History]:
        return iter(self.members)

    def stacked(self, name: str) -> np.ndarray:
        """One metric of all replicas, ``f64[replicas, rounds]``; NaN in the rounds that a replica did not run."""
        rows = [member[name] for member in self.members]
        longest = max(len(row) for row in rows)
        return np.stack([np.pad(row, (0, longest - len(row)), constant_values=np.nan) for row in rows])
