"""What clips, noise, sparsifiers and robust rules guarantee, on given messages."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.messages import (
    KEY,
    NORMS,
    UPDATES,
    assert_trees_equal,
    client_context,
    encode,
    round_context,
    stacked,
)

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

# --- clipping ---

ANY_FLOAT = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(ANY_FLOAT, min_size=5, max_size=5),
    st.floats(2**-10, 1024.0, width=32),
    st.sampled_from([agg.clip_by_global_norm, agg.adaptive_clip]),
)
def test_a_clip_bounds_every_input(values, norm, clip):
    """Law 6, over the whole pytree; what is not finite becomes zero as a whole and is counted."""
    x = np.array(values, np.float32)
    value = {"a": jnp.asarray(x[:3]), "b": jnp.asarray(x[3:])}
    message, _, metrics = encode(clip(norm), value)
    got = np.concatenate([message.value["a"], message.value["b"]]).astype(np.float64)
    assert np.linalg.norm(got) <= norm * (1 + 1e-5)
    if not np.isfinite(x).all():
        assert not got.any()
        assert float(metrics["nonfinite"].total) == 1
    elif np.linalg.norm(x.astype(np.float64)) <= norm * (1 - 1e-6):
        np.testing.assert_array_equal(got, x)
        assert float(metrics["clipped"].total) == 0


def test_a_clip_scales_the_whole_message_at_once():
    """One factor for all leaves, not one per leaf."""
    message, _, metrics = encode(
        agg.clip_by_global_norm(1.0), {"a": jnp.array([3.0, 4.0]), "b": jnp.array([12.0])}
    )
    np.testing.assert_allclose(message.value["a"], np.array([3, 4]) / 13, rtol=1e-6)
    np.testing.assert_allclose(message.value["b"], np.array([12]) / 13, rtol=1e-6)
    assert [float(metrics[name].total) for name in ("clipped", "nonfinite")] == [1, 0]


def test_a_clip_takes_the_norm_in_float32():
    """The squares of 300 overflow float16; their sum does not."""
    message, _, _ = encode(agg.clip_by_global_norm(1.0), jnp.full(4, 300.0, jnp.float16))
    assert message.value.dtype == jnp.float16
    np.testing.assert_allclose(message.value, 0.5, rtol=1e-3)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_narrow_message_is_not_rounded_above_the_clip_norm(dtype):
    """Of 131 equal coordinates all are rounded the same way, at some size up."""
    for size in range(100, 140, 4):
        message, _, _ = encode(agg.clip_by_global_norm(1.0), jnp.full(size, 30.0, dtype))
        assert 0.99 < np.linalg.norm(np.asarray(message.value, np.float64)) <= 1 + 1e-6


def test_a_wide_message_within_the_norm_is_unchanged():
    with jax.enable_x64(True):
        third = jnp.full(2, 1 / 3, jnp.float64)
        message, _, _ = encode(agg.clip_by_global_norm(1.0), third)
        np.testing.assert_array_equal(message.value, third)


def test_an_adaptive_norm_stays_where_a_norm_can_be_measured():
    """All clients that send nothing are below any norm, which shrinks round by round."""
    clip, state = agg.adaptive_clip(1e-12, learning_rate=50.0), None
    for _ in range(3):
        _, state, _ = agg.run(clip, jnp.zeros((3, 4)), key=jax.random.key(0), state=state)
    assert float(state[0][0].clip_norm) == pytest.approx(1e-12)


def test_the_bound_of_a_clip_is_its_norm():
    clip = agg.clip_by_global_norm(2.0)
    assert (float(clip.bound((), np.inf)), float(clip.bound((), 1.0))) == (2.0, 1.0)


def test_adaptive_clip_moves_by_the_fraction_of_unclipped_clients():
    """C <- C exp(-rate (b - quantile)); the round itself is bounded by the norm that the last one left."""
    clip = agg.adaptive_clip(5.0, target_quantile=0.5, learning_rate=0.2)
    norm, state = 5.0, None
    for _ in range(3):
        total, state, metrics = stacked(clip, state=state)
        factors = np.minimum(1, norm / NORMS)
        expected = (np.asarray(UPDATES["a"]) * factors[:, None]).sum(axis=0)
        np.testing.assert_allclose(total["a"], expected, rtol=1e-5)
        assert float(metrics["adaptive_clip/clip_norm"].total) == pytest.approx(norm)
        assert float(clip.bound(state[0][0], np.inf)) == pytest.approx(float(state[0][0].clip_norm))
        norm *= np.exp(-0.2 * (np.mean(norm >= NORMS) - 0.5))
        assert float(state[0][0].clip_norm) == pytest.approx(norm, rel=1e-5)


def test_the_bit_of_adaptive_clip_travels_beside_the_value():
    """It is no part of the value, and minus a half where the message is clipped or not finite; nothing without examples."""
    clip = agg.adaptive_clip(1.0)
    for value, examples, bit in [([0.5], 1, 0.5), ([2.0], 1, -0.5), ([np.nan], 1, -0.5), ([0.0], 0, 0.0)]:
        message, _, _ = clip.encode(
            fs.Message(jnp.array(value)),
            (),
            clip.init(None)[0],
            client_context()._replace(num_examples=examples),
        )
        assert message.value.shape == (1,)
        assert [float(x) for x in message.stack] == [bit]


def test_the_fraction_of_adaptive_clip_is_noisy():
    """The noise on the sum of bits has the given deviation, and is drawn anew from every round's key."""
    clip, std, expected = agg.adaptive_clip(1.0, 0.5, 0.2, count_noise_std=4.0), 4.0, 20.0
    message = fs.Message(jnp.zeros(2), stack=(jnp.float32(12.0),))
    server, _ = clip.init(None)

    def fraction(key):
        _, after, metrics = clip.decode(message, server, round_context(key, expected=expected))
        return metrics["unclipped"].total, after.clip_norm

    fractions, norms = jax.vmap(fraction)(jax.random.split(KEY, 4000))
    noise = ((np.asarray(fractions) - 0.5) * expected - 12) / std
    assert abs(noise.mean()) < 5 / np.sqrt(4000)
    assert abs(noise.var() - 1) < 5 * np.sqrt(2 / 4000)
    np.testing.assert_allclose(norms, np.exp(-0.2 * (fractions - 0.5)), rtol=1e-5)


def test_adaptive_clip_finds_the_quantile():
    """Over many rounds of log-normal norms the bound settles at their median."""
    generator = np.random.default_rng(0)
    clip, state, norms = agg.adaptive_clip(10.0, 0.5, 0.2), None, []
    step = jax.jit(lambda updates, state: agg.run(clip, updates, key=KEY, state=state)[1])
    state = agg.run(clip, jnp.ones((100, 1)), key=KEY)[1]
    for _ in range(80):
        state = step(jnp.asarray(np.exp(generator.normal(size=(100, 1)) + 1), jnp.float32), state)
        norms.append(float(state[0][0].clip_norm))
    assert np.mean(norms[-40:]) == pytest.approx(np.e, rel=0.1)


# --- noise ---

DRAWS = 3000


@pytest.fixture(scope="module")
def noise() -> np.ndarray:
    """Noise on zeros of three leaves, ``[draws, 6]``, at multiplier 0.5 and bound 4."""
    transform = agg.gaussian_noise(0.5)
    zeros = {"a": jnp.zeros((2, 2)), "b": jnp.zeros(1), "c": jnp.zeros(())}

    def one(key):
        decoded, _, _ = transform.decode(fs.Message(zeros), (), round_context(key, bound=4.0))
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(decoded.value)])

    return np.asarray(jax.vmap(one)(jax.random.split(KEY, DRAWS)))


def test_noise_has_one_deviation_multiplier_times_bound(noise):
    """In every coordinate of every leaf."""
    assert np.all(np.abs(noise.mean(axis=0)) < 5 * 2 / np.sqrt(DRAWS))
    assert np.all(np.abs(noise.var(axis=0) / 4 - 1) < 5 * np.sqrt(2 / DRAWS))


def test_noise_is_independent_over_coordinates_leaves_and_rounds(noise):
    correlation = np.corrcoef(noise, rowvar=False)
    assert np.abs(correlation - np.eye(6)).max() < 5 / np.sqrt(DRAWS)
    lagged = np.mean(noise[1:] * noise[:-1], axis=0) / 4
    assert np.abs(lagged).max() < 5 / np.sqrt(DRAWS)


def test_noise_is_added_once_on_the_server():
    """To the sum, whatever the number of clients: the variance of a sum of 3 and of 300 is the same."""
    private = agg.chain(
        agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(2.0)
    )
    for clients in (3, 300):
        zeros = jnp.zeros((clients, 4000))
        got, _, _ = agg.run(private, zeros, key=KEY)
        assert float(jnp.std(got)) * clients == pytest.approx(2.0, rel=0.1)


# --- sparsification ---


@functools.cache
def top_k(share):
    return jax.jit(lambda value, memory: encode(agg.top_k(share), value, client=memory))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([1, 2, 5, 12]), st.sampled_from([0.01, 0.2, 0.5, 0.77, 1.0]), st.integers(0, 2**16))
def test_top_k_sends_the_largest_and_remembers_the_rest(size, share, seed):
    """Sent plus remembered is the message plus what was remembered; at most max(1, round(share n)) are sent."""
    generator = np.random.default_rng(seed)
    value, memory = generator.normal(size=(2, size)).astype(np.float32)
    message, kept, _ = top_k(share)(value, memory)
    whole, sent = value + memory, np.asarray(message.value)
    np.testing.assert_array_equal(sent + kept, whole)
    count = max(1, round(share * size))
    assert np.count_nonzero(sent) <= count
    expected = np.sort(np.abs(whole))[::-1][:count]
    np.testing.assert_array_equal(np.sort(np.abs(sent[sent != 0]))[::-1], expected[expected > 0])


def test_of_ties_the_first_are_sent():
    message, _, _ = encode(agg.top_k(0.5), jnp.array([[1.0, -1.0], [1.0, 1.0]]))
    assert message.value.tolist() == [[1.0, -1.0], [0.0, 0.0]]


def test_top_k_works_leaf_by_leaf():
    message, _, _ = encode(agg.top_k(0.5), {"a": jnp.array([9.0, 8.0]), "b": jnp.array([1.0, 2.0])})
    assert_trees_equal(message.value, {"a": np.array([9.0, 0.0]), "b": np.array([0.0, 2.0])})


def test_top_k_of_a_leaf_without_elements_is_that_leaf():
    message, _, _ = encode(agg.top_k(0.5), {"a": jnp.zeros((0, 3)), "b": jnp.array([1.0, 2.0])})
    assert_trees_equal(message.value, {"a": np.zeros((0, 3)), "b": np.array([0.0, 2.0])})


def test_without_error_feedback_the_rest_is_dropped_and_the_bound_holds():
    transform = agg.top_k(0.5, error_feedback=False)
    message, kept, _ = encode(transform, jnp.array([1.0, -3.0]))
    assert message.value.tolist() == [0.0, -3.0]
    assert kept == ()
    assert float(transform.bound((), 2.0)) == 2.0
    assert float(agg.top_k(0.5).bound((), 2.0)) == np.inf


def test_a_client_without_examples_keeps_its_memory():
    transform = agg.top_k(0.5)
    memory = jnp.array([5.0, 1.0])
    message, kept, _ = transform.encode(
        fs.Message(jnp.zeros(2)), memory, (), client_context()._replace(num_examples=jnp.int32(0))
    )
    assert message.value.tolist() == [0.0, 0.0]
    assert kept.tolist() == memory.tolist()


@pytest.mark.parametrize("layer", [agg.identity(), agg.clip_by_global_norm(10.0), agg.top_k(1.0)])
def test_who_did_not_come_adds_nothing(layer):
    """In a chain without a mean, too, and whatever stands in its row."""
    for absent in (5.0, np.nan):
        updates = jnp.array([[1.0, 2.0], [absent, 5.0]])
        got, _, _ = agg.run(layer, updates, key=KEY, num_examples=[1, 0])
        np.testing.assert_allclose(got, [1.0, 2.0], rtol=1e-6)


# --- robust rules ---


@pytest.mark.parametrize("clients", [1, 2, 5, 6])
def test_the_coordinate_median_is_numpys(clients):
    """Over the clients that came; an even number gives the mean of the middle two."""
    values = np.random.default_rng(clients).normal(size=(clients + 2, 3, 2)).astype(np.float32)
    sizes = [0, *[1] * clients, 0]
    got, _, _ = agg.run(agg.coordinate_median(), jnp.asarray(values), key=KEY, num_examples=sizes)
    np.testing.assert_allclose(got, np.median(values[1:-1], axis=0), rtol=1e-6)


@pytest.mark.parametrize("clients", [1, 2, 4, 5, 11])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.25, 0.4])
def test_the_trimmed_mean_is_scipys(clients, share):
    """Over the clients that came."""
    values = np.random.default_rng(clients).normal(size=(clients + 2, 3, 2)).astype(np.float32)
    sizes = [0, *[1] * clients, 0]
    got, _, _ = agg.run(agg.trimmed_mean(share), jnp.asarray(values), key=KEY, num_examples=sizes)
    np.testing.assert_allclose(got, scipy.stats.trim_mean(values[1:-1], share), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["int32", "bfloat16"])
def test_gathers_decode_to_float32(dtype):
    """As a mean does, whatever the model's dtypes: nothing is cut off or rounded before the server's step."""
    values = jnp.array([1, 1, 2, 2, 2], dtype)
    got, _, _ = agg.run(agg.trimmed_mean(0.2), values, key=KEY)
    assert got.dtype == jnp.float32 and float(got) == pytest.approx(5 / 3, rel=1e-6)
    got, _, _ = agg.run(agg.coordinate_median(), values[:4], key=KEY)
    assert got.dtype == jnp.float32 and float(got) == 1.5


def test_a_share_of_clients_is_a_whole_number_where_decimals_say_so():
    """``0.29 * 100`` is 28.999999999999996."""
    values = jnp.where(jnp.arange(100) < 29, 1e30, 1.0)
    assert float(agg.run(agg.trimmed_mean(0.29), values, key=KEY)[0]) == 1
    assert float(agg.run(agg.trimmed_mean(0.28), values, key=KEY)[0]) > 1


def test_however_close_to_a_half_a_value_is_left():
    values = jnp.arange(6.0)
    assert float(agg.run(agg.trimmed_mean(0.49999999), values, key=KEY)[0]) == 2.5


@pytest.mark.parametrize("share", [-0.1, 0.5, 1, np.nan])
def test_what_no_ends_can_have_is_refused(share):
    with pytest.raises(ValueError, match=f"trimmed_mean share is {share}, expected"):
        agg.trimmed_mean(share)


@pytest.mark.parametrize("layer", [agg.coordinate_median(), agg.trimmed_mean(0.2)])
def test_a_gather_of_nobody_is_zero(layer):
    got, _, _ = stacked(layer, sizes=[0, 0, 0])
    assert_trees_equal(got, jax.tree.map(lambda x: np.zeros(x.shape[1:]), UPDATES))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e30])
def test_as_many_as_are_trimmed_cannot_move_the_mean_out_of_the_others_range(bad):
    values = np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32)
    for chosen in itertools.combinations(range(7), 2):
        attacked = values.copy()
        attacked[list(chosen)] = bad
        others = np.delete(values, chosen, axis=0)
        got, _, _ = agg.run(agg.trimmed_mean(0.3), jnp.asarray(attacked), key=KEY)
        assert np.all((others.min(axis=0) <= got) & (got <= others.max(axis=0)))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30, -1e30])
@pytest.mark.parametrize(("clients", "replaced"), [(3, 1), (4, 1), (5, 2), (6, 2), (7, 3)])
def test_fewer_than_half_cannot_move_the_median_out_of_the_others_range(clients, replaced, bad):
    values = np.random.default_rng(0).normal(size=(clients, 4)).astype(np.float32)
    for chosen in itertools.combinations(range(clients), replaced):
        attacked = values.copy()
        attacked[list(chosen)] = bad
        others = np.delete(values, chosen, axis=0)
        got, _, _ = agg.run(agg.coordinate_median(), jnp.asarray(attacked), key=KEY)
        assert np.all((others.min(axis=0) <= got) & (got <= others.max(axis=0)))
        if clients > 4:
            break


def test_the_median_sees_decoded_rows():
    """Layers behind a gather rule work on each row: here each client's message is clipped before the median."""
    got, _, _ = stacked(agg.chain(agg.coordinate_median(), agg.clip_by_global_norm(1.0)))
    clipped = np.asarray(UPDATES["a"]) * np.minimum(1, 1 / NORMS)[:, None]
    np.testing.assert_allclose(got["a"], np.median(clipped, axis=0), rtol=1e-6)


def test_top_k_keeps_its_memory_from_what_is_not_finite():
    """One NaN update does not poison the client's later rounds."""
    chain = agg.chain(agg.top_k(0.5), agg.clip_by_global_norm(1e3), agg.mean(over="clients"))
    key = jax.random.key(0)
    _, state, _ = agg.run(chain, jnp.array([[1.0, 2.0]]), key=key)
    _, state, metrics = agg.run(chain, jnp.array([[np.nan, 2.0]]), key=key, state=state)
    assert float(metrics["clip_by_global_norm/nonfinite"].total) == 1
    mean, _, _ = agg.run(chain, jnp.array([[0.5, 0.0]]), key=key, state=state)
    assert mean.tolist() == [1.5, 0.0]
