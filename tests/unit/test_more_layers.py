"""Clips of parts and in L1, zeroing, Laplace and local noise, and the table that describes a chain."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.messages import KEY, UPDATES, client_context, encode, stacked

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim._src import tree

PUBLIC = agg.mean(over="expected_cohort")

# --- clips of parts ---

VALUE = {"a": {"kernel": jnp.array([3.0, 4.0]), "bias": jnp.array([1.0])}, "b": {"kernel": jnp.array([12.0])}}


def test_each_leaf_has_its_own_factor():
    message, _, metrics = encode(agg.clip_by_leaf_norm(2.0), VALUE)
    np.testing.assert_allclose(message.value["a"]["kernel"], [1.2, 1.6], rtol=1e-6)
    assert message.value["a"]["bias"].tolist() == [1.0]
    assert message.value["b"]["kernel"].tolist() == [2.0]
    assert float(metrics["clipped"].total) == 1


def test_the_leaves_of_a_group_have_one_factor():
    """13 over the kernels: one factor 6.5 / 13; the bias is within its norm."""
    message, _, _ = encode(agg.clip_by_group_norm({"kernel": 6.5, "bias$": 2.0}), VALUE)
    np.testing.assert_allclose(message.value["a"]["kernel"], [1.5, 2.0], rtol=1e-6)
    np.testing.assert_allclose(message.value["b"]["kernel"], [6.0], rtol=1e-6)
    assert message.value["a"]["bias"].tolist() == [1.0]


def test_bounds_compose_as_roots_of_sums_of_squares():
    spec = tree.spec(fs.Message(VALUE))
    for clip, expected in (
        (agg.clip_by_leaf_norm(2.0), 2 * np.sqrt(3)),
        (agg.clip_by_group_norm({"kernel": 3.0, "bias": 4.0}), 5.0),
    ):
        server, _ = clip.init(spec)
        assert float(clip.bound(server, np.inf)) == pytest.approx(expected)
        assert float(clip.bound(server, 1.0)) == 1.0


def test_noise_behind_a_clip_by_groups_has_the_composed_bound():
    chain = agg.chain(agg.clip_by_group_norm({"a": 3.0, "b": 4.0}), PUBLIC, agg.gaussian_noise(2.0))
    zeros = {"a": jnp.zeros((2, 20_000)), "b": jnp.zeros((2, 20_000))}
    got, _, _ = agg.run(chain, zeros, key=KEY)
    for leaf in got.values():
        assert np.var(np.asarray(leaf) * 2) == pytest.approx(100, rel=5 * np.sqrt(2 / 20_000))


@pytest.mark.parametrize(
    "clip", [agg.clip_by_leaf_norm(1.0), agg.clip_by_group_norm({"kernel": 1.0, "bias": 1.0})]
)
def test_a_leaf_that_is_not_finite_zeroes_the_whole_message(clip):
    bad = {**VALUE, "b": {"kernel": jnp.array([jnp.inf])}}
    message, _, metrics = encode(clip, bad)
    assert all(not jnp.any(x) for x in jax.tree.leaves(message.value))
    assert [float(metrics[name].total) for name in ("nonfinite", "clipped")] == [1, 0]


GROUPS = {
    "nobody's": ({"kernel": 1.0}, r"the leaf 'a/bias' is in none of the groups 'kernel'"),
    "two's": ({".": 1.0, "bias": 1.0}, r"the leaf 'a/bias' is in '.' and 'bias' of the groups"),
    "empty": (
        {".": 1.0, "Dense": 1.0},
        r"the group 'Dense' has no leaf; the leaves are a/bias, a/kernel, b/kernel",
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_every_leaf_is_in_one_group(name):
    norms, message = GROUPS[name]
    with pytest.raises(ValueError, match=message):
        agg.clip_by_group_norm(norms).init(tree.spec(fs.Message(VALUE)))


BAD = {
    "no groups": (lambda: agg.clip_by_group_norm({}), "clip_norms is empty"),
    "a group of norm 0": (lambda: agg.clip_by_group_norm({"a": 0.0}), r"clip_norms\['a'\] is 0.0"),
    "a norm without squares": (
        lambda: agg.clip_by_global_norm(1e-13),
        "clip_norm is 1e-13, expected 1e-12 or above",
    ),
    "a leaf norm without squares": (lambda: agg.clip_by_leaf_norm(1e-20), "clip_norm is 1e-20"),
    "a group's norm without squares": (
        lambda: agg.clip_by_group_norm({".": 1e-20}),
        "clip_norms\\['.'\\] is 1e-20",
    ),
    "a client's norm without squares": (
        lambda: agg.clip_by_client_norm([1.0, 1e-20]),
        "the smallest of clip_norms is",
    ),
    "an adaptive norm without squares": (lambda: agg.adaptive_clip(1e-20), "initial_norm is 1e-20"),
    "a threshold without squares": (lambda: agg.zero_out(1e-20), "max_norm is 1e-20"),
    "a leaf norm of NaN": (lambda: agg.clip_by_leaf_norm(float("nan")), "clip_norm is nan"),
    "an L1 norm below 0": (lambda: agg.clip_by_l1_norm(-1.0), "clip_norm is -1.0"),
    "a threshold of 0": (lambda: agg.zero_out(0.0), "max_norm is 0.0"),
    "a strange norm": (lambda: agg.zero_out(1.0, norm="max"), "expected one of 'l2', 'l1'"),
    "no Laplace noise": (lambda: agg.laplace_noise(0.0), "noise_multiplier is 0.0"),
    "negative local noise": (lambda: agg.local_gaussian_noise(-1.0), "noise_multiplier is -1.0"),
    "infinite local noise": (lambda: agg.local_laplace_noise(float("inf")), "noise_multiplier is inf"),
    "a negative seed": (lambda: agg.hadamard_rotation(-1), "seed is -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_refused(name):
    make, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make()


# --- zeroing ---


def test_zeroing_takes_a_message_or_leaves_it():
    got, _, metrics = stacked(agg.zero_out(11.0))
    np.testing.assert_allclose(got["a"], np.asarray(UPDATES["a"])[1:].sum(0))
    assert float(metrics["zero_out/zeroed"].total) == 1
    assert float(metrics["zero_out/nonfinite"].total) == 0


def test_without_a_threshold_only_what_is_not_finite_goes():
    updates = jnp.array([[1e30], [jnp.nan], [2.0], [3e38]])
    got, _, metrics = agg.run(agg.zero_out(norm="l1"), updates, key=KEY)
    np.testing.assert_allclose(got, [3e38], rtol=1e-6)
    assert [float(metrics[f"zero_out/{name}"].total) for name in ("zeroed", "nonfinite")] == [1, 1]
    assert not agg.zero_out().facts[0].limits_norm
    assert float(agg.zero_out().bound((), 3.0)) == 3.0


# --- Laplace and local noise ---

LOCALS = {
    "local_gaussian": (agg.local_gaussian_noise, agg.clip_by_global_norm, 1.0),
    "local_laplace": (agg.local_laplace_noise, agg.clip_by_l1_norm, 2.0),
}


def laplace_pieces(x):
    """Shares beyond 1, 2, 4 and 8 scales."""
    return np.array([np.mean(np.abs(x) > t) for t in (1, 2, 4, 8)])


@pytest.mark.parametrize("local", [False, True])
def test_laplace_noise_has_the_tails_of_its_law(local):
    size = 200_000
    noise = agg.local_laplace_noise(2.0) if local else agg.laplace_noise(2.0)
    chain = agg.chain(agg.clip_by_l1_norm(0.5), PUBLIC, noise)
    got, _, _ = agg.run(chain, jnp.zeros((1, size)), key=KEY)
    expected = np.exp([-1.0, -2.0, -4.0, -8.0])
    assert np.all(np.abs(laplace_pieces(got) - expected) < 5 * np.sqrt(expected / size))
    assert abs(np.mean(got)) < 5 * np.sqrt(2 / size)


@pytest.mark.parametrize("name", LOCALS)
def test_every_client_of_a_cohort_draws_its_own_noise(name):
    """With examples or without, independent over clients, leaves and rounds."""
    noise, clip, unit = LOCALS[name]
    size, transform = 20_000, agg.chain(clip(0.5), PUBLIC, noise(2.0))
    zeros, rows = {"a": jnp.zeros((1, size)), "b": jnp.zeros((1, size))}, []
    for client, round_, examples in ((0, 0, 1), (1, 0, 0), (0, 1, 3)):
        value = jax.tree.map(lambda x: x[0], zeros)
        key = jax.random.fold_in(jax.random.fold_in(KEY, client), round_)
        message, _, _ = transform.encode(
            fs.Message(value),
            ((), (), ()),
            ((), (), ()),
            context(key, examples),
        )
        rows += [np.asarray(x) for x in jax.tree.leaves(message.value)]
    assert all(abs(x.var() / unit - 1) < 5 * np.sqrt(5 / size) for x in rows)
    assert np.abs(np.corrcoef(rows) - np.eye(6)).max() < 5 / np.sqrt(size)


def context(key, examples):
    return client_context(key=key)._replace(num_examples=jnp.int32(examples))


CLIP, L1 = agg.clip_by_global_norm(1.0), agg.clip_by_l1_norm(1.0)
LAPLACE, LOCAL, LOCAL_L1 = agg.laplace_noise(1.0), agg.local_gaussian_noise(1.0), agg.local_laplace_noise(1.0)
WRONG = {
    "Laplace behind an L2 clip": ((CLIP, PUBLIC, LAPLACE), "needs a bound on the L1 norm, but clip_by_global_norm bounds L2"),
    "an L2 clip before": ((CLIP, L1, PUBLIC, LAPLACE), "clip_by_global_norm bounds L2"),
    "an L2 clip behind": ((L1, CLIP, PUBLIC, LAPLACE), "clip_by_global_norm bounds L2"),
    "L2 zeroing": ((agg.zero_out(1.0), L1, PUBLIC, LOCAL_L1), "zero_out bounds L2"),
    "a rotation": ((L1, agg.hadamard_rotation(), PUBLIC, LAPLACE), "no L1 bound holds where it stands"),
    "local noise before the mean": ((CLIP, LOCAL, PUBLIC), "local_gaussian_noise stands behind no mean"),
    "local noise without a clip": ((PUBLIC, LOCAL), "local_gaussian_noise needs a bound"),
    "local noise, exact counts": ((CLIP, agg.mean(over="clients"), LOCAL), "divisor depends on the data"),
    "local noise, exact sizes": ((CLIP, agg.mean(), LOCAL), "divisor depends on the data"),
    "local noise, bits in the clear": (
        (agg.adaptive_clip(1.0, count_noise_std=1.0), PUBLIC, LOCAL),
        "protects from a server that adaptive_clip trusts",
    ),
    "more noise behind local noise": ((CLIP, PUBLIC, LOCAL, agg.gaussian_noise(1.0)), "gaussian_noise needs a bound"),
    "memory behind noise": (
        (CLIP, PUBLIC, agg.gaussian_noise(1.0), agg.top_k(0.5)),
        r"top_k stands after gaussian_noise and can raise the norm.*chain\(top_k\(...\), clip_by_global_norm\(C\)",
    ),
    "memory behind Laplace noise": ((L1, PUBLIC, LAPLACE, agg.top_k(0.5)), "top_k stands after laplace_noise"),
    "memory behind both": ((CLIP, PUBLIC, agg.tree_noise(1.0), LOCAL, agg.top_k(0.5)), "top_k stands after tree_noise"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_orders_are_refused(name):
    layers, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        agg.chain(*layers)


def test_right_orders_are_not():
    """Layers that lengthen nothing in L1 may stand between the clip and the noise."""
    agg.chain(agg.zero_out(9.0, norm="l1"), L1, agg.top_k(0.5, error_feedback=False), PUBLIC, LAPLACE)
    agg.chain(agg.top_k(0.5), L1, PUBLIC, LOCAL_L1)
    agg.chain(L1, PUBLIC, LOCAL)
    agg.chain(CLIP, PUBLIC, agg.gaussian_noise(1.0), agg.top_k(0.5, error_feedback=False))
    # What a client noised itself may be kept and sent later: the bound served its purpose.
    agg.chain(CLIP, PUBLIC, LOCAL, agg.top_k(0.5))
    agg.chain(L1, agg.hadamard_rotation(), PUBLIC, agg.gaussian_noise(1.0))


# --- describe ---

PRICED = {
    "tree": (agg.tree_noise(2.0), "one Gaussian release for each tree"),
    "bands": (agg.banded_noise(2.0, 2, 4), "at least the bands apart"),
    "filter": (agg.filtered_gaussian_noise(2.0, 1.0), "no client pays more than its budget"),
    "simulated": (
        agg.simulated(agg.gaussian_noise(2.0), fs.cohorts.poisson(0.001), population=10**6),
        "all of it that of a simulated deployment, not of the run",
    ),
    "two laws": (agg.gaussian_noise(2.0), "privacy loss distribution; Gaussian noise on each message"),
}


@pytest.mark.parametrize("name", PRICED)
def test_a_description_says_what_the_price_of_every_noise_follows_from(name):
    noise, said = PRICED[name]
    table = agg.describe(agg.chain(CLIP, PUBLIC, noise, LOCAL), jnp.zeros(4))
    assert said in table.price
    assert "noise of the law" not in table.price
    assert ("simulated: less in the run" in table.rows[2].noise) == (name == "simulated")


def test_a_description_shows_the_noise_on_a_count():
    chain = agg.chain(agg.adaptive_clip(1.0, count_noise_std=5.0), PUBLIC, agg.gaussian_noise(2.0))
    table = agg.describe(chain, jnp.zeros(4))
    assert table.rows[0].noise == "gaussian 5 on the count"
    assert "noise on the count" in table.price
    assert agg.describe(agg.adaptive_clip(1.0), jnp.zeros(4)).rows[0].noise == ""


MODEL = {"w": jax.ShapeDtypeStruct((20, 5), jnp.float32), "b": jax.ShapeDtypeStruct((20,), jnp.bfloat16)}


def test_a_description_has_a_row_per_layer_in_the_order_of_the_clients():
    noise = agg.skellam_noise(0.8, min_clients=100, bits=16)
    table = agg.describe(
        agg.chain(agg.clip_by_global_norm(0.5), PUBLIC, agg.hadamard_rotation(), noise), MODEL
    )
    assert [row.layer for row in table.rows] == [
        "clip_by_global_norm",
        "mean",
        "hadamard_rotation",
        "skellam_noise",
    ]
    assert [row.bound for row in table.rows] == [0.5, 0.5, 0.5, np.inf]
    assert (table.coordinates, table.bits) == (120, 100 * 32 + 20 * 16)
    # 128 coordinates of 16 bits, and the count of 32.
    assert [row.bits for row in table.rows] == [3520, 3520, 128 * 32, 128 * 16 + 32]
    assert [row.dtypes for row in table.rows][2:] == [("float32",), ("uint32",)]
    assert [row.reduction for row in table.rows] == ["sum", "sum", "sum", "modular_sum"]
    text = str(table)
    for said in (
        "skellam 0.8 x bound on the sum of 100 clients",
        "reduced by modular sum",
        "theorem 3.5",
        "2,080",
    ):
        assert said in text
    assert len(text.splitlines()) == 8


def test_a_description_takes_bounds_from_the_first_state_and_weights_into_account():
    chain = agg.chain(agg.adaptive_clip(0.3), agg.clip_by_leaf_norm(2.0), agg.mean())
    table = agg.describe(chain, MODEL)
    assert [row.bound for row in table.rows] == pytest.approx([0.3, 0.3, np.inf])
    assert [row.bits for row in table.rows] == [3552, 3552, 120 * 32 + 64]
    assert "price: no noise, so there is none" in str(table)


@pytest.mark.parametrize(
    ("chain", "said"),
    [
        (agg.chain(CLIP, PUBLIC, agg.gaussian_noise(lambda r: 1.0)), "gaussian a schedule x bound on the sum"),
        (agg.chain(L1, PUBLIC, LOCAL_L1), "paid once for each participation"),
        (agg.coordinate_median(), "reduced by gather"),
        (agg.identity(), "120 coordinates, reduced by sum"),
    ],
)  # fmt: skip
def test_what_a_description_says(chain, said):
    assert said in str(agg.describe(chain, MODEL))


@settings(max_examples=20, deadline=None)
@given(st.floats(0.1, 10), st.floats(0.1, 10))
def test_the_last_bound_is_that_of_the_chain(first, second):
    chain = agg.chain(agg.clip_by_global_norm(first), agg.clip_by_l1_norm(second))
    assert agg.describe(chain, MODEL).rows[-1].bound == pytest.approx(min(first, second))
