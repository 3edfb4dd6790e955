"""Counts of clients that a layer's next state follows, as ``adaptive_clip``'s next norm does: their noise, and a canary's bit.

Each client with examples sends plus or minus one half. What is released is the noisy fraction, the metric ``unclipped``, and a
next state that must be a function of it.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src.types import Transform
from fedjax_sim.privacy.audits._noise_tests import (
    NoiseTest,
    at_a_distance,
    chi_square,
    kolmogorov,
    largest_correlation_with,
)

COUNTED = "/counted"
"""Metric of a layer that is ``shown``."""
BIT = 0.5
"""By which one client moves the sum of bits."""
_CLOSE = 1e-3
"""Of the states' spread, for float32."""


def counts_clients(layer: Transform) -> bool:
    """Whether a layer counts, under noise."""
    return float(layer.facts[0].count_noise_std or 0.0) > 0


def shown(layer: Transform) -> Transform:
    """The same layer, with a metric of all that it releases: ``f32[1 + numbers]``, the noisy sum of bits and its next state."""

    def decode(message, server, ctx):
        message, after, metrics = layer.decode(message, server, ctx)
        if "unclipped" not in metrics:
            raise ValueError(
                f"{layer.facts[0].name} has count_noise_std in its facts, so that it counts clients, but no metric 'unclipped': "
                "return the noisy fraction, a Mean, under that name, so that it can be audited."
            )
        fraction = metrics["unclipped"].total / metrics["unclipped"].weight
        seen = [(fraction - BIT) * ctx.expected_clients, *jax.tree.leaves(after)]
        return message, after, {**metrics, COUNTED[1:]: jnp.concatenate([jnp.ravel(x) for x in seen])}

    return layer._replace(decode=decode)


def count_tests(
    shown: np.ndarray, moved: np.ndarray, noise: np.ndarray, std: float, clients: int, slack: float
) -> tuple[NoiseTest, ...]:
    """Tests of one layer. Those that chance has no part in are 1 if they hold and 0 if not.

    Args:
      shown: ``f64[runs * rounds, 1 + numbers]`` of silent clients, two runs one after the other.
      moved: ``f64[canaries, rounds, 1 + numbers]``, the first of these rounds again with each canary.
      noise: ``f64[runs * rounds, coordinates]`` on the sum, as standard Gaussians.
      std: of the noise on the count, by the facts.
      clients: those with examples: they are counted, and nobody else.
      slack: for rounding.
    """
    quiet = shown[: moved.shape[1], 0]
    # The first client's own half is in the silent sums; without it there would be none.
    change = np.abs(moved[..., 0] - quiet + BIT)
    seen = np.concatenate([shown, moved.reshape(-1, shown.shape[1])])
    white = (shown[:, 0] - BIT * clients) / std
    sum_ = float(np.sum(white))
    found = {
        "variance": chi_square(np.sum(white**2), white.size),
        "law": kolmogorov(white),
        "mean over rounds": chi_square(sum_**2 / white.size, 1),
        "correlation at one distance": at_a_distance(white.reshape(2, -1, 1)),
        "correlation with the sum's noise": largest_correlation_with(white, noise),
        "a client moves it by its bit": float(change.max() <= BIT + slack),
        "the next state follows it": float(_follows(seen[:, 1:], seen[:, 0])),
    }
    return tuple(NoiseTest(f"count: {name}", p_value) for name, p_value in found.items())


def _follows(states: np.ndarray, sums: np.ndarray) -> bool:
    """Whether each number of the states, or its logarithm, is an affine function of the sums."""
    if not (np.isfinite(states).all() and np.isfinite(sums).all()):
        return False
    basis = np.stack([np.ones_like(sums), sums], axis=1)

    def affine(values: np.ndarray) -> bool:
        rest = values - basis @ np.linalg.lstsq(basis, values, rcond=None)[0]
        return bool(np.abs(rest).max() <= _CLOSE * np.ptp(values) + 1e-6 * np.abs(values).max())

    return all(affine(x) or (x.min() > 0 and affine(np.log(x))) for x in states.T)
