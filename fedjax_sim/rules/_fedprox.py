"""FedProx's client: local training with a proximal term."""

from __future__ import annotations

import jax
import optax

from fedjax_sim._src import checks
from fedjax_sim._src.types import ClientRule, Task
from fedjax_sim.rules._local_sgd import local_sgd
from fedjax_sim.rules._plain import ParamsLoss


def fedprox(task: Task | ParamsLoss, optimizer: optax.GradientTransformation, *, mu: float) -> ClientRule:
    """Local training on the loss plus ``mu / 2 * |w - w_server|^2`` (Li et al. 2020, equation 2).

    Args:
      task: as for ``local_sgd``: a task, or a function ``(params, batch)`` to one loss per example.
      optimizer: any optax transformation.
      mu: weight of the proximal term, 0 or above; may be traced.

    Raises:
      ValueError: ``mu`` is negative or not finite.
    """
    checks.not_negative("mu", mu)

    def pull(params, start):
        return jax.tree.map(lambda w, w0: mu * (w - w0), params, start)

    return local_sgd(task, optimizer, correction=pull)
