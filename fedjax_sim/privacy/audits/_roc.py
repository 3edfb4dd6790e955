"""How well scores tell members from others: the receiver operating characteristic, and its low end."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from fedjax_sim._src import checks


@dataclasses.dataclass(frozen=True)
class Roc:
    """The receiver operating characteristic of an attack: a point for each threshold, from nobody to everybody.

    Attributes:
      false_rates: ``f64[points]``, false positive rates, from 0 to 1.
      true_rates: ``f64[points]``, true positive rates, from 0 to 1.
      members: how many members were scored.
      others: how many that are none.
    """

    false_rates: np.ndarray
    true_rates: np.ndarray
    members: int
    others: int

    @property
    def auc(self) -> float:
        """Area under the curve: the probability that a member scores above another example; ties count one half."""
        return float(np.trapezoid(self.true_rates, self.false_rates))

    @property
    def advantage(self) -> float:
        """The largest difference of true and false positive rate (Yeom et al. 2018, definition 4)."""
        return float(np.max(self.true_rates - self.false_rates))

    def true_rate_at(self, false_rate: float) -> float:
        """The largest true positive rate of a threshold whose false positive rate is at most this.

        With fewer than ``1 / false_rate`` examples that are no members no false positive is allowed.

        Raises:
          ValueError: ``false_rate`` outside (0, 1].
        """
        checks.fraction("false_rate", false_rate)
        return float(np.max(self.true_rates[self.false_rates <= float(false_rate)]))

    def __str__(self) -> str:
        return (
            f"AUC {self.auc:.4f}, advantage {self.advantage:.4f}, true positive rate {self.true_rate_at(1e-3):.2%} at 0.1 % and "
            f"{self.true_rate_at(1e-2):.2%} at 1 % false positives; {self.members} members, {self.others} others"
        )


def roc(members: Any, others: Any) -> Roc:
    """The characteristic of scores that are higher for members.

    Args:
      members: scores of the members, ``[members]``.
      others: scores of examples that are none, ``[others]``.

    Raises:
      ValueError: scores that are no vector, none at all, or NaN.

    Example:
      >>> from fedjax_sim.privacy import audits
      >>> curve = audits.roc([0.9, 0.8, 0.3], [0.4, 0.2])
      >>> round(curve.auc, 3), round(curve.true_rate_at(0.001), 3)
      (0.833, 0.667)
    """
    for name, scores in (("members", members), ("others", others)):
        array = np.asarray(scores)
        if array.ndim != 1 or not len(array) or np.isnan(array).any():
            raise ValueError(
                f"{name} is {array.dtype}{list(array.shape)}, expected one score for each example, at least one, none NaN."
            )
    members, others = np.asarray(members, np.float64), np.asarray(others, np.float64)
    scores = np.concatenate([members, others])
    is_member = np.arange(len(scores)) < len(members)
    order = np.argsort(-scores, kind="stable")
    # Equal scores are taken together: no threshold stands between them.
    last = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    true = np.cumsum(is_member[order])[last] / len(members)
    false = np.cumsum(~is_member[order])[last] / len(others)
    return Roc(np.concatenate([[0.0], false]), np.concatenate([[0.0], true]), len(members), len(others))
