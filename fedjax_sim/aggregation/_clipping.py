"""Clipping of client updates to a norm, fixed or adaptive."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import Array, Facts, Mean, Transform


def clip_by_global_norm(clip_norm: float) -> Transform:
    """Scales each client's message down to L2 norm ``clip_norm`` over the whole pytree (McMahan et al. 2018).

    Guarantees:
      The encoded value's L2 norm, taken in float32 over all leaves, is at most ``clip_norm`` up to rounding, for
      every input. A message whose norm is not finite (NaN, infinity, squares beyond float32) becomes zero as a whole and is counted in the metric ``nonfinite``.
      A message within the norm is unchanged.

    Args:
      clip_norm: the bound, above 0; may be traced.

    Raises:
      ValueError: ``clip_norm`` is not a finite number of 1e-12 or above, below which float32 has no squares.
    """
    checks.clip_norm("clip_norm", clip_norm)

    def encode(message, client, server, ctx):
        value, clipped, finite = tree.clip(message.value, clip_norm)
        return message._replace(value=value), client, clip_metrics(clipped, finite, ctx)

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: jnp.minimum(incoming, clip_norm),
        encode=encode,
        decode=lambda message, server, ctx: (message, server, {}),
        facts=(Facts("clip_by_global_norm", limits_norm=True, keeps_l1=True),),
    )


class AdaptiveClipState(NamedTuple):
    """``clip_norm``: ``f32[]``, the norm of the next round."""

    clip_norm: Array


def adaptive_clip(
    initial_norm: float = 0.1,
    target_quantile: float = 0.5,
    learning_rate: float = 0.2,
    count_noise_std: float = 0.0,
) -> Transform:
    """Clips to a norm that follows a quantile of the update norms (Andrew et al. 2021, algorithm 1).

    After each round ``C <- C * exp(-learning_rate * (b - target_quantile))``, where ``b`` is the noisy fraction of
    clients that were NOT clipped. A bit is sent as plus or minus one half, so that one client moves the sum by a half,
    whether it is not there or has no examples:
    ``b = 1/2 + (sum of (bits - 1/2) + N(0, count_noise_std^2)) / expected cohort``.

    Guarantees:
      The bound of a round is the norm that the round before left. The bit travels beside the value, so that it is
      neither clipped nor noised with it; a message that is not finite becomes zero and sends bit 0. A client without
      examples adds nothing to the sum of bits, as if it were not there.

    Args:
      initial_norm: the first round's bound, 1e-12 or above, where the norm stays.
      target_quantile: in [0, 1].
      learning_rate: of the geometric update; the paper uses 0.2.
      count_noise_std: standard deviation of the noise on the sum of bits; the paper uses 0.05 times the cohort. At 0
        the next norm follows the exact count, which is not private: ``chain`` refuses noise behind it.

    Raises:
      ValueError: an argument outside its range; the refusals of ``chain``.
    """
    checks.clip_norm("initial_norm", initial_norm)
    checks.not_negative("count_noise_std", count_noise_std)
    checks.positive("learning_rate", learning_rate)
    if not checks.is_traced(target_quantile) and not 0 <= float(target_quantile) <= 1:
        raise ValueError(f"target_quantile is {target_quantile}, expected a number in [0, 1].")

    def encode(message, client, server, ctx):
        value, clipped, finite = tree.clip(message.value, server.clip_norm)
        unclipped = (~clipped & finite).astype(jnp.float32) - 0.5
        # Between a clipped message and none, a bit for none would move the sum by a whole one: twice what is paid for.
        unclipped = jnp.where(jnp.asarray(ctx.num_examples) > 0, unclipped, 0.0)
        sent = message._replace(value=value, stack=(*message.stack, unclipped))
        return sent, client, clip_metrics(clipped, finite, ctx)

    def decode(message, server, ctx):
        *stack, unclipped = message.stack
        noise = count_noise_std * ctx.noise_scale * jax.random.normal(ctx.key, (), jnp.float32)
        fraction = 0.5 + (unclipped + noise) / ctx.expected_clients
        norm = server.clip_norm * jnp.exp(-learning_rate * (fraction - target_quantile))
        norm = jnp.maximum(norm, checks.SMALLEST_NORM)  # below, the bound would not hold
        measured = {
            "clip_norm": Mean(server.clip_norm, jnp.ones(())),
            "unclipped": Mean(fraction, jnp.ones(())),
        }
        return message._replace(stack=tuple(stack)), AdaptiveClipState(norm), measured

    return Transform(
        init=lambda spec: (AdaptiveClipState(jnp.asarray(initial_norm, jnp.float32)), ()),
        bound=lambda server, incoming: jnp.minimum(incoming, server.clip_norm),
        encode=encode,
        decode=decode,
        facts=(Facts("adaptive_clip", limits_norm=True, count_noise_std=count_noise_std, keeps_l1=True),),
    )


def clip_metrics(clipped, finite, ctx):
    """Shares of the clients that came: clipped, and not finite."""
    came = (jnp.asarray(ctx.num_examples) > 0).astype(jnp.float32)
    return {
        "clipped": Mean(clipped.astype(jnp.float32) * came, came),
        "nonfinite": Mean((~finite).astype(jnp.float32) * came, came),
    }
