"""What chains, means and ``aggregation.run`` guarantee, on given messages."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from unit.messages import (
    KEY,
    NORMS,
    SIZES,
    UPDATES,
    assert_trees_equal,
    encode,
    round_context,
    stacked,
)
from unit.small import simulation

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim._src import keys, tree

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
