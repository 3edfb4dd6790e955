"""Noise that is correlated between rounds, so that much of it cancels in the sum of all updates (DP-FTRL)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks, keys
from fedjax_sim._src.types import Array, Facts, Noise, Transform
from fedjax_sim.aggregation._strategies import Error, banded_coefficients, scaled


class TreeNoiseState(NamedTuple):
    """What ``tree_noise`` keeps.

    Attributes:
      words: ``uint32[2]``, key of the tree that the next round belongs to, unless it begins one.
      rounds: ``int32[]``, rounds so far.
    """

    words: Array
    rounds: Array


class BandedNoiseState(NamedTuple):
    """What ``banded_noise`` keeps.

    Attributes:
      earlier: the sum's pytree, each leaf ``[bands - 1, ...]``: noise that was added in the last rounds; round ``t`` has
        row ``t % (bands - 1)``.
      rounds: ``int32[]``, rounds so far.
    """

    earlier: Any
    rounds: Array


def tree_noise(noise_multiplier: float, restart_every: int | None = None) -> Transform:
    """Adds Gaussian noise to the SUM, correlated between rounds by a binary tree: DP-FTRL (Kairouz et al. 2021).

    The sum of the first ``t`` sums is released as the sum of at most ``log2(t) + 1`` nodes of a tree, one for each bit of
    ``t`` that is set, and every node has noise of its own. What a round adds is the difference of two such noises.

    Guarantees:
      All noise of the first ``t`` rounds of a tree adds up to a variance of ``(noise_multiplier * bound)^2`` times the number
      of bits set in ``t``; independent noise has ``t`` times. Nodes are drawn anew from (level, index) wherever they are
      needed, so that the state holds a key and a count, no model. A restart begins a tree with noise of its own and keeps
      the noise so far. It is drawn once per round on the server, whatever the devices.
      The price is that of ``ceil(log2(T + 1))`` Gaussian releases for a tree of ``T`` rounds in which a client takes part
      once, and more where it can take part more often: draw cohorts with ``cohorts.cyclic`` or ``cohorts.shuffled`` and
      restart with every pass. Sampling by chance does not lower it, and is refused by the accountant.

    Args:
      noise_multiplier: standard deviation of a node's noise over bound; above 0; may be traced, but is no schedule.
      restart_every: rounds of a tree; one tree for all rounds by default.

    Raises:
      ValueError: an argument outside its range; the refusals of ``chain``, also behind a clip whose norm moves.

    Source: Kairouz et al. 2021 (arXiv 2103.00039), DP-FTRL and its restarts, without the variance reduction of Honaker.

    Example:
      >>> import fedjax_sim as fs
      >>> from fedjax_sim import aggregation as agg
      >>> private = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.tree_noise(5.0))
      >>> once = fs.cohorts.cyclic(100)                # 1024 rounds of a pass
      >>> round(fs.privacy.epsilon(
      ...     private, once, population=102_400, rounds=1024, delta=1e-6, accountant="rdp"), 4)
      3.3003
    """
    _check_multiplier(noise_multiplier)
    if restart_every is not None:
        checks.positive_int("restart_every", restart_every)

    def init(spec):
        return TreeNoiseState(jnp.zeros(2, jnp.uint32), jnp.zeros((), jnp.int32)), ()

    def decode(message, server, ctx):
        # 1-based place in the tree.
        place = server.rounds % restart_every + 1 if restart_every else server.rounds + 1
        words = jnp.where(place == 1, jax.random.key_data(ctx.key), server.words)
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        std = noise_multiplier * ctx.noise_scale * ctx.bound

        def node(level, end):
            """Noise of the node over the ``2^level`` rounds up to ``end``."""
            return _gaussian(keys.fold(key, level, end >> level), message.value, std)

        # One more round fills the nodes of place - 1 below the lowest bit of place; a single node takes their place.
        level = jax.lax.population_count((place & -place) - 1)

        def without(low, noise):
            return jax.tree.map(jnp.subtract, noise, node(low, place - 1))

        noise = jax.lax.fori_loop(0, level, without, node(level, place))
        return _add(message, noise), TreeNoiseState(words, server.rounds + 1), {}

    details = {"restart_every": restart_every}
    noise = Noise("tree_gaussian", noise_multiplier, details)
    return _on_the_sum(init, decode, Facts("tree_noise", noise=noise, one_bound=True))


def banded_noise(
    noise_multiplier: float,
    bands: int,
    rounds: int,
    error: Error = "mean",
    coefficients: Sequence[float] | None = None,
) -> Transform:
    """Adds Gaussian noise to the SUM, correlated over ``bands`` rounds: banded matrix factorisation, DP-BandMF.

    Round ``t`` adds row ``t`` of ``C^-1 z``, with ``z`` independent over rounds and ``C`` the lower triangular Toeplitz
    matrix of ``banded_coefficients``.

    Guarantees:
      ``z`` has the standard deviation ``noise_multiplier`` times bound in every coordinate of every leaf, and every column of
      ``C`` has norm 1 (or less, in the last rounds). One band is independent noise. The state holds the noise of
      ``bands - 1`` rounds. It is drawn once per round on the server, whatever the devices.
      The price is that of ``k`` Gaussian releases where a client takes part ``k`` times, ``bands`` rounds or more from one
      time to the next: ``cohorts.cyclic``. With ``cohorts.cyclic_poisson`` chance lowers it. The accountant refuses other
      samplers. A run longer than ``rounds`` is priced by what it takes, and its noise is no longer the best.

    Args:
      noise_multiplier: standard deviation of ``z`` over bound; above 0; may be traced, but is no schedule.
      bands: rounds over which the noise is correlated.
      rounds: for which the strategy is the best; at least ``bands``.
      error: of the prefix sums, as for ``banded_coefficients``.
      coefficients: a strategy of your own, one number for each band, which is scaled to norm 1.

    Raises:
      ValueError: an argument outside its range; the refusals of ``chain``, also behind a clip whose norm moves.

    Source: Choquette-Choo et al. 2023 (arXiv 2306.08153); McKenna 2024 (arXiv 2405.15913), Toeplitz strategies.

    Example:
      >>> import fedjax_sim as fs
      >>> from fedjax_sim import aggregation as agg
      >>> private = agg.chain(
      ...     agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.banded_noise(1.0, bands=10, rounds=1000))
      >>> round(fs.privacy.epsilon(private, fs.cohorts.cyclic_poisson(0.1, bands=10), rounds=1000, delta=1e-5), 4)
      7.0466
    """
    _check_multiplier(noise_multiplier)
    best = banded_coefficients(rounds, bands, error) if coefficients is None else scaled(coefficients)
    if len(best) != bands:
        raise ValueError(f"coefficients has {len(best)} numbers, expected one for each of the {bands} bands.")
    places = np.arange(bands - 1)

    def init(spec):
        earlier = jax.tree.map(
            lambda x: jnp.zeros((bands - 1, *x.shape), jnp.promote_types(x.dtype, jnp.float32)), spec.value
        )
        return BandedNoiseState(earlier, jnp.zeros((), jnp.int32)), ()

    def decode(message, server, ctx):
        drawn = _gaussian(ctx.key, message.value, noise_multiplier * ctx.noise_scale * ctx.bound)
        if bands == 1:
            return _add(message, drawn), server._replace(rounds=server.rounds + 1), {}
        # Row t of C x = z, solved for x_t. The coefficient of the row that holds x_(t - j) is c_j.
        here = server.rounds % (bands - 1)
        weights = jnp.asarray(best[1:], jnp.float32)[(here - 1 - places) % (bands - 1)]

        def row(z, earlier):
            known = jnp.tensordot(weights.astype(earlier.dtype), earlier, 1, precision="highest")
            return (z - known) / best[0].astype(earlier.dtype)

        noise = jax.tree.map(row, drawn, server.earlier)
        earlier = jax.tree.map(lambda ring, x: ring.at[here].set(x), server.earlier, noise)
        return _add(message, noise), BandedNoiseState(earlier, server.rounds + 1), {}

    details = {"bands": int(bands), "coefficients": best.tolist()}
    noise = Noise("banded_gaussian", noise_multiplier, details)
    return _on_the_sum(init, decode, Facts("banded_noise", noise=noise, one_bound=True))


def _check_multiplier(noise_multiplier: Any) -> None:
    if callable(noise_multiplier):
        raise TypeError(
            "noise_multiplier is a function, expected a number: noise that is correlated between rounds has one scale in "
            "all of them. gaussian_noise takes a schedule."
        )
    checks.positive("noise_multiplier", noise_multiplier)


def _on_the_sum(init, decode, facts: Facts) -> Transform:
    return Transform(
        init=init,
        bound=lambda server, incoming: jnp.asarray(incoming),
        encode=lambda message, client, server, ctx: (message, client, {}),
        decode=decode,
        facts=(facts,),
    )


def _gaussian(key, like, std):
    """Independent noise in every leaf, in at least float32."""
    leaves, structure = jax.tree.flatten(like)
    dtypes = [jnp.promote_types(x.dtype, jnp.float32) for x in leaves]
    drawn = [
        jnp.asarray(std, dtype) * jax.random.normal(each, x.shape, dtype)
        for each, x, dtype in zip(jax.random.split(key, max(len(leaves), 1)), leaves, dtypes, strict=False)
    ]
    return jax.tree.unflatten(structure, drawn)


def _add(message, noise):
    return message._replace(value=jax.tree.map(lambda x, n: x + n.astype(x.dtype), message.value, noise))
