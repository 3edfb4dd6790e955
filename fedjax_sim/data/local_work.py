"""How much a client trains in a round, and in what order it sees its examples."""

from __future__ import annotations

import dataclasses
import functools
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
      poisson_rate: every step looks at each of the client's examples with this probability, independently of the others
        (Abadi et al. 2016), instead of epochs and order, which have no effect then; ``max_steps`` is required, and is the
        number of steps. A step has room for ``batch_size`` rows; of more it keeps as many, uniformly at random: a
        truncated Poisson law, and accounted for as such. It may have none.
      continue_epochs: the passes over a client's examples go on from round to round, each round where the client's last
        one left off, also in the middle of a pass, as a data loader does that outlives the round.
      stragglers: share of a cohort, in [0, 1] and rounded to whole clients, that has no time for all of its work; drawn
        anew in every round. A straggler does a number of epochs drawn evenly from 1 to ``epochs``, of steps where
        ``epochs`` is ``None`` (Li et al. 2020, "Federated Optimization in Heterogeneous Networks", section 5.2).
      drop_stragglers: they take no part in the round at all, as in FedAvg's deployments.

    Raises:
      ValueError: a count below 1, a share or a rate outside its range, two orders of examples at once, or a combination that
        leaves the number of steps open.

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
    poisson_rate: float | None = None

    def __post_init__(self):
        for name in ("batch_size", "batches_per_step"):
            checks.positive_int(f"LocalWork.{name}", getattr(self, name))
        for name in ("epochs", "max_steps"):
            if getattr(self, name) is not None:
                checks.positive_int(f"LocalWork.{name}", getattr(self, name))
        if self.poisson_rate is not None:
            self._check_poisson()
        open_ended = {
            "epochs=None": self.epochs is None,
            "explicit rows": self.rows is not None,
            "poisson_rate": self.poisson_rate is not None,
        }
        if self.max_steps is None and any(open_ended.values()):
            reason = [name for name, holds in open_ended.items() if holds][-1]
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

    def _check_poisson(self) -> None:
        checks.fraction("LocalWork.poisson_rate", self.poisson_rate)
        if self.rows is not None:
            raise ValueError(
                "LocalWork has rows and poisson_rate, which both say what a batch holds: give one of the two."
            )
        if self.continue_epochs:
            raise ValueError(
                "LocalWork.continue_epochs says how passes over the examples go on, but Poisson batches make no passes: give "
                "one of the two."
            )
        if self.batches_per_step > 1:
            raise ValueError(
                "LocalWork draws one Poisson batch per step: use batches_per_step=1 and a larger batch_size; "
                "rules.dp_sgd(block_size=...) takes it in smaller pieces."
            )

    @property
    def explicit_rows(self) -> ExplicitRows | None:
        """What makes a client's rows on the host; ``None`` where the program follows an order of its own."""
        if self.poisson_rate is None:
            return self.rows
        assert self.max_steps is not None  # __post_init__ has seen to it
        return functools.partial(poisson_rows, self.poisson_rate, self.max_steps, self.batch_size)

    @property
    def rows_per_step(self) -> int:
        """Examples that one local step looks at, at most."""
        return self.batch_size * self.batches_per_step

    @property
    def explicit_steps(self) -> int:
        """Room for steps when rows are explicit; 0 otherwise."""
        return self.max_steps or 0 if self.explicit_rows is not None else 0

    def steps_per_epoch(self, sizes) -> np.ndarray:
        """Steps of one epoch, ``int64[clients]``, for clients of these sizes."""
        sizes = np.asarray(sizes, np.int64)
        return sizes // self.rows_per_step if self.drop_remainder else -(-sizes // self.rows_per_step)

    def steps(self, sizes) -> np.ndarray:
        """Steps of a round, ``int64[clients]``; with explicit rows, the upper limit."""
        per_epoch = self.steps_per_epoch(sizes)
        if self.explicit_rows is not None:
            return np.minimum(np.asarray(sizes, np.int64), 1) * self.explicit_steps
        limit = np.iinfo(np.int64).max if self.max_steps is None else self.max_steps
        total = np.where(per_epoch > 0, limit, 0) if self.epochs is None else per_epoch * self.epochs
        return np.minimum(total, limit)

    def late_steps(self, sizes, share) -> np.ndarray:
        """Steps of stragglers that have time for a share in (0, 1] of the epochs, ``int64[clients]``; at least one epoch.

        Where ``epochs`` is ``None`` the share is one of the steps.
        """
        steps, share = self.steps(sizes), np.asarray(share)
        if self.epochs is None or self.explicit_rows is not None:
            return np.minimum(np.ceil(share * steps).astype(np.int64), steps)
        done = np.ceil(share * self.epochs).astype(np.int64) * self.steps_per_epoch(sizes)
        return np.minimum(done, steps)


def poisson_rows(
    rate: float, steps: int, batch_size: int, generator: np.random.Generator, num_examples: int
) -> np.ndarray:
    """Rows ``int[steps, batch_size]`` of Poisson batches, -1 beyond a batch's end.

    A Poisson batch is a binomial number of rows, every set of as many equally likely; of a batch that is too large a
    uniformly random part is a uniformly random set again. So the cost follows the batch, not the client.
    """
    rows = np.full((steps, batch_size), -1, np.int64)
    for batch, size in zip(
        rows, np.minimum(generator.binomial(num_examples, rate, steps), batch_size), strict=True
    ):
        batch[:size] = generator.choice(num_examples, size, replace=False, shuffle=False)
    return rows
