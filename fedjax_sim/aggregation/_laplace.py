"""Laplace noise on the sum over clients, and noise that each client adds for itself."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks
from fedjax_sim._src.types import Array, Facts, Key, Noise, Transform

Draw = Callable[[Key, tuple[int, ...]], Array]


def laplace_noise(noise_multiplier: float) -> Transform:
    """Adds Laplace noise to the SUM of the clients' messages (Dwork et al. 2006, proposition 1).

    Guarantees:
      Every coordinate of every leaf gets independent noise of one scale, ``noise_multiplier`` times the L1 bound that holds
      where the layer stands, and so a standard deviation of ``sqrt(2)`` times that. It is drawn once per round on the server, whatever
      the devices. ``chain`` refuses it unless every clip before it is one in L1.

    Args:
      noise_multiplier: scale over bound, above 0; may be traced.

    Raises:
      ValueError: ``noise_multiplier`` is not a finite number above 0; the refusals of ``chain``.

    Example:
      >>> import fedjax_sim as fs
      >>> from fedjax_sim import aggregation as agg
      >>> private = agg.chain(agg.clip_by_l1_norm(1.0), agg.mean(over="expected_cohort"), agg.laplace_noise(2.0))
      >>> round(fs.privacy.epsilon(private, fs.cohorts.all_clients(), rounds=1, delta=1e-9), 3)
      0.5
    """
    checks.positive("noise_multiplier", noise_multiplier)

    def decode(message, server, ctx):
        scale = noise_multiplier * ctx.bound
        return message._replace(value=_noisy(ctx.key, message.value, scale, _laplace)), server, {}

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: incoming,
        encode=lambda message, client, server, ctx: (message, client, {}),
        decode=decode,
        facts=(Facts("laplace_noise", noise=Noise("laplace", noise_multiplier), norm="l1"),),
    )


def local_gaussian_noise(noise_multiplier: float) -> Transform:
    """Adds Gaussian noise to each client's message before it is sent: local differential privacy.

    Guarantees:
      Every coordinate of every leaf of every client of the cohort, with examples or without, gets independent noise of
      standard deviation ``noise_multiplier`` times the bound that holds where the layer stands. It follows from client and
      round, whatever the lanes and devices. The message is private against a server that sees it: each round that a client takes
      part in costs it the same, and nobody's chance of being drawn makes that less.
      The sum over ``n`` clients has ``sqrt(n)`` times the noise.

    Args:
      noise_multiplier: standard deviation over bound, above 0; may be traced.

    Raises:
      ValueError: ``noise_multiplier`` is not a finite number above 0; the refusals of ``chain``.

    Example:
      >>> import fedjax_sim as fs
      >>> from fedjax_sim import aggregation as agg
      >>> local = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.local_gaussian_noise(8.0))
      >>> once = fs.privacy.epsilon(local, fs.cohorts.poisson(0.01), rounds=1, delta=1e-5)
      >>> round(once, 2), round(fs.privacy.gaussian_sigma(once, 1e-5, sensitivity=2.0), 1)
      (0.93, 8.0)
    """
    return _local("local_gaussian", noise_multiplier, jax.random.normal, "l2")


def local_laplace_noise(noise_multiplier: float) -> Transform:
    """Adds Laplace noise to each client's message before it is sent: local differential privacy, with delta 0 for one message.

    Guarantees:
      Those of ``local_gaussian_noise``, with a scale of ``noise_multiplier`` times the L1 bound, a standard deviation of
      ``sqrt(2)`` times that. ``chain`` refuses it unless every clip before it is one in L1.

    Args:
      noise_multiplier: scale over bound, above 0; may be traced.

    Raises:
      ValueError: ``noise_multiplier`` is not a finite number above 0; the refusals of ``chain``.
    """
    return _local("local_laplace", noise_multiplier, _laplace, "l1")


def _local(law: str, noise_multiplier, draw: Draw, norm) -> Transform:
    checks.positive("noise_multiplier", noise_multiplier)

    def encode(message, client, server, ctx):
        scale = noise_multiplier * ctx.bound
        return message._replace(value=_noisy(ctx.key, message.value, scale, draw)), client, {}

    return Transform(
        init=lambda spec: ((), ()),
        bound=lambda server, incoming: jnp.inf,
        encode=encode,
        decode=lambda message, server, ctx: (message, server, {}),
        facts=(
            Facts(
                f"{law}_noise",
                breaks_bound=True,
                noise=Noise(law, noise_multiplier, trust="local"),
                norm=norm,
            ),
        ),
    )


def _noisy(key: Key, value, scale, draw: Draw):
    """Independent draws times a scale on every leaf; drawn in float32, or the leaf's type where that is wider."""
    leaves, structure = jax.tree.flatten(value)
    keys = jax.random.split(key, max(len(leaves), 1))

    def one(key, x):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return (x.astype(wide) + scale * draw(key, x.shape).astype(wide)).astype(x.dtype)

    return jax.tree.unflatten(structure, [one(key, x) for key, x in zip(keys, leaves, strict=False)])


def _laplace(key: Key, shape: tuple[int, ...]) -> Array:
    """Of scale 1: the difference of two exponential variables, whose tails go on where one uniform number's end."""
    first, second = jax.random.exponential(key, (2, *shape), jnp.float32)
    return first - second
