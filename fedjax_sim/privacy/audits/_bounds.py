"""From what an attack got right to an epsilon: an estimate from two Gaussians, and lower bounds at a stated confidence."""

from __future__ import annotations

import math

import numpy as np
import scipy

from fedjax_sim._src import checks
from fedjax_sim.privacy._gaussian import check_delta

_LARGEST = 1e6
"""An epsilon beyond it is infinite for every purpose."""


def two_gaussians_epsilon(
    mean_in: float, std_in: float, mean_out: float, std_out: float, delta: float
) -> float:
    """The smallest epsilon at which two Gaussians are (epsilon, delta)-indistinguishable, both ways round.

    An estimate where the Gaussians are fitted to scores of an attack: it has no confidence, see
    ``epsilon_lower_bound`` for one.

    Args:
      mean_in: mean of the scores of clients that took part.
      std_in: their standard deviation, above 0.
      mean_out: mean of the scores of those that did not.
      std_out: their standard deviation, above 0.
      delta: in (0, 1).

    Raises:
      ValueError: a standard deviation that is not above 0, a delta outside (0, 1).

    Source: Andrew et al. 2024, "One-shot Empirical Privacy Estimation for Federated Learning", section 3.

    Example:
      >>> from fedjax_sim.privacy import audits
      >>> round(audits.two_gaussians_epsilon(1.0, 3.7306, 0.0, 3.7306, delta=1e-5), 3)
      1.0
    """
    for name, std in (("std_in", std_in), ("std_out", std_out)):
        checks.positive(name, std)
    check_delta(delta)
    one_way = _one_way((mean_in - mean_out) / std_out, std_in / std_out, delta)
    return max(one_way, _one_way((mean_out - mean_in) / std_in, std_out / std_in, delta))


def _one_way(mean: float, std: float, delta: float) -> float:
    """Epsilon of ``P = N(mean, std^2)`` over ``Q = N(0, 1)``: where ``sup P(S) - e^epsilon Q(S)`` falls to delta."""

    def excess(epsilon: float) -> float:
        # The best S is where log P/Q > epsilon, a x^2 + b x + c > 0.
        a, b = (1 - std**-2) / 2, mean / std**2
        c = -((mean / std) ** 2) / 2 - math.log(std) - epsilon
        inside, low, high = _region(a, b, c)
        under_p = _mass((low - mean) / std, (high - mean) / std, inside)
        under_q = _mass(low, high, inside)
        # exp(epsilon) alone overflows where its product with the tail is small.
        return math.exp(under_p) - math.exp(min(epsilon + under_q, 700.0)) - delta

    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0:
        high *= 2
        if high > _LARGEST:
            return math.inf

    return scipy.optimize.root_scalar(excess, bracket=(0.0, high), xtol=1e-12).root


def _region(a: float, b: float, c: float) -> tuple[bool, float, float]:
    """Where ``a x^2 + b x + c > 0``: whether it is inside the two edges or outside of them, and the edges."""
    square = b * b - 4 * a * c
    if square <= 0 and (a != 0 or b == 0):
        return (False, 0.0, 0.0) if a > 0 or (a == 0 and c > 0) else (True, 0.0, 0.0)
    # In this form neither root loses digits, and one of them goes to infinity as a goes to 0.
    q = -(b + math.copysign(math.sqrt(max(square, 0.0)), b)) / 2
    far = q / a if a != 0 else math.copysign(math.inf, b)
    near = c / q if q != 0 else 0.0
    return a <= 0, min(near, far), max(near, far)


def _mass(low: float, high: float, inside: bool) -> float:
    """Logarithm of the standard Gaussian's mass between two edges, or outside of them."""
    if not inside:
        return float(np.logaddexp(scipy.special.log_ndtr(low), scipy.special.log_ndtr(-high)))
    if low >= high:
        return -math.inf
    if low > 0:  # in the upper tail, differences of its complement keep their digits
        low, high = -high, -low
    upper, lower = scipy.special.log_ndtr(high), scipy.special.log_ndtr(low)
    return float(upper + np.log1p(-np.exp(lower - upper)))


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """One-sided exact bounds of a binomial probability: each of the two holds with the confidence (Clopper, Pearson 1934).

    Args:
      successes: 0 to ``trials``.
      trials: independent ones, at least 1.
      confidence: in (0, 1).

    Raises:
      ValueError: an argument outside its range.

    Example:
      >>> from fedjax_sim.privacy import audits
      >>> [round(x, 3) for x in audits.clopper_pearson(20, 20, 0.95)]
      [0.861, 1.0]
    """
    checks.positive_int("trials", trials)
    checks.not_negative_int("successes", successes)
    check_confidence(confidence)
    if successes > trials:
        raise ValueError(f"successes is {successes}, expected at most the {trials} trials.")
    miss = 1 - confidence
    quantile = scipy.special.betaincinv
    low = 0.0 if successes == 0 else quantile(successes, trials - successes + 1, miss)
    high = 1.0 if successes == trials else quantile(successes + 1, trials - successes, 1 - miss)
    return float(low), float(high)


def epsilon_lower_bound(
    true_positives: int,
    positives: int,
    false_positives: int,
    negatives: int,
    delta: float,
    confidence: float = 0.95,
) -> float:
    """What epsilon is at least, when a test told so many independent trials with a client from those without it.

    For (epsilon, delta)-privacy ``TPR <= e^epsilon FPR + delta``. The true positive rate is taken at its lower and the
    false positive rate at its upper Clopper-Pearson bound, each missing with half of ``1 - confidence``.

    Args:
      true_positives: trials with the client that the test called so.
      positives: trials with it.
      false_positives: trials without it that the test called with.
      negatives: trials without it.
      delta: in (0, 1).
      confidence: in (0, 1). The test's threshold must have been chosen on other trials.

    Returns:
      The bound, 0 or above.

    Raises:
      ValueError: an argument outside its range.

    Source: Jagielski et al. 2020, "Auditing Differentially Private Machine Learning", section 2.3.

    Example:
      >>> from fedjax_sim.privacy import audits
      >>> round(audits.epsilon_lower_bound(990, 1000, 10, 1000, delta=1e-5), 2)
      3.98
    """
    check_confidence(confidence)
    half = (1 + confidence) / 2
    true_rate, _ = clopper_pearson(true_positives, positives, half)
    _, false_rate = clopper_pearson(false_positives, negatives, half)
    return rates_epsilon(true_rate, false_rate, delta)


def rates_epsilon(true_rate: float, false_rate: float, delta: float) -> float:
    """``log((TPR - delta) / FPR)``, 0 or above."""
    check_delta(delta)
    if true_rate <= delta:
        return 0.0
    return max(0.0, math.log(true_rate - delta) - math.log(false_rate)) if false_rate > 0 else math.inf


def one_run_lower_bound(
    correct: int, guesses: int, canaries: int, delta: float, confidence: float = 0.95
) -> float:
    """What epsilon is at least, when so many guesses about who took part in ONE run were right.

    A fair coin decided on each canary by itself. Under pure privacy the number of right guesses is then at most that of a
    binomial with probability ``1 / (1 + e^-epsilon)``, whatever the canaries do to one another, so that at delta 0 this is
    the Clopper-Pearson bound of that probability. Delta adds its own term.

    Args:
      correct: right guesses.
      guesses: all guesses; an attack may leave canaries out, also after it has seen the result.
      canaries: those that a coin decided on.
      delta: in [0, 1).
      confidence: in (0, 1).

    Returns:
      The bound, 0 or above; never more than about ``log(guesses)``.

    Raises:
      ValueError: more right guesses than guesses, or more guesses than canaries.

    Source: Steinke, Nasr and Jagielski 2023, "Privacy Auditing with One (1) Training Run", theorem 3.1 and appendix D.

    Example:
      >>> from fedjax_sim.privacy import audits
      >>> round(audits.one_run_lower_bound(100, 100, 200, delta=0.0), 2)
      3.49
    """
    checks.not_negative_int("correct", correct)
    checks.not_negative_int("guesses", guesses)
    checks.not_negative("delta", delta)
    check_confidence(confidence)
    if not correct <= guesses <= canaries:
        raise ValueError(
            f"{correct} guesses of {guesses} were right, over {canaries} canaries: expected correct <= guesses <= canaries."
        )

    def excess(epsilon: float) -> float:
        right = scipy.special.expit(epsilon)
        chance = scipy.special.betainc(correct, guesses - correct + 1, right) if correct else 1.0  # P(W >= v)
        # P(v > W >= v - i) for i = 1, ..., v
        below = np.cumsum(_binomial(np.arange(correct - 1, -1, -1), guesses, right))
        slack = np.max(below / np.arange(1, correct + 1), initial=0.0)
        return float(chance + 2 * canaries * delta * slack - (1 - confidence))

    if guesses == 0 or excess(0.0) >= 0:
        return 0.0
    high = 1.0
    while excess(high) < 0:
        high *= 2

    return scipy.optimize.root_scalar(excess, bracket=(0.0, high), xtol=1e-9).root


def _binomial(successes: np.ndarray, trials: int, probability: float) -> np.ndarray:
    """Probability of each number of successes. (``scipy.stats`` takes long to import.)"""
    failures = trials - successes
    log_factorial, xlogy = (lambda n: scipy.special.gammaln(n + 1)), scipy.special.xlogy
    ways = log_factorial(trials) - log_factorial(successes) - log_factorial(failures)
    return np.exp(ways + xlogy(successes, probability) + xlogy(failures, 1 - probability))


def check_confidence(confidence: float) -> None:
    """0 < confidence < 1."""
    checks.positive("confidence", confidence)
    if not float(confidence) < 1:
        raise ValueError(f"confidence is {confidence}, expected a number in (0, 1), such as 0.95.")
