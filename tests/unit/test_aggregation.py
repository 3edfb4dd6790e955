"""What each transform guarantees, sentence by sentence, on given messages."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.small import simulation

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim._src import keys, tree
from fedjax_sim.aggregation._reduce import example_client_context

KEY = jax.random.key(0)
UPDATES = {"a": jnp.array([[3.0, 4.0], [0.3, 0.4], [-6.0, 8.0]]), "b": jnp.array([[12.0], [0.0], [0.0]])}
SIZES = np.array([2, 5, 1])
NORMS = np.array([13.0, 0.5, 10.0])


def round_context(key=KEY, *, clients=3, expected=3.0, bound=np.inf, mask=None) -> fs.RoundContext:
    return fs.RoundContext(key, jnp.int32(0), jnp.int32(clients), expected, 10, mask, jnp.float32(bound))


def client_context(**changes) -> fs.ClientContext:
    return example_client_context()._replace(num_examples=jnp.int32(1), **changes)


def encode(transform, value, *, client=None, server=None, **context):
    """One client's encoded value, its part and metrics."""
    message = fs.Message(value)
    first_server, first_client = transform.init(tree.spec(message))
    return transform.encode(
        message,
        first_client if client is None else client,
        first_server if server is None else server,
        client_context(**context),
    )


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def stacked(value, sizes=None, **options):
    return agg.run(value, UPDATES, key=KEY, num_examples=SIZES if sizes is None else sizes, **options)


# --- chain ---

LAYERS = {
    "clip": lambda: agg.clip_by_global_norm(1.0),
    "adaptive": lambda: agg.adaptive_clip(2.0, count_noise_std=0.5),
    "top_k": lambda: agg.top_k(0.5),
    "mean": lambda: agg.mean(over="expected_cohort"),
    "noise": lambda: agg.gaussian_noise(0.7),
}
CHAINS = [("top_k", "clip", "mean", "noise"), ("clip", "adaptive", "mean"), ("adaptive", "mean", "noise")]


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
def test_chain_is_associative_keys_included(names):
    """Every bracketing gives the same numbers, noise and all, and the same state."""
    flat = agg.chain(*[LAYERS[name]() for name in names])
    expected = stacked(flat)
    for cut in range(1, len(names)):
        # Both halves must be valid chains of their own: noise stands behind its clip and its mean.
        first, second = names[:cut], names[cut:]
        if "noise" in second and len(second) < len(names):
            continue
        nested = agg.chain(
            agg.chain(*[LAYERS[n]() for n in first]), agg.chain(*[LAYERS[n]() for n in second])
        )
        assert_trees_equal(stacked(nested), expected)


@pytest.mark.parametrize("names", CHAINS, ids="-".join)
def test_identity_is_the_identity_keys_included(names):
    layers = [LAYERS[name]() for name in names]
    expected = stacked(agg.chain(*layers))
    for place in range(len(layers) + 1):
        with_identity = agg.chain(*layers[:place], agg.identity(), *layers[place:])
        assert_trees_equal(stacked(with_identity), expected)
    assert_trees_equal(stacked(agg.chain(agg.identity(), agg.chain(*layers))), expected)


def test_a_chain_of_nothing_is_the_plain_sum():
    total, _, _ = stacked(agg.chain(agg.identity()))
    assert_trees_equal(total, jax.tree.map(lambda x: x.sum(axis=0), UPDATES))


def test_a_layer_sees_the_fold_of_the_bounds_before_it():
    bound = lambda ctx: {"bound": fs.Mean(ctx.bound, 1)}  # noqa: E731
    spy = agg.identity()._replace(
        facts=(fs.Facts("spy"),),
        encode=lambda message, client, server, ctx: (message, client, bound(ctx)),
        decode=lambda message, server, ctx: (message, server, bound(ctx)),
    )
    layers = [spy, agg.clip_by_global_norm(5.0), spy, agg.adaptive_clip(2.0), spy, agg.top_k(0.5), spy]
    chain = agg.chain(*layers)
    message, _, on_client = encode(chain, {"a": jnp.ones(4)})
    server, _ = chain.init(tree.spec(fs.Message({"a": jnp.ones(4)})))
    _, _, on_server = chain.decode(message, server, round_context())
    for seen in (on_client, on_server):
        assert [float(seen[f"spy_{i}/bound"].total) for i in (0, 2, 4, 6)] == [np.inf, 5.0, 2.0, np.inf]
    assert float(chain.bound(server, np.inf)) == np.inf
    assert float(agg.chain(*layers[:4]).bound(server[:4], np.inf)) == 2.0


def test_a_chain_encodes_first_to_last_and_decodes_last_to_first():
    """Clip precedes weighting, and noise acts on the sum: with z C = 0.7 on the sum, 0.7 / 3 on the mean."""
    clipped, _, metrics = stacked(agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="examples")))
    factors = np.minimum(1, 1 / NORMS)
    expected = (np.asarray(UPDATES["a"]) * (factors * SIZES)[:, None]).sum(axis=0) / SIZES.sum()
    np.testing.assert_allclose(clipped["a"], expected, rtol=1e-6)
    assert float(metrics["clip_by_global_norm/clipped"].total) == 2


def test_layers_of_one_name_have_metrics_of_their_own():
    _, _, metrics = stacked(agg.chain(agg.clip_by_global_norm(5.0), agg.clip_by_global_norm(1.0)))
    assert float(metrics["clip_by_global_norm_0/clipped"].total) == 2
    assert float(metrics["clip_by_global_norm_1/clipped"].total) == 2


# --- mean ---


@pytest.mark.parametrize(
    ("over", "weights", "divisor"),
    [("examples", [2, 5, 1], 8), ("clients", [1, 1, 1], 3), ("expected_cohort", [1, 1, 1], 4)],
)
def test_mean_weights_and_divides(over, weights, divisor):
    got, _, _ = stacked(agg.mean(over=over), expected_clients=4)
    expected = jax.tree.map(lambda x: np.tensordot(weights, x, 1) / divisor, UPDATES)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


@pytest.mark.parametrize("over", ["examples", "clients"])
def test_a_client_without_examples_has_weight_0_in_the_mean(over):
    got, _, _ = stacked(agg.mean(over=over), sizes=[2, 0, 2])
    assert got["a"].tolist() == [-1.5, 6.0]


@pytest.mark.parametrize("over", ["examples", "clients"])
def test_a_round_in_which_nobody_came_decodes_to_zero(over):
    got, _, _ = stacked(agg.mean(over=over), sizes=[0, 0, 0])
    assert_trees_equal(got, jax.tree.map(lambda x: np.zeros(x.shape[1:]), UPDATES))


def test_bounds_of_means():
    """Weighting by examples has no bound; the other two keep the message's."""
    bounds = {
        over: float(agg.mean(over=over).bound((), 2.0)) for over in ("examples", "clients", "expected_cohort")
    }
    assert bounds == {"examples": np.inf, "clients": 2.0, "expected_cohort": 2.0}


def test_coverage_mean_with_full_coverage_is_the_mean_over_clients():
    ones = jax.tree.map(jnp.ones_like, UPDATES)
    message = fs.Message(UPDATES, {"coverage": ones})
    covered, _, _ = agg.run(agg.coverage_mean(), message, key=KEY, num_examples=[2, 0, 2])
    expected, _, _ = stacked(agg.mean(over="clients"), sizes=[2, 0, 2])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), covered, expected)


def test_coverage_mean_counts_per_coordinate():
    """Each coordinate over those who have it; one that nobody covers is zero."""
    updates = jnp.array([[1.0, 0.0, 0.0], [3.0, 5.0, 0.0], [9.0, 9.0, 0.0]])
    coverage = jnp.array([[1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [1.0, 1.0, 0.0]])
    message = fs.Message(updates, {"coverage": coverage})
    got, _, _ = agg.run(agg.coverage_mean(), message, key=KEY, num_examples=[1, 7, 0])
    assert got.tolist() == [2.0, 5.0, 0.0]


def test_mean_by_model_divides_each_model_by_its_members():
    """A client without examples is nobody's member; a model without members stays."""
    updates = jnp.array(
        [[[1.0], [0.0], [0.0]], [[3.0], [0.0], [0.0]], [[0.0], [8.0], [0.0]], [[0.0], [0.0], [9.0]]]
    )
    message = fs.Message(updates, {"members": jnp.eye(3)[jnp.array([0, 0, 1, 2])]})
    got, _, _ = agg.run(agg.mean_by_model(), message, key=KEY, num_examples=[1, 7, 2, 0])
    assert got.tolist() == [[2.0], [8.0], [0.0]]


BESIDE = {
    "coverage_mean": (agg.coverage_mean, jnp.full((2, 100), 0.01), {"coverage": jnp.ones((2, 100))}),
    "mean_by_model": (
        agg.mean_by_model,
        jnp.stack([jnp.full(50, 0.01), jnp.zeros(50)])[None].repeat(2, 0),
        {"members": jnp.array([[1.0, 0.0]] * 2)},
    ),
}


@pytest.mark.parametrize("name", BESIDE)
def test_counts_beside_an_update_are_not_clipped(name):
    """A clip above the update's norm changes nothing, one below it scales the decoded mean, and no count."""
    layer, updates, aux = BESIDE[name]
    norm = float(jnp.linalg.norm(updates[0]))
    for clip, factor in ((1.0, 1.0), (norm / 2, 0.5)):
        chain = agg.chain(agg.clip_by_global_norm(clip), layer())
        got, _, metrics = agg.run(chain, fs.Message(updates, aux), key=KEY)
        np.testing.assert_allclose(got, factor * updates[0], rtol=1e-6)
        assert float(metrics["clip_by_global_norm/clipped"].total) == 2 * (factor < 1)


def test_coverage_is_not_sparsified():
    """A client that sends 1 of 4 coordinates it covers still counts for all four."""
    message = fs.Message(jnp.array([[4.0, 1, 1, 1], [4.0, 1, 1, 1]]), {"coverage": jnp.ones((2, 4))})
    got, _, _ = agg.run(agg.chain(agg.top_k(0.25), agg.coverage_mean()), message, key=KEY)
    assert got.tolist() == [4.0, 0.0, 0.0, 0.0]


# --- narrow types ---


@pytest.mark.parametrize("over", ["examples", "clients", "expected_cohort"])
def test_integers_have_a_mean(over):
    """Weighted and divided in float32: neither 0 nor, for int8, a sum that wraps."""
    for values, dtype in (([4, 6], jnp.int32), ([100, 120], jnp.int8)):
        updates = jnp.array(values, dtype)[:, None]
        got, _, _ = agg.run(agg.mean(over=over), updates, key=KEY, num_examples=[2, 2])
        assert got.dtype == jnp.float32
        assert got.tolist() == [np.mean(values)]


@pytest.mark.parametrize(("dtype", "sizes"), [(jnp.float16, [70_000, 1]), (jnp.bfloat16, [257, 257])])
def test_narrow_floats_are_weighted_in_float32(dtype, sizes):
    """70,000 overflows float16 and 257 is no bfloat16; the mean of ones is one all the same."""
    got, _, _ = agg.run(agg.mean(over="examples"), jnp.ones((2, 3), dtype), key=KEY, num_examples=sizes)
    np.testing.assert_allclose(got, 1.0, rtol=1e-6)


def test_scale_multiplies_in_float32():
    """1/3 in bfloat16 times 257 would be off by the rounding of the factor."""
    got = tree.scale({"a": jnp.full(2, 256.0, jnp.bfloat16)}, 257 / 256)
    assert got["a"].dtype == jnp.bfloat16
    assert got["a"].tolist() == [256.0, 256.0]
    assert tree.scale(jnp.full(1, 6e4, jnp.float16), 1e-6).tolist() == pytest.approx([0.06], rel=1e-3)


@pytest.mark.parametrize(("over", "expected"), [("examples", 4), ("clients", 3), ("expected_cohort", 2)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
def test_averaged_integer_statistics_move_by_the_nearest_integer(over, expected, dtype):
    """A count of batches, and a running sum in the model's own type. Clients of 1, 5 and 9 examples take 1, 3, 5 steps."""
    start = fs.Variables(
        {"w": jnp.zeros((3, 2), dtype)}, (), {"batches": jnp.int32(0), "sum": jnp.zeros(3, dtype)}
    )

    def apply(variables, batch, key, *, train):
        x, stats = batch["x"].astype(dtype), variables.stats
        outputs = (x @ variables.params["w"]).astype(jnp.float32)
        return outputs, {"batches": stats["batches"] + 1, "sum": stats["sum"] + jnp.sum(x, axis=0)}

    task = fs.Task(
        lambda key, sample=None: start, apply, fs.tasks.losses.softmax_cross_entropy(), {}, "averaged"
    )
    algorithm = fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=agg.mean(over=over))
    for engine in (fs.engines.lanes(2), fs.engines.sequential()):
        sim = simulation(algorithm, local=fs.LocalWork(batch_size=2, shuffle=False), engine=engine)
        state, _ = sim.run(sim.init(seed=0), rounds=1)
        assert int(state.server.variables.stats["batches"]) == expected
        assert tree.spec(state.server.variables) == tree.spec(start)


def test_a_server_moves_in_its_own_types():
    """float32 changes on a narrow model and on an integer count: added wide, rounded once, to the nearest."""
    start = {"n": jnp.array([2**24 + 1, 5], jnp.int32), "w": jnp.ones(2, jnp.bfloat16)}
    change = {"n": jnp.array([2.0, -1.6], jnp.float32), "w": jnp.full(2, 0.25, jnp.float32)}
    moved = tree.move(start, change)
    assert jax.tree.map(lambda x: x.dtype, moved) == jax.tree.map(lambda x: x.dtype, start)
    assert (moved["n"].tolist(), moved["w"].tolist()) == ([2**24 + 3, 3], [1.25, 1.25])


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
    """It is no part of the value, and a message that is not finite sends 0; a client without examples sends 1."""
    clip = agg.adaptive_clip(1.0)
    for value, examples, bit in [([0.5], 1, 1.0), ([2.0], 1, 0.0), ([np.nan], 1, 0.0), ([0.0], 0, 1.0)]:
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
    noise = (np.asarray(fractions) * expected - 12) / std
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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.floats(0.01, 1.0), st.integers(0, 2**16))
def test_top_k_sends_the_largest_and_remembers_the_rest(size, share, seed):
    """Sent plus remembered is the message plus what was remembered; at most max(1, round(share n)) are sent."""
    generator = np.random.default_rng(seed)
    value, memory = generator.normal(size=(2, size)).astype(np.float32)
    message, kept, _ = encode(agg.top_k(share), jnp.asarray(value), client=jnp.asarray(memory))
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


# --- robust rules ---


@pytest.mark.parametrize("clients", [1, 2, 5, 6])
def test_the_coordinate_median_is_numpys(clients):
    """Over the clients that came; an even number gives the mean of the middle two."""
    values = np.random.default_rng(clients).normal(size=(clients + 2, 3, 2)).astype(np.float32)
    sizes = [0, *[1] * clients, 0]
    got, _, _ = agg.run(agg.coordinate_median(), jnp.asarray(values), key=KEY, num_examples=sizes)
    np.testing.assert_allclose(got, np.median(values[1:-1], axis=0), rtol=1e-6)


def test_the_median_of_nobody_is_zero():
    got, _, _ = stacked(agg.coordinate_median(), sizes=[0, 0, 0])
    assert_trees_equal(got, jax.tree.map(lambda x: np.zeros(x.shape[1:]), UPDATES))


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


# --- run ---


def test_run_gives_each_client_and_round_keys_of_their_own():
    """A layer that sends a random number sends another for every client and round."""
    draws = agg.identity()._replace(
        facts=(fs.Facts("draws"),),
        encode=lambda message, client, server, ctx: (
            fs.Message(jax.nn.one_hot(ctx.client, 3) * jax.random.normal(ctx.key)),
            client,
            {},
        ),
    )
    values = np.concatenate([agg.run(draws, UPDATES, key=KEY, round_=r)[0] for r in range(2)])
    assert len(set(values.tolist())) == 6


def test_run_under_jit_is_run():
    chain = agg.chain(
        agg.top_k(0.5),
        agg.clip_by_global_norm(1.0),
        agg.mean(over="expected_cohort"),
        agg.gaussian_noise(1.0),
    )
    jitted = jax.jit(lambda updates: agg.run(chain, updates, key=KEY)[0])(UPDATES)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), jitted, agg.run(chain, UPDATES, key=KEY)[0]
    )


def test_run_keeps_the_clients_parts_between_rounds():
    """Error feedback: what the first round kept back goes out in the second."""
    transform = agg.chain(agg.top_k(0.5), agg.mean(over="clients"))
    updates = jnp.array([[4.0, 1.0], [2.0, 3.0]])
    first, state, _ = agg.run(transform, updates, key=KEY)
    second, _, _ = agg.run(transform, jnp.zeros((2, 2)), key=KEY, state=state, round_=1)
    np.testing.assert_allclose(first + second, updates.mean(axis=0))


def test_run_refuses_counts_of_another_shape():
    with pytest.raises(
        ValueError, match=r"num_examples has shape \(2,\), expected \(3,\): one count per update"
    ):
        stacked(agg.mean(), sizes=[1, 2])


def test_integer_messages_keep_their_type_in_the_sum():
    got, _, _ = agg.run(agg.chain(), jnp.full((3, 2), 100, jnp.int8), key=keys.root_key(0))
    assert got.dtype == jnp.int8
    assert got.tolist() == [44, 44]


@pytest.mark.parametrize("over", ["examples", "clients", "expected_cohort"])
def test_a_client_without_examples_has_weight_zero_whatever_it_holds(over):
    """Weight 0 is a replacement, not a product: zero times NaN is NaN."""
    updates = jnp.array([[np.nan], [2.0]])
    mean, _, _ = agg.run(
        agg.mean(over=over),
        updates,
        key=jax.random.key(0),
        num_examples=jnp.array([0, 3]),
        expected_clients=1,
    )
    assert mean.tolist() == [2.0]


def test_top_k_keeps_its_memory_from_what_is_not_finite():
    """One NaN update does not poison the client's later rounds."""
    chain = agg.chain(agg.top_k(0.5), agg.clip_by_global_norm(1e3), agg.mean(over="clients"))
    key = jax.random.key(0)
    _, state, _ = agg.run(chain, jnp.array([[1.0, 2.0]]), key=key)
    _, state, metrics = agg.run(chain, jnp.array([[np.nan, 2.0]]), key=key, state=state)
    assert float(metrics["clip_by_global_norm/nonfinite"].total) == 1
    mean, _, _ = agg.run(chain, jnp.array([[0.5, 0.0]]), key=key, state=state)
    assert mean.tolist() == [1.5, 0.0]
