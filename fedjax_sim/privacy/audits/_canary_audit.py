"""What a run's models say of its canaries: an estimate of epsilon, and lower bounds at a stated confidence."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from fedjax_sim._src import checks
from fedjax_sim._src.types import Variables
from fedjax_sim.privacy._accounting import Guarantee
from fedjax_sim.privacy._gaussian import check_delta
from fedjax_sim.privacy.audits._bounds import (
    check_confidence,
    clopper_pearson,
    one_run_lower_bound,
    rates_epsilon,
    two_gaussians_epsilon,
)
from fedjax_sim.privacy.audits._canaries import Canaries

_FALSE_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9, 1e-15, 1e-30)
"""False positive rates of the thresholds that are tried; fixed before anybody looks at a score."""
_GUESS_RATES = (0.3, 0.1, 1e-2, 1e-3)


@dataclasses.dataclass(frozen=True)
class CanaryAudit:
    """What ``audit_canaries`` found.

    Attributes:
      epsilon: estimate, from Gaussians fitted to the cosines; it has no confidence.
      lower_bound: epsilon is at least this, with the confidence, if the canaries' scores are independent of one another. They nearly are
        where their directions are nearly orthogonal, in a model with far more parameters than there are canaries.
      one_run_bound: epsilon is at least this, with the confidence, whatever the canaries do to one another; ``None`` where no fair coin decided.
        It cannot exceed about the logarithm of the number of canaries.
      delta: that all three are for.
      confidence: of each of the bounds.
      included: cosines of the canaries that sent their direction, ``f64[...]``.
      excluded: of those that sent zeros.
      unobserved: of directions that nobody had.
      null_std: standard deviation of the cosine of a direction that the run has not seen; known, not fitted, for one change.
    """

    epsilon: float
    lower_bound: float
    one_run_bound: float | None
    delta: float
    confidence: float
    included: np.ndarray
    excluded: np.ndarray
    unobserved: np.ndarray
    null_std: float

    def contradicts(self, claim: Guarantee | float) -> bool:
        """Whether a bound exceeds a claimed epsilon, which a right claim does with probability ``1 - confidence`` at most for each.

        Args:
          claim: what ``Simulation.privacy`` gives, at the audit's delta; or an epsilon.

        Raises:
          ValueError: a claim at another delta, one about single examples, or one for a simulated cohort, which is not about the run.
        """
        if isinstance(claim, Guarantee):
            if claim.simulated:
                raise ValueError(
                    "the claim is that of a simulated cohort, not of this run, whose noise is smaller: it cannot be audited here."
                )
            if claim.unit != "client":
                raise ValueError(
                    f"the claim is about one {claim.unit}, a canary is a whole client, of whom it says nothing: audit the claim for "
                    "unit='client'."
                )
            if claim.delta != self.delta:
                raise ValueError(
                    f"the claim is at delta {claim.delta}, the audit at {self.delta}: ask for both at the same delta."
                )
            claim = claim.epsilon
        return max(self.lower_bound, self.one_run_bound or 0.0) > claim

    def __str__(self) -> str:
        percent = f"{100 * self.confidence:g} %"
        lines = [
            f"epsilon is about {self.epsilon:.3g}, and at least {self.lower_bound:.3g} with {percent} confidence, at delta {self.delta:.3g}"
        ]
        if self.one_run_bound is not None:
            lines.append(f"at least {self.one_run_bound:.3g} also if canaries depend on one another")
        deviations = f"{self.included.mean() / self.null_std:.2f} standard deviations"
        lines.append(
            f"{len(self.included)} canaries with a mean cosine of {self.included.mean():.4f}, {deviations} above those of nobody"
        )
        return "\n".join(lines)


def audit_canaries(
    canaries: Canaries,
    models: Sequence[Variables],
    delta: float,
    *,
    confidence: float = 0.95,
    unobserved: int = 1000,
) -> CanaryAudit:
    """What a run's models say about who took part: an estimate of epsilon and lower bounds, from a single run.

    The statistic of a canary is the cosine between its direction and the change of the model, or the largest one if models of
    several rounds are given. A direction that the run has not seen is independent of the model, so the law of its cosine is known exactly.

    Args:
      canaries: those that were in the run: it ran ``canaries.join(algorithm)``.
      models: the first and the last model, ``sim.algorithm.params(state.server)``; or those of all rounds, in order, from
        the first on, for an attacker who sees them all.
      delta: in (0, 1); that of the claim.
      confidence: of each bound.
      unobserved: directions of nobody, to look at beside the canaries.

    Raises:
      ValueError: fewer than two canaries that sent their direction; models that did not move.

    Source: Andrew et al. 2024, "One-shot Empirical Privacy Estimation for Federated Learning", algorithms 1 and 2; the bound that needs no
    independence: Steinke et al. 2023, "Privacy Auditing with One (1) Training Run".

    Example:
      >>> import fedjax_sim as fs, optax
      >>> from fedjax_sim import aggregation as agg
      >>> from fedjax_sim.privacy import audits
      >>> data = fs.data.load("digits", clients=10, alpha=1.0, seed=0)
      >>> population, first = audits.add_canaries(data.train, 30)
      >>> canaries = audits.Canaries(first, 30, norm=1.0)
      >>> private = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(2.0))
      >>> task = fs.tasks.classification(fs.models.linear(classes=10))
      >>> algorithm = fs.algorithms.fedavg(task, optax.sgd(0.01), aggregate=private)
      >>> sim = fs.Simulation(canaries.join(algorithm), population, cohort=fs.cohorts.poisson(0.5))
      >>> start = sim.init(seed=1)
      >>> end, _ = sim.run(start, rounds=5)
      >>> audit = audits.audit_canaries(canaries, [algorithm.params(s.server) for s in (start, end)], delta=1e-3)
      >>> audit.contradicts(sim.privacy(rounds=5, delta=1e-3))
      False
    """
    check_delta(delta)
    check_confidence(confidence)
    checks.positive_int("unobserved", unobserved)
    took_part = canaries.included
    if took_part.sum() < 2:
        raise ValueError(
            f"{took_part.sum()} of {canaries.count} canaries sent their direction, expected two at least: take more canaries."
        )
    scores = canaries.scores(models, canaries.count + unobserved)
    own, nobody = scores[: canaries.count], scores[canaries.count :]
    included, excluded = own[took_part], own[~took_part]
    changes, size = len(models) - 1, _dimension(models[0])
    mean_out, std_out = 0.0, 1 / math.sqrt(size)
    if changes > 1:
        null = np.concatenate([excluded, nobody])
        mean_out, std_out = float(null.mean()), float(null.std(ddof=1))
    estimate = two_gaussians_epsilon(
        float(included.mean()), float(included.std(ddof=1)), mean_out, std_out, delta
    )
    guesses = None if canaries.share != 0.5 else _one_run(own, took_part, changes, size, delta, confidence)
    bound = _threshold_bound(included, changes, size, delta, confidence)
    return CanaryAudit(estimate, bound, guesses, delta, confidence, included, excluded, nobody, std_out)


def _threshold(false_rate: float, changes: int, size: int) -> float:
    """The cosine that a direction of nobody exceeds with at most this probability, in the largest of so many changes.

    ``(cosine + 1) / 2`` of a uniform direction in n dimensions is Beta((n - 1) / 2, (n - 1) / 2); changes by the union bound.
    """
    half = (size - 1) / 2
    lower_tail = scipy.special.betaincinv(half, half, false_rate / changes)
    return float(1 - 2 * lower_tail)  # by symmetry


def _threshold_bound(included: np.ndarray, changes: int, size: int, delta: float, confidence: float) -> float:
    """The best of several fixed thresholds, whose false positive rates are known; Bonferroni keeps the confidence."""
    each = 1 - (1 - confidence) / len(_FALSE_RATES)
    found = []
    for rate in _FALSE_RATES:
        caught = int(np.sum(included > _threshold(rate, changes, size)))
        true_rate, _ = clopper_pearson(caught, len(included), each)
        found.append(rates_epsilon(true_rate, rate, delta))
    return max(found)


def _one_run(
    scores: np.ndarray, took_part: np.ndarray, changes: int, size: int, delta: float, confidence: float
) -> float:
    """Guesses by fixed rules: who is above a threshold took part; whoever is below it did not, or is left out."""
    each = 1 - (1 - confidence) / (2 * len(_GUESS_RATES))
    found = []
    for rate in _GUESS_RATES:
        above = scores > _threshold(rate, changes, size)
        hits, rights = int(np.sum(above & took_part)), int(np.sum(above == took_part))
        found.append(one_run_lower_bound(hits, int(above.sum()), len(scores), delta, each))
        found.append(one_run_lower_bound(rights, len(scores), len(scores), delta, each))
    return max(found)


def _dimension(model: Any) -> int:
    params = model.params if isinstance(model, Variables) else model
    return sum(x.size for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact))
