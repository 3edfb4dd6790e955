"""How much a client trains in a round, and in what order it sees its examples."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from fedjax_sim._src import checks

ExplicitRows = Callable[[np.random.Generator, int], np.ndarray]
"""``(generator, num_examples)`` to ``int[steps, batch_size]``: rows of the client's own data, -1 for padding."""


@dataclasses.dataclass(frozen=True)
class LocalWork:
    """Local work of every cohort client.

    An epoch is ``ceil(n / (batch_size * batches_per_step))`` steps over a client's ``n`` examples. The last batch of
    an epoch is partial: its missing rows are zero and masked, nothing wraps around. With ``drop_remainder`` an epoch
    has ``floor`` instead, and a client with fewer examples than a step needs takes no step at all. A client without
    examples takes no step.

    Attributes:
      epochs: passes over the client's examples; ``None`` means as many as ``max_steps`` needs.
      batch_size: rows of a batch.
      max_steps: upper limit of local steps; ``None`` for no limit.
      batches_per_step: with more than one, a rule's ``step`` receives batches ``[batches_per_step, batch_size, ...]``
        (Per-FedAvg, accumulation); with one, ``[batch_size, ...]``.
      shuffle: a new keyed order in every epoch; otherwise the order of storage.
      drop_remainder: leave the last partial step out.
      rows: explicit rows made on the host, instead of epochs and order; then ``max_steps`` is required, and
        ``epochs``, ``shuffle`` and ``drop_remainder`` have no effect. The generator is keyed by run, round, client
        and draw.
      continue_epochs: the passes over a client's examples go on from round to round, each round where the client's last
        one left off, also in the middle of a pass, as a data loader does that outlives the round.
      stragglers: share of a cohort, in [0, 1] and rounded to whole clients, that has no time for all of its work; drawn
        anew in every round. A straggler does a number of epochs drawn evenly from 1 to ``epochs``, of steps where
        ``epochs`` is ``None`` (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", section 5.2).
      drop_stragglers: they take no part in the round at all, as in FedAvg's deployments.

    Raises:
      ValueError: a count below 1, a share outside [0, 1], or a combination that leaves the number of steps open.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.LocalWork(epochs=2, batch_size=20).steps([0, 1, 20, 45])
      array([0, 2, 2, 6])
    """

    epochs: int | None = 1
    batch_size: int = 20
    max_steps: int | None = None
    batches_per_step: int = 1
    shuffle: bool = True
    drop_remainder: bool = False
    rows: ExplicitRows | None = None
    continue_epochs: bool = False
    stragglers: float = 0.0
    drop_stragglers: bool = False

    def __post_init__(self):
        for name in ("batch_size", "batches_per_step"):
            checks.positive_int(f"LocalWork.{name}", getattr(self, name))
        for name in ("epochs", "max_steps"):
            if getattr(self, name) is not None:
                checks.positive_int(f"LocalWork.{name}", getattr(self, name))
        if self.max_steps is None and (self.epochs is None or self.rows is not None):
            reason = "explicit rows" if self.rows is not None else "epochs=None"
            raise ValueError(f"LocalWork with {reason} leaves the number of steps open: give max_steps.")
        if self.rows is not None and self.batches_per_step > 1:
            raise ValueError(
                "LocalWork takes explicit rows for one batch per step: let rows return [steps, batch_size] with "
                "batches_per_step=1 and a larger batch_size."
            )
        if self.continue_epochs and self.rows is not None:
            raise ValueError(
                "LocalWork.continue_epochs says how passes over the examples go on, but explicit rows make no passes: "
                "give one of the two."
            )
        if not 0 <= self.stragglers <= 1:
            raise ValueError(
                f"LocalWork.stragglers is {self.stragglers}, expected a share of the cohort in [0, 1]."
            )

    @property
    def rows_per_step(self) -> int:
        """Examples that one local step looks at, at most."""
        return self.batch_size * self.batches_per_step

    @property
    def explicit_steps(self) -> int:
        """Room for steps when rows are explicit; 0 otherwise."""
        return self.max_steps or 0 if self.rows is not None else 0

    def steps_per_epoch(self, sizes) -> np.ndarray:
        """Steps of one epoch, ``int64[clients]``, for clients of these sizes."""
        sizes = np.asarray(sizes, np.int64)
        return sizes // self.rows_per_step if self.drop_remainder else -(-sizes // self.rows_per_step)

    def steps(self, sizes) -> np.ndarray:
        """Steps of a round, ``int64[clients]``; with explicit rows, the upper limit."""
        per_epoch = self.steps_per_epoch(sizes)
        if self.rows is not None:
            return np.minimum(np.asarray(sizes, np.int64), 1) * self.explicit_steps
        limit = np.iinfo(np.int64).max if self.max_steps is None else self.max_steps
        total = np.where(per_epoch > 0, limit, 0) if self.epochs is None else per_epoch * self.epochs
        return np.minimum(total, limit)

    def late_steps(self, sizes, share) -> np.ndarray:
        """Steps of stragglers that have time for a share in (0, 1] of the epochs, ``int64[clients]``; at least one epoch.

        Where ``epochs`` is ``None`` the share is one of the steps.
        """
        steps, share = self.steps(sizes), np.asarray(share)
        if self.epochs is None or self.rows is not None:
            return np.minimum(np.ceil(share * steps).astype(np.int64), steps)
        done = np.ceil(share * self.epochs).astype(np.int64) * self.steps_per_epoch(sizes)
        return np.minimum(done, steps)
