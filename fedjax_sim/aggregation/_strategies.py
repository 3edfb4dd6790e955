"""Strategies of banded matrix factorisation: which correlations of the noise make the sum of all updates exact."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import scipy

from fedjax_sim._src import checks

Error = Literal["mean", "max"]


def banded_coefficients(rounds: int, bands: int, error: Error = "mean") -> np.ndarray:
    """The banded Toeplitz strategy with the least error of the prefix sums, at sensitivity 1.

    The model after round ``t`` holds the sum of the first ``t`` updates, so what noise does to it is the noise in that
    prefix sum. A strategy ``C`` has the coefficients ``c`` on and below its diagonal; the noise of the rounds is
    ``C^-1 z``, and the sums have the error ``A C^-1 z`` with ``A`` the lower triangle of ones.

    Args:
      rounds: that the error is taken over.
      bands: number of coefficients, at most ``rounds``; 1 is independent noise.
      error: ``"mean"`` minimises the root of the mean of the variances over rounds, ``"max"`` the largest of them.

    Returns:
      ``f64[bands]``, of norm 1, the diagonal first.

    Raises:
      ValueError: ``rounds`` or ``bands`` below 1, more bands than rounds, another error.

    Source: McKenna 2024 (arXiv 2405.15913); Choquette-Choo et al. 2023 (arXiv 2306.08153).

    Example:
      >>> from fedjax_sim import aggregation as agg
      >>> agg.banded_coefficients(rounds=8, bands=2).round(4).tolist()
      [0.8858, 0.4641]
    """
    checks.positive_int("rounds", rounds)
    checks.positive_int("bands", bands)
    checks.one_of("error", error, ("mean", "max"))
    if bands > rounds:
        raise ValueError(f"bands is {bands}, but there are {rounds} rounds: use at most one band a round.")
    return np.array(_solved(int(rounds), int(bands), error))


@functools.lru_cache(maxsize=64)
def _solved(rounds: int, bands: int, error: Error) -> tuple[float, ...]:
    start = square_root(bands)
    found = scipy.optimize.minimize(
        _loss,
        start / np.linalg.norm(start),
        (_shares(rounds, error),),
        "L-BFGS-B",
        jac=True,
        bounds=[(1e-3, None)] + [(None, None)] * (bands - 1),
        options={"maxiter": 1000, "maxfun": 4000, "ftol": 1e-15, "gtol": 1e-10},
    )
    return tuple(found.x / np.linalg.norm(found.x))


def square_root(bands: int) -> np.ndarray:
    """The first coefficients of the square root of ``A``, the best Toeplitz strategy for the largest error.

    Fichtenberger et al. 2023; Dvijotham et al. 2024 (arXiv 2404.16706) prove it.
    """
    k = np.arange(1, bands)
    return np.cumprod(np.concatenate([[1.0], (2 * k - 1) / (2 * k)]))


def _shares(rounds: int, error: Error) -> np.ndarray:
    """Entry ``s`` of ``B = A C^-1``'s first column is in the variances of rounds ``s`` and later. The last is the largest."""
    return np.ones(rounds) if error == "max" else np.arange(rounds, 0, -1) / rounds


def _loss(c: np.ndarray, shares: np.ndarray) -> tuple[float, np.ndarray]:
    """Error times sensitivity, squared, and its gradient."""
    b = _solve(c, np.ones(len(shares)))
    error, sensitivity = shares @ b**2, c @ c
    # C b = 1, so that db / dc_j = -C^-1 (b shifted down by j); the transposed solve runs from the end.
    adjoint = _solve(c, (2 * shares * b)[::-1])[::-1]
    slope = np.array([-(adjoint[j:] @ b[: len(b) - j]) for j in range(len(c))])
    return float(error * sensitivity), slope * sensitivity + 2 * c * error


def _solve(c: np.ndarray, right: np.ndarray) -> np.ndarray:
    """``C x = right``."""

    return np.asarray(scipy.signal.lfilter([1.0], c, right))


def prefix_std(coefficients: Sequence[float] | np.ndarray, rounds: int) -> np.ndarray:
    """Standard deviation of the noise in the sum of the first 1, 2, ... ``rounds`` updates.

    Args:
      coefficients: of a strategy, as ``banded_coefficients`` returns them; ``[1.0]`` is independent noise.
      rounds: how many.

    Returns:
      ``f64[rounds]``, in units of noise multiplier times bound; coefficients of another norm than 1 count as scaled to it.

    Example:
      >>> from fedjax_sim import aggregation as agg
      >>> independent = agg.prefix_std([1.0], rounds=100)
      >>> banded = agg.prefix_std(agg.banded_coefficients(rounds=100, bands=10), rounds=100)
      >>> float(independent[-1]), float(banded[-1].round(2))
      (10.0, 3.83)
    """
    checks.positive_int("rounds", rounds)
    return np.sqrt(np.cumsum(_solve(scaled(coefficients), np.ones(rounds)) ** 2))


def scaled(coefficients: Sequence[float] | np.ndarray) -> np.ndarray:
    """Coefficients at norm 1.

    Raises:
      ValueError: something else than a row of finite numbers of which the first is above 0.
    """
    c = np.asarray(coefficients, np.float64)
    if c.ndim != 1 or not c.size or not np.isfinite(c).all() or not c[0] > 0:
        raise ValueError(
            f"coefficients has shape {list(c.shape)}, expected a list of finite numbers, the first of them above 0, as "
            "banded_coefficients(rounds, bands) returns it."
        )
    return c / np.linalg.norm(c)
