"""One release with Gaussian noise: its exact price, in closed form."""

from __future__ import annotations

import math

import scipy

from fedjax_sim._src import checks


def gaussian_delta(sigma: float, epsilon: float, sensitivity: float = 1.0) -> float:
    """The smallest delta of one release with Gaussian noise (Balle and Wang 2018, theorem 8).

    Args:
      sigma: standard deviation of the noise.
      epsilon: 0 or above.
      sensitivity: L2, of what is released.

    Example:
      >>> import fedjax_sim as fs
      >>> round(fs.privacy.gaussian_delta(sigma=3.731, epsilon=1.0), 7)
      1e-05
    """
    checks.positive("sigma", sigma)
    checks.not_negative("epsilon", epsilon)
    checks.positive("sensitivity", sensitivity)
    half, slope = sensitivity / (2 * sigma), epsilon * sigma / sensitivity
    first = scipy.special.ndtr(half - slope)
    # exp(epsilon) alone overflows where its product with the tail is small.
    second = math.exp(epsilon + scipy.special.log_ndtr(-half - slope))
    return float(max(first - second, 0.0))


def gaussian_sigma(epsilon: float, delta: float, sensitivity: float = 1.0) -> float:
    """The smallest standard deviation that makes one release (epsilon, delta)-private: the analytic Gaussian mechanism.

    For training, which releases a sum in every round, use ``calibrate``.

    Args:
      epsilon: above 0.
      delta: in (0, 1).
      sensitivity: L2, of what is released.

    Raises:
      ValueError: an argument outside its range.

    Source: Balle and Wang 2018, "Improving the Gaussian Mechanism for Differential Privacy", algorithm 1. The classic
    ``sqrt(2 ln(1.25 / delta)) / epsilon`` is proved for epsilon below 1 alone, and adds more noise than is needed.

    Example:
      >>> import fedjax_sim as fs
      >>> round(fs.privacy.gaussian_sigma(epsilon=1.0, delta=1e-5), 3)
      3.731
    """
    checks.positive("epsilon", epsilon)
    check_delta(delta)
    checks.positive("sensitivity", sensitivity)

    def excess(log_sigma: float) -> float:
        return gaussian_delta(math.exp(log_sigma), epsilon) - delta

    low, high = 0.0, 0.0
    while excess(low) < 0:
        low -= 1.0
    while excess(high) > 0:
        high += 1.0
    # The bisection's error goes to the side of more noise.

    root = scipy.optimize.root_scalar(excess, bracket=(low, high), xtol=1e-12).root if low < high else low
    return sensitivity * math.exp(root + 1e-12)


def update_noise_multiplier(noise_multiplier: float, count_noise_std: float) -> float:
    """Splits noise between the updates and the count of an adaptive clip, at the price of ``noise_multiplier`` alone.

    Args:
      noise_multiplier: that the two releases of a round cost together.
      count_noise_std: of ``agg.adaptive_clip``; the paper takes a twentieth of the cohort.

    Returns:
      What ``agg.gaussian_noise`` has to be given, above ``noise_multiplier``.

    Raises:
      ValueError: the count alone costs more than ``noise_multiplier``.

    Source: Andrew et al. 2021, theorem 1: ``(z^-2 - (2 count_noise_std)^-2)^(-1/2)``.

    Example:
      >>> import fedjax_sim as fs
      >>> round(fs.privacy.update_noise_multiplier(1.0, count_noise_std=5.0), 7)
      1.0050378
    """
    checks.positive("noise_multiplier", noise_multiplier)
    checks.positive("count_noise_std", count_noise_std)
    if 2 * count_noise_std <= noise_multiplier:
        raise ValueError(
            f"count_noise_std is {count_noise_std}, expected more than half of the noise multiplier {noise_multiplier}: the "
            "count alone would cost as much as the whole round may."
        )
    return (noise_multiplier**-2 - (2 * count_noise_std) ** -2) ** -0.5


def check_delta(delta: float) -> None:
    """0 < delta < 1."""
    checks.positive("delta", delta)
    if not float(delta) < 1:
        raise ValueError(
            f"delta is {delta}, expected a number in (0, 1), well below one over the number of clients."
        )
