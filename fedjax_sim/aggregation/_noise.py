"""Central noise on the sum over clients."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks
from fedjax_sim._src.types import Facts, Transform


def gaussian_noise(noise_multiplier: float) -> Transform:
    """Adds Gaussian noise to the SUM of the clients' messages (McMahan et al. 2018, algorithm 1).

    Guarantees:
      Every coordinate of every leaf gets independent noise of one standard deviation, ``noise_multiplier`` times the
      bound that holds where the layer stands. It is drawn once per round on the server, whatever the devices.

    Args:
      noise_multiplier: standard deviation over bound; above 0; may be traced.

    Raises:
      ValueError: ``noise_multiplier`` is not a finite number above 0; the refusals of ``chain``.
    """
    checks.positive("noise_multiplier", noise_multiplier)

    def decode(message, server, ctx):
        std = noise_multiplier * ctx.bound
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
        facts=(Facts("gaussian_noise", noise_multiplier=noise_multiplier, neighbour="add_or_remove_one"),),
    )
