"""Law 7: noise has the right variance on the sum, and is independent across leaves and rounds.

That it is added once under any lanes and devices is part of law 1: two members of it add noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fedjax_sim import aggregation as agg

SIZE, CLIENTS, CLIP, MULTIPLIER = 40_000, 5, 0.7, 1.3

NOISES = {
    "after a fixed clip": agg.clip_by_global_norm(CLIP),
    "after an adaptive clip": agg.adaptive_clip(CLIP, count_noise_std=0.5),
    "after two clips": agg.chain(agg.clip_by_global_norm(10 * CLIP), agg.clip_by_global_norm(CLIP)),
}


def noise_on_the_sum(clip, round_=0, seed=0):
    """What is left of the sum when every client sends zeros, ``f64[SIZE]`` for each of two leaves."""
    transform = agg.chain(clip, agg.mean(over="expected_cohort"), agg.gaussian_noise(MULTIPLIER))
    zeros = {"a": jnp.zeros((CLIENTS, SIZE)), "b": jnp.zeros((CLIENTS, SIZE // 4, 4))}
    mean, _, _ = agg.run(transform, zeros, key=jax.random.key(seed), round_=round_)
    return [np.asarray(x, np.float64).ravel() * CLIENTS for x in jax.tree.leaves(mean)]


@pytest.mark.parametrize("name", NOISES)
def test_the_variance_is_that_of_the_sum(name):
    """One standard deviation for all leaves: the multiplier times the bound, on the sum, before the division."""
    for leaf in noise_on_the_sum(NOISES[name]):
        variance = (MULTIPLIER * CLIP) ** 2
        # Five standard errors of a Gaussian's sample mean and variance.
        assert abs(leaf.mean()) < 5 * np.sqrt(variance / SIZE)
        assert abs(leaf.var() / variance - 1) < 5 * np.sqrt(2 / SIZE)


@pytest.mark.parametrize("name", NOISES)
def test_draws_are_independent(name):
    """Leaves of one round, rounds of one run, and runs with other seeds are uncorrelated."""
    draws = [
        leaf
        for seed, round_ in ((0, 0), (0, 1), (1, 0))
        for leaf in noise_on_the_sum(NOISES[name], round_, seed)
    ]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.max(np.abs(correlation)) < 5 / np.sqrt(SIZE)


def test_the_count_behind_an_adaptive_clip_has_its_own_noise():
    """The noisy fraction of unclipped clients: standard deviation ``count_noise_std`` over the expected cohort."""
    transform = agg.chain(agg.adaptive_clip(CLIP, count_noise_std=2.0), agg.mean(over="expected_cohort"))

    def fraction(round_):
        metrics = agg.run(transform, jnp.zeros((CLIENTS, 1)), key=jax.random.key(0), round_=round_)[2]
        return metrics["adaptive_clip/unclipped"].total

    rounds = 4000
    draws = np.asarray(jax.vmap(fraction)(jnp.arange(rounds)))
    assert abs(draws.mean() - 1) < 5 * 2.0 / CLIENTS / np.sqrt(rounds)
    assert abs(draws.std() / (2.0 / CLIENTS) - 1) < 5 / np.sqrt(2 * rounds)
