"""Privacy that differs between clients: norms of their own, and budgets of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Array, Facts, Mean, Noise, Transform
from fedjax_sim.aggregation._clipping import clip_metrics
from fedjax_sim.aggregation._noise import gaussian_noise


def clip_by_client_norm(clip_norms: Sequence[float]) -> Transform:
    """Clips each client's message to a norm of its own: who wants more privacy says less.

    Noise behind it is scaled to the largest of the norms, so that client ``i`` has the guarantee of the noise multiplier
    times ``max(clip_norms) / clip_norms[i]``; ``Simulation.client_epsilons`` gives each client's epsilon, and
    ``Simulation.privacy`` that of the worst.

    Guarantees:
      As ``clip_by_global_norm``, with the client's own norm. The bound is the largest.

    Args:
      clip_norms: ``[population]``, finite and above 0; groups have a norm in common.

    Raises:
      ValueError: a norm that is not finite and above 0.

    Source: after Boenisch et al. 2023, "Have it your way: Individualized Privacy Assignment for DP-SGD" (Scale).

    Example:
      >>> from fedjax_sim import aggregation as agg
      >>> clip = agg.clip_by_client_norm([1.0, 1.0, 0.25])
      >>> float(clip.bound((), float("inf")))
      1.0
    """
    norms = np.asarray(clip_norms, np.float32)
    if norms.ndim != 1 or not norms.size or not np.isfinite(norms).all() or norms.min() <= 0:
        raise ValueError(
            f"clip_norms has shape {list(norms.shape)}, expected one finite number above 0 for each client."
        )
    checks.clip_norm("the smallest of clip_norms", float(norms.min()))
    largest = float(norms.max())

    def encode(message, client, server, ctx):
        value, changed, finite = tree.clip(message.value, jnp.asarray(norms)[ctx.client])
        return message._replace(value=value), client, clip_metrics(changed, finite, ctx)

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: jnp.minimum(incoming, largest),
        encode=encode,
        decode=lambda message, server, ctx: (message, server, {}),
        facts=(Facts("clip_by_client_norm", limits_norm=True, client_norms=norms),),
    )


class FilterState(NamedTuple):
    """``spent``: ``f32[]``, what the client's releases cost so far, in zero-concentrated privacy."""

    spent: Array


def filtered_gaussian_noise(noise_multiplier: float, client_budget: float) -> Transform:
    """Gaussian noise on the sum, for clients that each stop when their own budget is spent (a Renyi filter).

    A client whose message has norm ``n`` pays ``n^2 / (2 (noise_multiplier * bound)^2)``: less than the worst case, the
    smaller its update. One that cannot pay sends zeros from then on in rounds that would cost more than it has left. So
    the price of a run is ``client_budget``, however many rounds it has.

    Guarantees:
      Noise as of ``gaussian_noise``. No client pays more than ``client_budget``. Chance in who takes part is not counted.
      What a client spent is its own secret, as its updates are.

    Args:
      noise_multiplier: standard deviation over bound, above 0.
      client_budget: rho of zero-concentrated differential privacy, above 0; ``fs.privacy.zcdp_budget(epsilon, delta)``.

    Raises:
      ValueError: a number that is not above 0; the refusals of ``chain``, as for ``gaussian_noise``.

    Source: Feldman and Zrnic 2021, "Individual Privacy Accounting via a Renyi Filter", algorithm 2.

    Example:
      >>> from fedjax_sim import aggregation as agg
      >>> private = agg.chain(
      ...     agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.filtered_gaussian_noise(4.0, 0.5))
    """
    checks.positive("client_budget", client_budget)
    checks.positive("noise_multiplier", noise_multiplier)
    noise = gaussian_noise(noise_multiplier)

    def encode(message, client, server, ctx):
        cost = (tree.global_norm(message.value) / (noise_multiplier * ctx.bound)) ** 2 / 2
        pays = client.spent + cost <= client_budget
        value = tree.where(pays, message.value, tree.zeros_like(message.value))
        came = (jnp.asarray(ctx.num_examples) > 0).astype(jnp.float32)
        measured = {"silent": Mean((~pays).astype(jnp.float32) * came, came)}
        return message._replace(value=value), FilterState(client.spent + jnp.where(pays, cost, 0.0)), measured

    details = {"client_budget": float(client_budget)} if not checks.is_traced(client_budget) else {}
    return noise._replace(
        init=lambda spec: ((), FilterState(jnp.zeros((), jnp.float32))),
        encode=encode,
        facts=(
            Facts("filtered_gaussian_noise", noise=Noise("filtered_gaussian", noise_multiplier, details)),
        ),
    )
