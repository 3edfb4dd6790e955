"""Bounds and canaries, against what is known of them; what every audit refuses."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fedjax_sim as fs
from fedjax_sim._src import keys
from fedjax_sim.privacy import audits, gaussian_delta
from fedjax_sim.privacy.audits import _canary_audit
from fedjax_sim.privacy.audits._noise_tests import noise_tests

# --- bounds --------------------------------------------------------------------------------------------------

CANARY = {
    "mean_in": 1.0,
    "std_in": 4.2247,
    "mean_out": 0.0,
    "std_out": 4.2247,
    "delta": 1e-6,
    "epsilon": 0.99999,
}


def test_two_gaussians_have_the_golden_epsilon():
    asked = {name: value for name, value in CANARY.items() if name != "epsilon"}
    assert audits.two_gaussians_epsilon(**asked) == pytest.approx(CANARY["epsilon"], rel=1e-4)


def test_the_literals_are_those_of_the_file(shared):
    golden = json.loads((shared / "conformance" / "privacy.json").read_text())
    assert golden["canary_two_gaussians"] == CANARY


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-3, 3),
    st.floats(0.3, 3),
    st.floats(-3, 3),
    st.floats(0.3, 3),
    st.sampled_from([1e-2, 1e-4, 1e-6]),
)
def test_two_gaussians_agree_with_an_integral(mean_in, std_in, mean_out, std_out, delta):
    """At the epsilon found, the larger of the two divergences is delta."""
    epsilon = audits.two_gaussians_epsilon(mean_in, std_in, mean_out, std_out, delta)
    x = np.linspace(-40, 40, 400_001)
    p, q = stats.norm.logpdf(x, mean_in, std_in), stats.norm.logpdf(x, mean_out, std_out)

    def divergence(a, b):
        return np.sum(np.maximum(np.exp(a) - np.exp(np.minimum(epsilon + b, 700)), 0)) * (x[1] - x[0])

    largest = max(divergence(p, q), divergence(q, p))
    if epsilon > 0:
        assert largest == pytest.approx(delta, rel=2e-3)
    else:
        assert largest <= delta * (1 + 1e-3)


@pytest.mark.parametrize(("sigma", "delta"), [(1.0, 1e-5), (0.3, 1e-6), (20.0, 1e-9)])
def test_equal_variances_are_the_gaussian_mechanism(sigma, delta):
    epsilon = audits.two_gaussians_epsilon(1.0, sigma, 0.0, sigma, delta)
    if epsilon == 0:
        assert gaussian_delta(sigma, 0.0) <= delta
    else:
        assert gaussian_delta(sigma, epsilon) == pytest.approx(delta, rel=1e-5)


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (3, 10), (10, 10), (700, 1000)])
def test_clopper_pearson_is_exact(successes, trials):
    """At a bound, what was seen is just improbable enough."""
    low, high = audits.clopper_pearson(successes, trials, 0.95)
    if successes:
        assert stats.binom.sf(successes - 1, trials, low) == pytest.approx(0.05)
    if successes < trials:
        assert stats.binom.cdf(successes, trials, high) == pytest.approx(0.05)
    assert low <= successes / trials <= high


def test_a_lower_bound_of_independent_trials_holds_and_is_close():
    """On the exact Gaussian mechanism: in 200 audits of 2,000 trials each at most a few exceed the truth, and the mean is near."""
    sigma, delta, generator = 1.0, 1e-5, np.random.default_rng(0)
    truth = audits.two_gaussians_epsilon(1.0, sigma, 0.0, sigma, delta)
    threshold, trials = 2.0, 2000
    bounds = []
    for _ in range(200):
        caught = generator.binomial(trials, stats.norm.sf(threshold - 1.0))
        false = generator.binomial(trials, stats.norm.sf(threshold))
        bounds.append(audits.epsilon_lower_bound(caught, trials, false, trials, delta))
    best = np.log(stats.norm.sf(1.0) / stats.norm.sf(2.0))  # what this threshold can show
    assert max(bounds) < truth
    assert np.mean(np.array(bounds) > best) <= 0.05
    assert np.mean(bounds) > 0.75 * best


@pytest.mark.parametrize(("correct", "guesses"), [(0, 5), (30, 50), (50, 50)])
def test_the_bound_of_one_run_is_that_of_the_paper(correct, guesses):
    """Appendix D: ``P(W >= v) + 2 m delta max_i P(v > W >= v - i) / i``, with scipy's binomial, is the miss at the bound."""
    canaries, delta = 60, 1e-4
    epsilon = audits.one_run_lower_bound(correct, guesses, canaries, delta, 0.95)
    right, alpha, total = 1 / (1 + np.exp(-epsilon)), 0.0, 0.0
    for i in range(1, correct + 1):
        total += stats.binom.pmf(correct - i, guesses, right)
        alpha = max(alpha, total / i)
    p_value = stats.binom.sf(correct - 1, guesses, right) + 2 * canaries * delta * alpha
    assert p_value == pytest.approx(0.05, rel=1e-5) if epsilon > 0 else p_value > 0.05


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_the_bound_of_one_run_holds_for_randomized_response(epsilon):
    """Coins that are told right with probability ``e^eps / (1 + e^eps)``: the worst that pure privacy allows."""
    generator, canaries = np.random.default_rng(1), 300
    right = generator.binomial(canaries, 1 / (1 + np.exp(-epsilon)), size=400)
    bounds = {
        int(v): audits.one_run_lower_bound(int(v), canaries, canaries, 0.0, 0.95) for v in np.unique(right)
    }
    exceeded = np.mean([bounds[int(v)] > epsilon for v in right])
    assert exceeded <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 400)
    assert exceeded > 0.01  # tight
    assert np.mean([bounds[int(v)] for v in right]) > 0.5 * epsilon


def test_the_bound_of_one_run_is_clopper_pearson_without_delta():
    low, _ = audits.clopper_pearson(80, 100, 0.9)
    assert audits.one_run_lower_bound(80, 100, 150, 0.0, 0.9) == pytest.approx(
        np.log(low / (1 - low)), abs=1e-6
    )
    assert audits.one_run_lower_bound(80, 100, 150, 1e-3, 0.9) < audits.one_run_lower_bound(
        80, 100, 150, 1e-6, 0.9
    )
    assert audits.one_run_lower_bound(0, 0, 150, 1e-6) == 0.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: audits.clopper_pearson(3, 2), "successes is 3, expected at most the 2 trials"),
        (lambda: audits.clopper_pearson(1, 2, 1.0), "confidence is 1.0, expected a number in"),
        (lambda: audits.two_gaussians_epsilon(0, 0, 0, 1, 1e-5), "std_in is 0"),
        (lambda: audits.two_gaussians_epsilon(0, 1, 0, 1, 1.0), "delta is 1.0"),
        (lambda: audits.one_run_lower_bound(3, 2, 5, 0.0), "expected correct <= guesses <= canaries"),
        (lambda: audits.roc([1.0, np.nan], [0.0]), "members is .* none NaN"),
        (lambda: audits.roc([], [0.0]), "expected one score for each example, at least one"),
        (
            lambda: audits.lira(np.zeros(2), np.zeros((4, 3)), np.ones((4, 3), bool)),
            r"target has shape \[2\]",
        ),
        (lambda: audits.lira(np.zeros(3), np.zeros((4, 3)), np.ones((4, 3))), "dtype float64, expected bool"),
        (
            lambda: audits.lira(np.zeros(1), np.zeros((4, 1)), np.ones((4, 1), bool)),
            "example 0 was left out by 0 shadow models",
        ),
        (lambda: audits.shadow_members(3, 5), "models is 3, expected an even number"),
        (lambda: audits.invert_linear(np.zeros((3, 2)), np.zeros(3)), r"bias_gradient \[3\], expected"),
        (lambda: audits.invert_linear(np.zeros((3, 2)), np.zeros(2)), "bias_gradient is zero"),
        (lambda: audits.psnr(np.zeros(3), np.zeros(4)), r"shape \[3\], the reference \[4\]"),
        (lambda: audits.Canaries(0, 0, 1.0), "count is 0"),
        (lambda: audits.Canaries(0, 5, 1.0).scores([np.zeros(3)], 2), "models has 1 models, expected two"),
        (
            lambda: audits.Canaries(0, 5, 1.0).scores([jnp.zeros(3), jnp.zeros(3)], 2),
            "model 1 does not differ",
        ),
        (
            lambda: audits.Canaries(0, 5, 1.0).scores([jnp.zeros(3), jnp.zeros(4)], 2),
            "models are of different shapes",
        ),
        (
            lambda: audits.audit_canaries(audits.Canaries(0, 1, 1.0), [], 1e-5),
            "canaries sent their direction, expected two",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- the tests of a mechanism ---


def test_p_values_are_those_of_scipy():
    generator = np.random.default_rng(0)
    noise = 1.01 * generator.normal(size=(80, 30))
    found = {test.name: test.p_value for test in noise_tests(noise, {"leaf 0": 20, "leaf 1": 10}, runs=2)}
    law = stats.kstest(noise.ravel(), "norm", method="asymp").pvalue
    assert found["law of the noise"] == pytest.approx(law, rel=1e-6)
    for name, part in (("variance over all", noise), ("variance in leaf 1", noise[:, 20:])):
        law = stats.chi2(part.size)
        tail = min(law.cdf(np.sum(part**2)), law.sf(np.sum(part**2)))
        assert found[name] == pytest.approx(2 * tail, rel=1e-9)
    pairs = [stats.pearsonr(noise[:, i], noise[:, j]).pvalue for i in range(30) for j in range(i)]
    expected = min(1.0, len(pairs) * min(pairs))
    assert found["largest correlation of two coordinates"] == pytest.approx(expected, rel=1e-6)


# --- canaries ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "changes"), [(3, 1), (50, 1), (50, 7), (2000, 1)])
def test_thresholds_have_their_false_positive_rate(size, changes):
    """Cosines of random directions exceed them as often as they should; of several changes at most so."""
    generator, draws = np.random.default_rng(0), 20_000
    vectors = np.linalg.qr(generator.normal(size=(size, changes)))[0].T
    directions = generator.normal(size=(draws, size)) if size < 100 else None
    if directions is None:  # the first coordinate of a uniform direction, without all the others
        first = generator.normal(size=draws)
        scores = first / np.sqrt(first**2 + generator.chisquare(size - 1, draws))
    else:
        scores = np.max(directions / np.linalg.norm(directions, axis=1, keepdims=True) @ vectors.T, axis=1)
    for rate in (0.3, 0.1, 1e-2):
        share = np.mean(scores > _canary_audit._threshold(rate, changes, size))
        slack = 5 * np.sqrt(rate / draws)
        assert share < rate + slack
        assert changes > 1 or share > rate - slack


def test_bounds_of_simulated_cosines_hold():
    """The Gaussian mechanism in many dimensions: each canary's cosine is that of one release; no audit of 40 exceeds the truth."""
    size, count, sigma, delta = 4000, 200, 1.0, 1e-4
    truth = audits.two_gaussians_epsilon(1.0, sigma, 0.0, sigma, delta)
    generator = np.random.default_rng(0)
    bounds, estimates, one_run = [], [], []
    for _ in range(40):
        took_part = generator.random(count) < 0.5
        # Directions that are orthogonal: the scores are independent, as the bound takes them.
        scores = (took_part + sigma * generator.normal(size=count)) / (sigma * np.sqrt(size))
        bounds.append(_canary_audit._threshold_bound(scores[took_part], 1, size, delta, 0.95))
        one_run.append(_canary_audit._one_run(scores, took_part, 1, size, delta, 0.95))
        own = scores[took_part]
        estimates.append(
            audits.two_gaussians_epsilon(own.mean(), own.std(ddof=1), 0.0, 1 / np.sqrt(size), delta)
        )
    assert max(bounds) < truth and max(one_run) < truth
    assert np.mean(bounds) > 0.3
    assert truth / 2 < np.median(estimates) < 2 * truth


@pytest.mark.parametrize("every_round", [False, True])
def test_the_whole_audit_of_a_gaussian_mechanism(every_round):
    """Ten rounds of a sum of directions and noise in 6,000 dimensions, whose epsilon is that of one release of root ten."""
    rounds, count, size, delta = 10, 150, 6000, 1e-4
    generator, shape = np.random.default_rng(0), {"a": jnp.zeros((size // 2, 1)), "b": jnp.zeros(size // 2)}
    found = {}
    for z in (2.0, 0.2):
        canaries = audits.Canaries(0, count, 1.0, seed=7)
        drawn = jax.vmap(lambda i, c=canaries: c.direction(i, shape))(np.flatnonzero(canaries.included))
        total = np.concatenate([np.asarray(x).sum(axis=0).ravel() for x in jax.tree.leaves(drawn)])
        steps = total + z * generator.normal(size=(rounds, size))
        path = np.concatenate([np.zeros((1, size)), np.cumsum(steps, axis=0)])
        models = [{"a": jnp.asarray(x[: size // 2, None]), "b": jnp.asarray(x[size // 2 :])} for x in path]
        found[z] = audits.audit_canaries(canaries, models if every_round else [models[0], models[-1]], delta)
    truth = {
        z: audits.two_gaussians_epsilon(1, z / np.sqrt(rounds), 0, z / np.sqrt(rounds), delta) for z in found
    }
    for z, audit in found.items():
        assert not audit.contradicts(truth[z]), str(audit)
        assert audit.lower_bound > 0
    assert found[0.2].contradicts(truth[2.0])
    assert found[0.2].lower_bound > 2 * found[2.0].lower_bound
    if not every_round:  # the last model is a sufficient statistic, one round's is not
        assert truth[2.0] / 2 < found[2.0].epsilon < 2 * truth[2.0]
        assert found[2.0].one_run_bound > 0.3
    nobody = np.concatenate([found[2.0].excluded, found[2.0].unobserved])
    assert nobody.std() == pytest.approx(found[2.0].null_std, rel=0.1)
    assert f"{canaries.included.sum()} canaries" in str(found[2.0])


def test_coins_are_fair_and_belong_to_the_seed():
    coins = np.concatenate([audits.Canaries(0, 1000, 1.0, seed=seed).included for seed in range(4)])
    assert abs(coins.mean() - 0.5) < 5 * 0.5 / np.sqrt(4000)
    assert audits.Canaries(0, 9, 1.0, share=1.0).included.all()
    first, again = (audits.Canaries(0, 100, 1.0, seed=3).included for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_directions_are_uniform_over_all_leaves():
    """Of length 1, zero on average, with the same variance in each coordinate; integers have no part in them."""
    like = {"w": jnp.zeros((3, 4)), "count": jnp.zeros((), jnp.int32), "b": jnp.zeros(4, jnp.bfloat16)}
    canaries = audits.Canaries(0, 5, 1.0, seed=2)
    drawn = jax.vmap(lambda i: canaries.direction(i, like))(jnp.arange(4000))
    assert not drawn["count"].any() and drawn["b"].dtype == jnp.bfloat16
    flat = np.concatenate([np.asarray(drawn[n], np.float64).reshape(4000, -1) for n in ("w", "b")], axis=1)
    np.testing.assert_allclose(np.linalg.norm(flat, axis=1), 1, atol=5e-3)
    assert np.abs(flat.mean(axis=0)).max() < 5 / np.sqrt(16 * 4000)
    assert np.abs(flat.var(axis=0) * 16 - 1).max() < 5 * np.sqrt(2 / 4000)


def test_directions_share_no_stream_with_a_run_of_the_same_seed():
    """A run's own keys begin with its purposes, which are small; and the directions of two seeds are unrelated."""
    like = jnp.zeros(2000)
    found = np.asarray(audits.Canaries(0, 9, 1.0, seed=4).direction(3, like))
    root = keys.root_key(4)
    others = [jax.random.normal(keys.fold(root, purpose, 3, 0), (2000,)) for purpose in range(10)]
    others += [
        jax.random.normal(keys.fold(root, 3, 0), (2000,)),
        audits.Canaries(0, 9, 1.0, seed=5).direction(3, like),
    ]
    for other in others:
        assert abs(np.corrcoef(found, other)[0, 1]) < 5 / np.sqrt(2000)


def test_canaries_join_a_population():
    """Behind the others, one example each, with new ids of the same kind."""
    for ids in (["ann", "bo"], [7, 3]):
        data = fs.ClientData({"x": np.arange(6.0).reshape(3, 2)}, [0, 1, 3], ids)
        larger, first = audits.add_canaries(data, 4)
        assert (first, larger.num_clients, larger.sizes.tolist()) == (2, 6, [1, 2, 1, 1, 1, 1])
        np.testing.assert_array_equal(larger.select([0, 1]).columns["x"], data.columns["x"])


def test_an_algorithm_without_a_delta_has_no_canaries():
    task = fs.tasks.classification(fs.models.linear(classes=2))
    algorithm = audits.Canaries(2, 2, 1.0).join(fs.algorithms.ifca(task, optax.sgd(0.1), models=2))
    data = fs.ClientData({"x": np.zeros((4, 3), np.float32), "y": np.zeros(4, np.int32)}, range(5), range(4))
    with pytest.raises(TypeError, match="ifca: what its clients send has 0 parts of type Delta"):
        fs.Simulation(algorithm, data, cohort=fs.cohorts.uniform(2))
