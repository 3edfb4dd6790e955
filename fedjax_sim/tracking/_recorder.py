"""The callback that hands the rounds of a run to its trackers."""

from __future__ import annotations

from fedjax_sim.history import History
from fedjax_sim.simulate import NonFiniteModelError, Progress
from fedjax_sim.tracking._rows import round_rows
from fedjax_sim.tracking._tracker import Tracker


class Recorder:
    """Callback of a simulation that gives every tracker the rounds that are new.

    As a context manager around the run it also records the rounds before a model that became NaN or infinite.

    Args:
      *trackers: each is given the row of every round (see ``round_rows``), in this order. What one raises ends the
        run, so that no row is lost unnoticed; wrap those that a run can do without in ``Lenient``.

    Attributes:
      recorded: rounds that every tracker has.

    Example:
      ``with JsonLines(path) as rows, Lenient(TensorBoard(folder)) as board:``
      ``sim.run(state, rounds=100, callbacks=[Recorder(rows, board)])``
    """

    def __init__(self, *trackers: Tracker):
        self.trackers = trackers
        self.recorded = 0
        self._next: int | None = None

    def __call__(self, progress: Progress) -> None:
        self.record(progress.chunk)

    def record(self, history: History) -> None:
        """Writes the rounds of a history that earlier ones did not have."""
        start = 0 if self._next is None else max(0, self._next - history.first_round)
        for row in round_rows(history, start):
            for tracker in self.trackers:
                tracker.write(row)
            self._next, self.recorded = row["round"] + 1, self.recorded + 1

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if isinstance(error, NonFiniteModelError):
            self.record(error.history)
