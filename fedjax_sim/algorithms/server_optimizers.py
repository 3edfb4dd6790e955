"""Server optimizers as their papers define them, as optax transformations.

``optax.adam`` is not FedAdam: the paper corrects no bias and starts the second moment at ``tau**2``. The gradient that
they receive is the pseudo-gradient, minus the mean client update.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fedjax_sim._src import checks
from fedjax_sim._src.types import PyTree

__all__ = ["fedadagrad", "fedadam", "fedavgm", "fedyogi"]


class AdaptiveState(NamedTuple):
    """First moment m and second moment v of the paper, shaped like the parameters."""

    momentum: PyTree
    second: PyTree


def fedavgm(
    learning_rate: float = 1.0, momentum: float = 0.9, *, nesterov: bool = False
) -> optax.GradientTransformation:
    """Server momentum: ``v <- momentum * v + g``, ``x <- x - learning_rate * v`` (Hsu et al. 2019, section 3)."""
    checks.positive("learning_rate", learning_rate)
    checks.not_negative("momentum", momentum)
    return optax.sgd(learning_rate, momentum, nesterov)


def fedadagrad(
    learning_rate: float, b1: float = 0.0, tau: float = 1e-3, initial_second: float | None = None
) -> optax.GradientTransformation:
    """FedAdagrad (Reddi et al. 2021, algorithm 2): ``v <- v + g^2``.

    Args:
      learning_rate: the server's step size.
      b1: decay of the first moment.
      tau: adaptivity, added to the root of the second moment.
      initial_second: where v starts; ``tau**2`` by default, as in the paper (FLamby starts at 0).
    """
    return _adaptive(learning_rate, b1, tau, initial_second, lambda v, square: v + square)


def fedadam(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial_second: float | None = None,
) -> optax.GradientTransformation:
    """FedAdam (Reddi et al. 2021, algorithm 2): ``v <- b2 v + (1 - b2) g^2``, no bias correction.

    Args:
      learning_rate: the server's step size.
      b1: decay of the first moment.
      b2: decay of the second moment.
      tau: adaptivity, added to the root of the second moment.
      initial_second: where v starts; ``tau**2`` by default, as in the paper (FLamby starts at 0).

    Example:
      >>> import jax.numpy as jnp, fedjax_sim as fs
      >>> optimizer = fs.algorithms.server_optimizers.fedadam(0.1, b1=0.0, b2=0.0, tau=1.0)
      >>> update, _ = optimizer.update(jnp.float32(3.0), optimizer.init(jnp.float32(0.0)))
      >>> round(float(update), 4)
      -0.075
    """
    return _adaptive(learning_rate, b1, tau, initial_second, lambda v, square: b2 * v + (1 - b2) * square)


def fedyogi(
    learning_rate: float,
    b1: float = 0.9,
    b2: float = 0.99,
    tau: float = 1e-3,
    initial_second: float | None = None,
) -> optax.GradientTransformation:
    """FedYogi (Reddi et al. 2021, algorithm 2): ``v <- v - (1 - b2) g^2 sign(v - g^2)``.

    Arguments as for ``fedadam``.
    """
    return _adaptive(
        learning_rate, b1, tau, initial_second, lambda v, square: v - (1 - b2) * square * jnp.sign(v - square)
    )


def _adaptive(
    learning_rate: float, b1: float, tau: float, initial_second: float | None, second: Callable
) -> optax.GradientTransformation:
    """``m <- b1 m + (1 - b1) g``, ``x <- x - learning_rate m / (sqrt(v) + tau)``."""
    checks.positive("learning_rate", learning_rate)
    checks.not_negative("b1", b1)
    checks.positive("tau", tau)
    start = tau**2 if initial_second is None else initial_second
    checks.not_negative("initial_second", start)

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return AdaptiveState(zeros, jax.tree.map(lambda x: jnp.full_like(x, start), params))

    def update(updates, state, params=None):
        del params
        momentum = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.momentum, updates)
        moved = jax.tree.map(lambda v, g: second(v, jnp.square(g)), state.second, updates)
        step = jax.tree.map(lambda m, v: -learning_rate * m / (jnp.sqrt(v) + tau), momentum, moved)
        return step, AdaptiveState(momentum, moved)

    return optax.GradientTransformation(init, update)
