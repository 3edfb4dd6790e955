"""Rotation, rounding, integer noise and modular sums: what the layers of distributed noise guarantee."""

from __future__ import annotations

import math
from fractions import Fraction
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats
from unit.messages import KEY, encode, run

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim._src.grid import FINEST_STD, Settings, grid
from fedjax_sim.aggregation import _distributed, _integers
from fedjax_sim.aggregation._distributed import stochastic_rounding, unwrapped, wrapped
from fedjax_sim.aggregation._integers import draw, table
from fedjax_sim.aggregation._rotation import walsh_hadamard

NOISES = {"discrete_gaussian": agg.discrete_gaussian_noise, "skellam": agg.skellam_noise}
each_noise = pytest.mark.parametrize("name", NOISES)


def private(noise, clip=1.0, seed=0):
    return agg.chain(
        agg.clip_by_global_norm(clip), agg.mean(over="expected_cohort"), agg.hadamard_rotation(seed), noise
    )


# --- rotation ---


@pytest.mark.parametrize("size", [1, 2, 64, 128, 4096])
def test_the_transform_is_sylvesters_matrix(size):
    x = jax.random.normal(KEY, (size,))
    expected = scipy.linalg.hadamard(size) @ np.asarray(x, np.float64) / math.sqrt(size)
    np.testing.assert_allclose(walsh_hadamard(x), expected, atol=1e-5)
    np.testing.assert_allclose(walsh_hadamard(walsh_hadamard(x)), x, atol=1e-5)


def test_a_rotation_keeps_norms_and_comes_back():
    updates = {"a": jax.random.normal(KEY, (3, 5, 2)), "b": jnp.ones((3, 1)), "c": jnp.zeros((3, 0))}
    message, _, _ = encode(agg.hadamard_rotation(), jax.tree.map(lambda x: x[0], updates))
    (vector,) = jax.tree.leaves(message.value)
    assert vector.shape == (16,) and vector.dtype == jnp.float32
    norm = math.sqrt(sum(float(jnp.sum(x[0] ** 2)) for x in updates.values()))
    assert float(jnp.linalg.norm(vector)) == pytest.approx(norm, rel=1e-5)
    total, _, _ = run(agg.hadamard_rotation(), updates)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b.sum(0), atol=1e-5), total, updates)


def test_signs_are_public_and_the_same_for_all_clients_of_a_round():
    """Of key and client nothing enters; of seed and round everything."""

    def rotated(seed=0, **context):
        message, _, _ = encode(agg.hadamard_rotation(seed), jnp.arange(100.0), **context)
        return np.asarray(message.value.vector)

    first = rotated()
    np.testing.assert_array_equal(rotated(client=jnp.int32(7), key=jax.random.key(9)), first)
    assert not np.allclose(rotated(round=jnp.int32(1)), first)
    assert not np.allclose(rotated(seed=1), first)


def test_a_rotation_flattens_a_single_spike():
    """All of the norm in one coordinate becomes the same square in every one."""
    spike = jnp.zeros(1024).at[17].set(8.0)
    message, _, _ = encode(agg.hadamard_rotation(), spike)
    np.testing.assert_allclose(jnp.abs(message.value.vector), 8 / 32, rtol=1e-5)


# --- integer noise ---


def law_of(name, std):
    """Probabilities of -K..K, by other means than the table's."""
    k = np.arange(-math.ceil(12 * std) - 20, math.ceil(12 * std) + 21)
    if name == "skellam":
        return k, stats.skellam.pmf(k, std**2 / 2, std**2 / 2)
    weights = [math.exp(-(int(i) ** 2) / (2 * std**2)) for i in k]
    return k, np.array(weights) / math.fsum(weights)


@pytest.mark.parametrize("std", [0.5, 3.0, 60.0])
@each_noise
def test_the_table_is_the_law(name, std):
    """Every cumulative probability to 10^-14, in all its 64 bits."""
    made = table(name, std)
    k, p = law_of(name, std)
    cumulative = np.cumsum(p)
    words = [(int(h) << 32) + int(low) for h, low in zip(made.high, made.low, strict=True)]
    for index in range(0, -2 * made.first, max(-made.first // 20, 1)):
        expected = cumulative[np.flatnonzero(k == made.first + index)[0]]
        assert abs(Fraction(words[index], 2**64) - Fraction(float(expected))) < Fraction(1, 10**13)
    assert words == sorted(words)


@pytest.mark.parametrize("std", [0.5, 3.0, 60.0])
@each_noise
def test_draws_follow_the_law(name, std):
    """Chi-square over all integers that are expected ten times, and two tails; one in ten thousand would be refused."""
    count = 400_000
    drawn = np.asarray(draw(jax.random.key(1), name, std, (count,)))
    k, p = law_of(name, std)
    inner = k[count * p >= 10]
    low, high = inner.min(), inner.max()
    observed = np.array(
        [
            np.sum(drawn < low),
            *(np.bincount(drawn[(drawn >= low) & (drawn <= high)] - low)),
            np.sum(drawn > high),
        ]
    )
    expected = count * np.array([p[k < low].sum(), *p[(k >= low) & (k <= high)], p[k > high].sum()])
    tails = expected > 1
    statistic = np.sum((observed[tails] - expected[tails]) ** 2 / expected[tails])
    assert stats.chi2.sf(statistic, tails.sum() - 1) > 1e-4


@each_noise
def test_chi_square_notices_another_law(name):
    """Of deviation 3.05 instead of 3: the test above can fail."""
    drawn = np.asarray(draw(jax.random.key(1), name, 3.05, (400_000,)))
    k, p = law_of(name, 3.0)
    inside = 400_000 * p >= 10
    observed = np.array([np.sum(drawn == value) for value in k[inside]])
    statistic = np.sum((observed - 400_000 * p[inside]) ** 2 / (400_000 * p[inside]))
    assert stats.chi2.sf(statistic, inside.sum() - 1) < 1e-6


@each_noise
def test_draws_do_not_depend_on_vmap(name):
    many = jax.random.split(KEY, 4)
    rows = jax.jit(jax.vmap(lambda key: draw(key, name, 7.0, (50,))))(many)
    for key, row in zip(many, rows, strict=True):
        np.testing.assert_array_equal(draw(key, name, 7.0, (50,)), row)
    assert np.abs(np.corrcoef(np.asarray(rows)) - np.eye(4)).max() < 5 / math.sqrt(50)


@pytest.mark.parametrize("words", [0, 2**32 - 1])
def test_the_ends_of_the_random_bits_are_the_ends_of_the_support(words):
    made = table("skellam", 2.0)
    with mock.patch.object(jax.random, "bits", lambda key, shape, dtype: jnp.full(shape, words, dtype)):
        (found,) = draw(KEY, "skellam", 2.0, (1,))
    assert int(found) == (made.first if words == 0 else -made.first)


# --- rounding ---


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=16),
    st.sampled_from([0.0, math.exp(-0.5), 0.9]),
)
@example([0.5] * 16, 0.9)
@example([0.0] * 3, 0.9)
def test_rounding_keeps_the_norm_of_theorem_1(values, beta):
    x = np.float32(np.pad(values, (0, 16 - len(values))))
    norm = max(float(np.linalg.norm(x.astype(np.float64))), 1e-3)
    loose = norm + 4
    bound = loose
    if beta:
        squared = norm**2 + 4 + math.sqrt(2 * math.log(1 / beta)) * (norm + 2)
        bound = min(loose, math.sqrt(squared))
    rounded, _ = jitted_rounding(KEY, x, bound**2)
    assert np.linalg.norm(np.asarray(rounded, np.float64)) <= bound * (1 + 1e-6)
    assert np.all(np.abs(rounded - x) <= 1)


jitted_rounding = jax.jit(stochastic_rounding)


def test_the_norm_after_rounding_is_the_papers():
    """Theorem 1 with c / gamma = 100, d = 1024, beta = e^-1/2: min(100 + 32, sqrt(10^4 + 256 + 100 + 16))."""
    made = grid(Settings(1.0, 1, 1, 32, 4.0, math.exp(-0.5)), 1024)
    levels = made.levels
    assert made.squared_norm == pytest.approx(levels**2 + 256 + levels + 16, rel=1e-9)
    always = grid(Settings(1.0, 1, 1, 32, 4.0, 0.0), 1024)
    assert always.squared_norm == pytest.approx((always.levels + 32) ** 2, rel=1e-9)


def test_rounding_is_unbiased_where_the_norm_never_matters():
    x = jax.random.normal(KEY, (30,)) * 3
    draws = jax.jit(jax.vmap(lambda key: stochastic_rounding(key, x, 1e9)[0]))(jax.random.split(KEY, 4000))
    error = np.mean(draws, axis=0) - np.asarray(x, np.float64)
    assert np.all(np.abs(error) <= 5 * np.std(draws, axis=0) / math.sqrt(4000) + 1e-6)


def test_what_never_fits_is_rounded_toward_zero_and_counted():
    x = jnp.array([0.9, -1.9, 2.5])
    rounded, truncated = stochastic_rounding(KEY, x, 1.0)
    assert rounded.tolist() == [0, -1, 2] and bool(truncated)

    def counted():
        noise = agg.discrete_gaussian_noise(1.0, min_clients=1)
        return float(encode(noise, jnp.ones(3), bound=jnp.float32(2.0))[2]["truncated"].total)

    assert counted() == 0
    never = lambda key, x, bound: stochastic_rounding(key, x, -1.0)  # noqa: E731
    with mock.patch.object(_distributed, "stochastic_rounding", never):
        assert counted() == 1


# --- the modular sum ---


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 32), st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=9))
def test_sums_are_exact_modulo_a_power_of_two(bits, values):
    """Against Python's integers; above 2^24 a float32 sum would not be."""
    sent = wrapped(jnp.asarray(values, jnp.int32), bits)
    assert sent.dtype == jnp.uint32 and int(sent.max()) < 2**bits
    got = int(unwrapped(jnp.sum(sent, dtype=jnp.uint32), bits))
    half = 2 ** (bits - 1)
    assert got == (sum(values) + half) % 2**bits - half


def test_an_engine_sums_integers_as_integers():
    """2^24 + 1 is no float32."""
    noise = private(agg.discrete_gaussian_noise(0.1, min_clients=2, bits=32))
    message, _, _ = encode(noise, jnp.ones(8))
    assert {x.dtype for x in jax.tree.leaves((message.value, message.stack))} == {jnp.dtype("uint32")}
    assert noise.facts[-1].reduction == "modular_sum"


# --- the grid ---


@settings(max_examples=100, deadline=None)
@given(
    st.floats(0.05, 20),
    st.integers(1, 1000),
    st.floats(1, 3),
    st.integers(16, 32),
    st.integers(1, 10**7),
    st.floats(1, 6),
)
def test_the_modulus_holds_k_deviations(z, least, ratio, bits, dimension, k):
    """TensorFlow Federated's equation: 2^b gamma = 2k sqrt(rho / d (c n)^2 + (gamma^2 / 4 + sigma^2) n), with c = 1."""
    most = math.floor(least * ratio)
    try:
        made = grid(Settings(z, least, most, bits, k, 0.5), dimension)
    except ValueError:
        return
    gamma, sigma = 1 / made.levels, z / math.sqrt(least)
    room = 2 * k * math.sqrt(most**2 / dimension + (gamma**2 / 4 + sigma**2) * most)
    assert room <= 2**bits * gamma * (1 + 1e-9)
    finest = made.local_std >= FINEST_STD * (1 - 1e-9) or made.levels == 2.0**30
    assert finest or room == pytest.approx(2**bits * gamma, rel=1e-6)
    assert made.local_std == pytest.approx(sigma / gamma)


@each_noise
def test_too_few_bits_are_refused_when_a_message_is_seen(name):
    chain = private(NOISES[name](1.0, min_clients=1000, bits=8))
    with pytest.raises(
        ValueError, match=rf"{name}_noise: bits is 8, too few .* Use bits=(\d+) or more"
    ) as error:
        run(chain, jnp.zeros((2, 16)), expected_clients=1000)
    enough = int(str(error.value).split("bits=")[1].split()[0])
    run(
        private(NOISES[name](1.0, min_clients=1000, bits=enough)),
        jnp.zeros((2, 16)),
        expected_clients=1000,
    )
    with pytest.raises(ValueError, match="too few"):
        run(
            private(NOISES[name](1.0, min_clients=1000, bits=enough - 1)),
            jnp.zeros((2, 16)),
            expected_clients=1000,
        )


@pytest.mark.parametrize("k", [1.5, 2.0, 4.0])
@each_noise
def test_coordinates_wrap_as_rarely_as_stated(name, k):
    """All clients alike, the worst case: at most 2 exp(-k^2 / 2) of the coordinates are off by the modulus."""
    clients, size = 20, 2**15
    noise = NOISES[name](0.5, min_clients=clients, bits=12, deviations=k)
    value = jax.random.normal(KEY, (size,))
    value /= jnp.linalg.norm(value)
    rotated = agg.chain(*private(noise).parts[:-1])
    share = run(rotated, jnp.tile(value, (clients, 1)))[0]
    got, _, _ = run(private(noise), jnp.tile(value, (clients, 1)))
    made = grid(Settings(0.5, clients, clients, 12, k, math.exp(-0.5)), size)
    signs_and_transform = lambda x: encode(agg.hadamard_rotation(), x)[0].value.vector  # noqa: E731
    off = np.abs(np.asarray(signs_and_transform(got - share))) * clients * made.levels
    share_off = np.mean(off > 2**12 / 2)
    assert share_off <= 2 * math.exp(-(k**2) / 2)
    if k == 1.5:
        assert share_off > 0.02  # it does wrap, so the test can fail


# --- the mechanisms ---


@each_noise
def test_the_error_is_that_of_plain_gaussian_noise(name):
    """With 20 bits, over messages that are not zero: the same mean squared error, to five standard errors."""
    updates = jax.random.normal(KEY, (10, 20_000)) / 20_000**0.5
    truth = np.mean(np.asarray(updates, np.float64), axis=0)
    plain = agg.chain(agg.clip_by_global_norm(2.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.8))
    chains = (private(NOISES[name](0.8, min_clients=10), clip=2.0), plain)
    errors = [np.mean((np.asarray(run(chain, updates)[0]) - truth) ** 2) for chain in chains]
    assert abs(errors[0] / errors[1] - 1) < 5 * math.sqrt(2 * 2 / 20_000)


@each_noise
def test_a_round_of_too_few_clients_is_thrown_away(name):
    chain = private(NOISES[name](0.5, min_clients=3))
    for clients, discarded in ((2, 1), (3, 0), (4, 0)):
        got, _, metrics = run(chain, jnp.ones((clients, 50)), expected_clients=4)
        assert float(metrics[f"{name}_noise/discarded"].total) == discarded
        assert bool(jnp.any(got != 0)) != discarded


def test_cohorts_too_small_for_any_round_to_count_are_refused():
    with pytest.raises(ValueError, match="min_clients is 3, but only 2 clients are expected"):
        run(private(agg.skellam_noise(0.5, min_clients=3)), jnp.ones((2, 50)))


@each_noise
def test_a_client_without_examples_adds_its_share(name):
    """It counts as one that came, and its message is noise."""
    chain = private(NOISES[name](1.0, min_clients=4))
    got, _, metrics = run(chain, jnp.ones((4, 40_000)), num_examples=[0, 0, 0, 0])
    assert float(metrics[f"{name}_noise/discarded"].total) == 0
    assert abs(np.var(np.asarray(got) * 4) - 1) < 5 * math.sqrt(2 / 40_000)


@each_noise
def test_the_noise_follows_an_adaptive_bound_in_the_middle_of_a_jit(name):
    """The grid is static, its step follows a traced clip norm."""

    @jax.jit
    def total(norm):
        return agg.run(private(NOISES[name](1.0, min_clients=2), norm), jnp.zeros((2, 5000)), key=KEY)[0]

    np.testing.assert_allclose(total(3.0), 3 * total(1.0), atol=1e-5)


# --- mutants ---


def sum_of(chain, values, rounds=1):
    """Noisy sums ``[rounds, size]``."""
    one = jax.jit(lambda round_: agg.run(chain, values, key=KEY, round_=round_)[0] * len(values))
    return np.stack([one(round_) for round_ in range(rounds)])


def is_right(name) -> bool:
    """One canary at ten times the bound, the others zero: bounded, of the right variance, fresh in every round."""
    size, clients = 4096, 3
    chain = private(NOISES[name](0.5, min_clients=clients, bits=24))
    values = jnp.zeros((clients, size)).at[0, 0].set(10.0)
    sums = sum_of(chain, values, rounds=4)
    noise = sums[:, 1:]
    bounded = np.all(np.abs(sums[:, 0] - 1) < 5 * 0.5)
    fair = abs(noise.var() / 0.25 - 1) < 5 * math.sqrt(2 / noise.size)
    fresh = np.abs(np.corrcoef(noise) - np.eye(4)).max() < 5 / math.sqrt(size)
    return bool(bounded and fair and fresh)


@each_noise
def test_the_mechanism_is_right(name):
    assert is_right(name)


@each_noise
def test_mutants_are_noticed(name):
    true_draw, true_bound = _integers.draw, agg.clip_by_global_norm

    def half(key, law, std, shape):
        return true_draw(key, law, std / 2, shape)

    def one_key(key, law, std, shape):
        return true_draw(jax.random.key(5), law, std, shape)

    for mutant in (half, one_key):
        with mock.patch.object(_distributed, "draw", mutant):
            assert not is_right(name)
    no_clip = lambda norm: true_bound(norm)._replace(encode=lambda m, c, s, ctx: (m, c, {}))  # noqa: E731
    with mock.patch.object(agg, "clip_by_global_norm", no_clip):
        assert not is_right(name)
    assert is_right(name)


# --- refusals ---

CLIP, PUBLIC, DISCRETE = (
    agg.clip_by_global_norm(1.0),
    agg.mean(over="expected_cohort"),
    agg.discrete_gaussian_noise(1.0, min_clients=3),
)
WRONG = {
    "something after it": (
        (CLIP, PUBLIC, DISCRETE, agg.hadamard_rotation()),
        r"stands after discrete_gaussian_noise, which sends integers .* put discrete_gaussian_noise last",
    ),
    "no clip": ((PUBLIC, DISCRETE), "needs a bound"),
    "no public divisor": ((CLIP, agg.mean(), DISCRETE), "divisor depends on the data"),
    "an adaptive clip's bits": (
        (agg.adaptive_clip(1.0, count_noise_std=1.0), PUBLIC, DISCRETE),
        "protects from a server that adaptive_clip trusts",
    ),
    "a gather": ((agg.coordinate_median(), CLIP, DISCRETE), "acts on a sum over clients"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_orders_are_refused(name):
    layers, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        agg.chain(*layers)


BAD = {
    "no noise": ({"noise_multiplier": 0.0}, ValueError, "noise_multiplier is 0.0"),
    "a schedule": ({"noise_multiplier": lambda r: 1.0}, TypeError, "a schedule, expected a Python number"),
    "nobody": ({"min_clients": 0}, ValueError, "min_clients is 0"),
    "fewer at most": ({"max_clients": 2}, ValueError, "max_clients is 2, expected at least min_clients, 3"),
    "too wide": ({"bits": 33}, ValueError, "bits is 33, expected at most 32"),
    "no deviation": ({"deviations": 0.0}, ValueError, "deviations is 0.0"),
    "beta of one": ({"beta": 1.0}, ValueError, r"beta is 1.0, expected a number in \[0, 1\)"),
}


@pytest.mark.parametrize("case", BAD)
@each_noise
def test_bad_arguments_are_refused(name, case):
    arguments, kind, message = BAD[case]
    with pytest.raises(kind, match=message):
        NOISES[name](**{"noise_multiplier": 1.0, "min_clients": 3, **arguments})


def test_a_traced_multiplier_is_refused():
    with pytest.raises(TypeError, match="traced or a schedule"):
        jax.jit(lambda z: agg.skellam_noise(z, min_clients=1).facts[0].noise.multiplier)(1.0)


def test_counts_beside_an_update_are_refused():
    message = fs.Message(jnp.ones((2, 4)), {"members": jnp.ones((2, 3))})
    with pytest.raises(ValueError, match="their exact sum would be released"):
        run(private(agg.skellam_noise(1.0, min_clients=2)), message)
