"""Distributed noise: every client adds a share of discrete noise to its rounded message, and only their sum mod 2^b is seen."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from fedjax_sim._src import checks, keys
from fedjax_sim._src.grid import Settings, grid
from fedjax_sim._src.types import Array, Facts, Key, Mean, Noise, Transform
from fedjax_sim.aggregation._integers import IntegerLaw, draw
from fedjax_sim.aggregation._rotation import Flat

_ATTEMPTS = 32
_ROUND, _NOISE = 0, 1
"""Purposes under the layer's key."""


def discrete_gaussian_noise(
    noise_multiplier: float,
    *,
    min_clients: int,
    max_clients: int | None = None,
    bits: int = 20,
    deviations: float = 4.0,
    beta: float = math.exp(-0.5),
) -> Transform:
    """The distributed discrete Gaussian mechanism (Kairouz, Liu and Steinke 2021, algorithms 1 and 2).

    Each client scales its message to a grid, rounds it at random, adds discrete Gaussian noise of its own and sends integers
    modulo ``2^bits``; the server sees their sum alone. Stands last, behind ``hadamard_rotation``:
    ``chain(clip_by_global_norm(C), mean(over="expected_cohort"), hadamard_rotation(), discrete_gaussian_noise(z, min_clients=n))``.

    Guarantees:
      A rounded message keeps the norm of the paper's theorem 1, for every input: it is rounded at most 32 times until it
      does, and toward zero, which lengthens nothing, if it never does. That happens with probability at most ``beta^32`` and is
      counted in the metric ``truncated``.
      Every client of the cohort adds noise, one without examples, too. ``min_clients`` together add a standard deviation of
      ``noise_multiplier`` times the bound, in every coordinate; more clients add more. A round in which fewer come is thrown
      away, as a secure aggregation with that threshold does: it decodes to zero and is counted in the metric ``discarded``. So the
      price holds whoever comes.
      Sums are exact modulo ``2^bits``, in ``uint32``. Of up to ``max_clients`` rotated messages a coordinate of the sum wraps
      around with probability at most ``2 exp(-deviations^2 / 2)``, were rounding not repeated; it costs accuracy, never privacy.
      The noise's law is exact to float64's rounding and 2^-64.

    Args:
      noise_multiplier: above 0; a Python number, as the grid and the tables of the noise follow from it.
      min_clients: a public number of clients that come to every round that counts.
      max_clients: a public number that come at most; ``min_clients`` by default.
      bits: of each number sent, 1 to 32.
      deviations: of a coordinate of the sum that find room on either side; the paper and TFF use 4.
      beta: in [0, 1); the paper's. At 0 a message is rounded once and may grow by the root of its dimension.

    Raises:
      ValueError: an argument outside its range; when a message is first seen, too few bits for it, or a cohort that is
        expected to be smaller than ``min_clients``; the refusals of ``chain``.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from fedjax_sim import aggregation as agg
      >>> private = agg.chain(
      ...     agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"),
      ...     agg.hadamard_rotation(), agg.discrete_gaussian_noise(0.01, min_clients=4))
      >>> mean, _, _ = agg.run(private, jnp.full((4, 3), 0.5), key=jax.random.key(0))
      >>> [round(float(x), 1) for x in mean]
      [0.5, 0.5, 0.5]
    """
    settings = _settings(noise_multiplier, min_clients, max_clients, bits, deviations, beta)
    return _distributed("discrete_gaussian", settings)


def skellam_noise(
    noise_multiplier: float,
    *,
    min_clients: int,
    max_clients: int | None = None,
    bits: int = 20,
    deviations: float = 4.0,
    beta: float = math.exp(-0.5),
) -> Transform:
    """The Skellam mechanism (Agarwal, Kairouz and Liu 2021, section 4): as ``discrete_gaussian_noise``, with Skellam noise.

    Skellam noise, the difference of two Poisson variables, is closed under sums: the clients' noises together have the very law
    that is priced.

    Guarantees:
      Those of ``discrete_gaussian_noise``, but for the tails: a Skellam variable of few levels has heavier ones than a Gaussian,
      and a coordinate wraps around a little more often than said there.

    Args and errors as for ``discrete_gaussian_noise``.

    Example:
      >>> from fedjax_sim import aggregation as agg
      >>> private = agg.chain(
      ...     agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"),
      ...     agg.hadamard_rotation(), agg.skellam_noise(0.8, min_clients=100))
      >>> private.facts[-1].noise.law
      'skellam'
    """
    settings = _settings(noise_multiplier, min_clients, max_clients, bits, deviations, beta)
    return _distributed("skellam", settings)


def _settings(z: float, least: int, most: int | None, bits: int, deviations: float, beta: float) -> Settings:
    if checks.is_traced(z) or callable(z):
        raise TypeError(
            "noise_multiplier is traced or a schedule, expected a Python number: the grid of discrete noise is part of the "
            "program. Use one simulation per multiplier."
        )
    checks.positive("noise_multiplier", z)
    checks.positive_int("min_clients", least)
    most = least if most is None else most
    checks.positive_int("max_clients", most)
    if most < least:
        raise ValueError(f"max_clients is {most}, expected at least min_clients, {least}.")
    checks.positive_int("bits", bits)
    if bits > 32:
        raise ValueError(f"bits is {bits}, expected at most 32: numbers travel as uint32.")
    checks.positive("deviations", deviations)
    if not 0 <= float(beta) < 1:
        raise ValueError(f"beta is {beta}, expected a number in [0, 1).")
    return Settings(float(z), int(least), int(most), int(bits), float(deviations), float(beta))


def _distributed(law: IntegerLaw, settings: Settings) -> Transform:
    bits = settings.bits

    def made(dimension: int):
        try:
            return grid(settings, max(dimension, 1))
        except ValueError as error:
            raise ValueError(f"{law}_noise: {error}") from None

    def init(spec):
        made(sum(math.prod(x.shape) for x in jax.tree.leaves(spec.value)))
        return (), ()

    def encode(message, client, server, ctx):
        flat = Flat.of(message.value)
        steps = made(flat.vector.shape[0])
        scaled = flat.vector * (steps.levels / ctx.bound)
        rounded, truncated = stochastic_rounding(keys.fold(ctx.key, _ROUND), scaled, steps.squared_norm)
        noise = draw(keys.fold(ctx.key, _NOISE), law, steps.local_std, rounded.shape)
        sent = flat.with_vector(wrapped(rounded + noise, bits))
        came = (jnp.asarray(ctx.num_examples) > 0).astype(jnp.float32)
        metrics = {"truncated": Mean(truncated.astype(jnp.float32) * came, came)}
        return message._replace(value=sent, stack=(*message.stack, jnp.ones((), jnp.uint32))), client, metrics

    def decode(message, server, ctx):
        if ctx.expected_clients < settings.min_clients:
            raise ValueError(
                f"{law}_noise: min_clients is {settings.min_clients}, but only {ctx.expected_clients:g} clients are expected "
                "in a round, so that most rounds would be thrown away. Use larger cohorts or a smaller min_clients."
            )
        *stack, clients = message.stack
        flat: Flat = message.value
        steps = made(flat.vector.shape[0])
        total = unwrapped(flat.vector, bits).astype(jnp.float32) * (ctx.bound / steps.levels)
        enough = clients >= settings.min_clients
        value = flat.with_vector(jnp.where(enough, total, 0.0)).restored()
        discarded = Mean((~enough).astype(jnp.float32), jnp.ones(()))
        return message._replace(value=value, stack=tuple(stack)), server, {"discarded": discarded}

    details: dict[str, Any] = {
        name: value for name, value in settings._asdict().items() if name != "noise_multiplier"
    }
    # The ledger fills in the dimension of the message that the layer gets.
    noise = Noise(law, settings.noise_multiplier, {**details, "dimension": None}, trust="distributed")
    return Transform(
        init=init,
        # What is sent carries noise, and has wrapped around.
        bound=lambda server, incoming: jnp.inf,
        encode=encode,
        decode=decode,
        facts=(Facts(f"{law}_noise", reduction="modular_sum", breaks_bound=True, noise=noise),),
    )


def stochastic_rounding(key: Key, x: Array, squared_norm: float, attempts: int = _ATTEMPTS):
    """Rounds up or down, with ``x`` as the mean, again and again until the norm is small enough.

    Args:
      key: for all attempts.
      x: ``f32[size]``, of a norm within the bound.
      squared_norm: the bound, squared.
      attempts: before it is rounded toward zero instead, which keeps any bound on ``x``.

    Returns:
      ``int32[size]``, and whether it was rounded toward zero, ``bool[]``.
    """
    low = jnp.floor(x)
    part = x - low

    def once(attempt):
        return low + (jax.random.uniform(keys.fold(key, attempt), x.shape) < part)

    def long(carry):
        attempt, value = carry
        return (attempt < attempts) & (jnp.sum(jnp.square(value)) > squared_norm)

    first = (jnp.int32(1), once(0))
    _, value = jax.lax.while_loop(long, lambda carry: (carry[0] + 1, once(carry[0])), first)
    truncated = jnp.sum(jnp.square(value)) > squared_norm
    return jnp.where(truncated, jnp.trunc(x), value).astype(jnp.int32), truncated


def wrapped(x: Array, bits: int) -> Array:
    """``int32`` to its remainder modulo ``2^bits`` as ``uint32``."""
    return jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(2**bits - 1)


def unwrapped(x: Array, bits: int) -> Array:
    """A sum of remainders, ``uint32``, to the integer in ``[-2^(bits-1), 2^(bits-1))`` that it stands for, ``int32``."""
    spare = jnp.int32(32 - bits)
    # Shifted to the top and back, the sign bit of ``bits`` bits becomes that of 32.
    top = jax.lax.bitcast_convert_type(x << spare.astype(jnp.uint32), jnp.int32)
    return top >> spare
