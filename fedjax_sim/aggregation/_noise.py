"""Central noise on the sum over clients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks
from fedjax_sim._src.types import Facts, Noise, Transform


def gaussian_noise(noise_multiplier: float | Callable[[Any], Any]) -> Transform:
    """Adds Gaussian noise to the SUM of the clients' messages (McMahan et al. 2018, algorithm 1).

    Guarantees:
      Every coordinate of every leaf gets independent noise of one standard deviation, ``noise_multiplier`` times the
      bound that holds where the layer stands. It is drawn once per round on the server, whatever the devices.

    Args:
      noise_multiplier: standard deviation over bound; above 0; may be traced. Or a schedule, a function of the round,
        ``int32[]``, to it.

    Raises:
      ValueError: ``noise_multiplier`` is not a finite number above 0; the refusals of ``chain``.
    """
    if not callable(noise_multiplier):
        checks.positive("noise_multiplier", noise_multiplier)

    def decode(message, server, ctx):
        z = noise_multiplier(ctx.round) if callable(noise_multiplier) else noise_multiplier
        std = jnp.asarray(z * ctx.noise_scale * ctx.bound, jnp.float32)
        leaves, structure = jax.tree.flatten(message.value)
        keys = jax.random.split(ctx.key, max(len(leaves), 1))
        noisy = [
            (x + std.astype(x.dtype) * jax.random.normal(key, x.shape, x.dtype))
            for key, x in zip(keys, leaves, strict=False)
        ]
        return message._replace(value=jax.tree.unflatten(structure, noisy)), server, {}

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: jnp.asarray(incoming),
        encode=lambda message, client, server, ctx: (message, client, {}),
        decode=decode,
        facts=(Facts("gaussian_noise", noise=Noise("gaussian", noise_multiplier)),),
    )
