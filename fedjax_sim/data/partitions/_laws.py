"""Draws that the partitions share: proportions, and whole numbers that follow them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from fedjax_sim._src import checks

SizeLaw = Literal["power_law", "log_normal", "dirichlet"]


def dirichlet_proportions(generator: np.random.Generator, alpha: np.ndarray) -> np.ndarray:
    """One draw of ``Dir(alpha)`` for all finite alpha above 0.

    A Dirichlet draw is Gammas over their sum, but Gammas of a tiny shape underflow to 0 together. Their logarithms
    do not: ``log G(a) = log G(a + 1) + log(U) / a`` in law, and ``-log(U)`` is exponential. For a < 1 all is kept
    times the smallest ``a`` until the largest has been subtracted, so that ``1 / a`` cannot overflow it either.
    """
    alpha = np.asarray(alpha, np.float64)
    scale = min(alpha.min(), 1.0)
    logs = scale * np.log(generator.standard_gamma(alpha + 1.0)) - (
        scale / alpha
    ) * generator.standard_exponential(len(alpha))
    return _normalised(logs, scale)


def size_weights(generator: np.random.Generator, clients: int, law: SizeLaw, shape: float) -> np.ndarray:
    """Relative sizes of clients, ``float64[clients]``, which sum to 1."""
    if law == "dirichlet":
        return dirichlet_proportions(generator, np.full(clients, shape))
    if law == "log_normal":
        logs = generator.standard_normal(clients)
        with np.errstate(over="ignore"):  # less the largest at once: two infinities have no difference
            return _normalised(shape * (logs - logs.max()), 1.0)
    # A Pareto variable is exp(E / shape) with E exponential.
    scale = min(shape, 1.0)
    return _normalised((scale / shape) * generator.standard_exponential(clients), scale)


def _normalised(logs: np.ndarray, scale: float) -> np.ndarray:
    """``exp(logs / scale)`` over its sum."""
    with np.errstate(over="ignore", under="ignore"):
        weights = np.exp((logs - logs.max()) / scale)
    return weights / weights.sum()


def systematic_counts(proportions: np.ndarray, total: int, generator: np.random.Generator) -> np.ndarray:
    """Integers that sum to ``total``, each ``total * proportion`` rounded up or down, and equal to it on average.

    Cutting at ``floor(total * cumulative)`` without the random start would, for labels with fewer examples than
    clients, favour the same clients every time.
    """
    edges = np.floor(total * np.cumsum(proportions) + generator.random()).astype(np.int64)
    edges[-1] = total  # the cumulative sum ends at 1 only up to rounding
    return np.diff(np.minimum(edges, total), prepend=0)


def counts_within(
    proportions: np.ndarray, total: int, room: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Integers that sum to ``total``, by the proportions, but none above its ``room``.

    What does not fit goes to those with room left, by their proportions, and by their room where these are all 0. Each
    pass fills somebody up or is the last, so it ends; there must be room for all.
    """
    counts = np.zeros(len(room), np.int64)
    while (left := total - counts.sum()) > 0:
        free = room - counts
        weights = np.where(free > 0, proportions, 0.0)
        if weights.sum() <= 0:
            weights = free.astype(np.float64)
        counts += np.minimum(systematic_counts(weights / weights.sum(), left, generator), free)
    return counts


def wanted_sizes(
    sizes: Literal["equal"] | Sequence[int], clients: int, examples: int, generator: np.random.Generator
) -> np.ndarray:
    """Sizes of the clients, ``int64[clients]``, from what was asked for.

    Raises:
      ValueError: not one size for each client, one below 0, or more than there are examples.
    """
    if isinstance(sizes, str):
        checks.one_of("sizes", sizes, ("equal",))
        return examples // clients + (generator.permutation(clients) < examples % clients)
    wanted = np.asarray(sizes)
    if wanted.shape != (clients,) or wanted.dtype.kind not in "iu" or wanted.min(initial=0) < 0:
        raise ValueError(
            f"sizes is {wanted.dtype}{list(wanted.shape)}, expected 'equal' or {clients} integers, one for each client, "
            "none below 0."
        )
    # Each by itself first: the sum of very large ones would turn over.
    if wanted.max(initial=0) > examples or wanted.sum() > examples:
        raise ValueError(f"sizes sum to {sum(wanted.tolist())}, but there are {examples} examples.")
    return wanted.astype(np.int64)
