"""The callback that hands the rounds of a run to its trackers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fedjax_sim.history import History
from fedjax_sim.simulate import NonFiniteModelError, Progress
from fedjax_sim.tracking._rows import round_rows
from fedjax_sim.tracking._tracker import Tracker


class Recorder:
    """Callback of a simulation that gives every tracker the rounds that are new, one row per round and replica.

    As a context manager around the run it also records the rounds before a model that became NaN or infinite.

    Args:
      *trackers: each is given the row of every round (see ``round_rows``), in this order. What one raises ends the
        run, so that no row is lost unnoticed; wrap those that a run can do without in ``Lenient``.
      labels: one mapping per replica whose items stand in each of its rows; none for a single run.
      more: gives further items of a row.
      recorded: rounds that the trackers have already, when a run goes on.

    Attributes:
      recorded: index of the round behind the last one that every tracker has.

    Example:
      ``with JsonLines(path) as rows, Lenient(TensorBoard(folder)) as board:``
      ``sim.run(state, rounds=100, callbacks=[Recorder(rows, board)])``
    """

    def __init__(
        self,
        *trackers: Tracker,
        labels: Sequence[Mapping[str, Any]] | None = None,
        more: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
        recorded: int | None = None,
    ):
        self.trackers, self.recorded, self._labels, self._more = trackers, recorded, labels, more

    def __call__(self, progress: Progress) -> None:
        behind = self.recorded is not None and self.recorded < progress.chunk.first_round
        self.record(progress.histories() if behind else progress.chunks)

    def record(self, histories: Sequence[History]) -> None:
        """Writes the rounds that earlier histories did not have; one history per replica."""
        first = histories[0].first_round
        start = 0 if self.recorded is None else max(0, self.recorded - first)
        labels = [{}] * len(histories) if self._labels is None else self._labels
        for rows in zip(*(round_rows(history, start) for history in histories), strict=True):
            for row, label in zip(rows, labels, strict=True):
                labelled = {"round": row["round"], **label, **row, **(self._more(row) if self._more else {})}
                for tracker in self.trackers:
                    tracker.write(labelled)
            self.recorded = rows[0]["round"] + 1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, NonFiniteModelError):
            self.record(error.histories)
