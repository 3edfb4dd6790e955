"""Bounds, attacks on membership, and inverted gradients, against what is known of them."""

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
from fedjax_sim import plots
from fedjax_sim.privacy import audits, gaussian_delta
from fedjax_sim.privacy.audits import _canaries, _mechanism

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
    found = {test.name: test.p_value for test in _mechanism._noise_tests(noise, [20, 10], None)}
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
        share = np.mean(scores > _canaries._threshold(rate, changes, size))
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
        bounds.append(_canaries._threshold_bound(scores[took_part], 1, size, delta, 0.95))
        one_run.append(_canaries._one_run(scores, took_part, 1, size, delta, 0.95))
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


def test_canaries_join_a_population():
    """Behind the others, one example each, with new ids of the same kind."""
    for ids in (["ann", "bo"], [7, 3]):
        data = fs.ClientData({"x": np.arange(6.0).reshape(3, 2)}, [0, 1, 3], ids)
        larger, first = audits.add_canaries(data, 4)
        assert (first, larger.num_clients, larger.sizes.tolist()) == (2, 6, [1, 2, 1, 1, 1, 1])
        np.testing.assert_array_equal(larger.select([0, 1]).columns["x"], data.columns["x"])
    with pytest.raises(TypeError, match=r"expected ClientData, such as data\.train or source\.in_memory"):
        audits.add_canaries(fs.data.glyphs(clients=3).train, 2)


def test_an_algorithm_without_a_delta_has_no_canaries():
    task = fs.tasks.classification(fs.models.linear(classes=2))
    algorithm = audits.Canaries(2, 2, 1.0).join(fs.algorithms.ifca(task, optax.sgd(0.1), models=2))
    data = fs.ClientData({"x": np.zeros((4, 3), np.float32), "y": np.zeros(4, np.int32)}, range(5), range(4))
    with pytest.raises(TypeError, match="ifca: what its clients send has 0 parts of type Delta"):
        fs.Simulation(algorithm, data, cohort=fs.cohorts.uniform(2))


# --- membership ----------------------------------------------------------------------------------------------


def test_the_roc_of_gaussians_is_known():
    """AUC = Phi(d / sqrt 2), TPR at f = Phi(Phi^-1(f) + d)."""
    generator, shift, count = np.random.default_rng(0), 1.5, 200_000
    curve = audits.roc(generator.normal(size=count) + shift, generator.normal(size=count))
    assert curve.auc == pytest.approx(stats.norm.cdf(shift / np.sqrt(2)), abs=0.003)
    for rate in (1e-3, 1e-2, 0.3):
        assert curve.true_rate_at(rate) == pytest.approx(
            stats.norm.cdf(stats.norm.ppf(rate) + shift), rel=0.08
        )
    assert curve.advantage == pytest.approx(2 * stats.norm.cdf(shift / 2) - 1, abs=0.006)


def test_scores_that_say_nothing_have_half_of_the_area():
    curve = audits.roc(np.zeros(5), np.zeros(3))
    assert (curve.auc, curve.advantage, curve.true_rate_at(0.001)) == (0.5, 0.0, 0.0)
    assert curve.false_rates.tolist() == [0, 1]


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=20), st.lists(st.integers(0, 5), min_size=1, max_size=20)
)
def test_the_area_is_the_share_of_pairs_in_order(members, others):
    a, b = np.array(members, float)[:, None], np.array(others, float)
    curve = audits.roc(members, others)
    assert curve.auc == pytest.approx(np.mean((a > b) + 0.5 * (a == b)))
    allowed = [t for t in np.append(np.unique([*members, *others]), np.inf) if np.mean(b >= t) <= 0.25]
    assert curve.true_rate_at(0.25) == max(np.mean(a >= t) for t in allowed)


def test_lira_on_known_gaussians_is_the_best_there_is():
    """Examples with means of their own: a threshold on the confidence fails, the likelihood ratio does not."""
    generator, models, examples = np.random.default_rng(0), 128, 3000
    hard = 5 * generator.normal(size=examples)
    members = audits.shadow_members(models + 2, examples)
    confidence = hard + 2.0 * members + generator.normal(size=members.shape)
    target, shadows = confidence[0], confidence[1:]

    def area(scores):
        return audits.roc(scores[members[0]], scores[~members[0]]).auc

    best = stats.norm.cdf(2 / np.sqrt(2))
    assert area(target) < 0.65
    for options in ({"form": "online"}, {"form": "offline"}, {"form": "online", "fixed_variance": True}):
        scores = audits.lira(target, shadows, members[1:], **options)
        assert area(scores) == pytest.approx(best, abs=0.02), options
    exact = stats.norm.logpdf(target, hard + 2) - stats.norm.logpdf(target, hard)
    found = audits.lira(target, shadows, members[1:], fixed_variance=True)
    assert np.corrcoef(exact, found)[0, 1] > 0.99


def test_the_confidence_is_the_logit_of_the_probability():
    p = np.array([1e-6, 0.2, 0.5, 0.999])
    np.testing.assert_allclose(
        audits.logit_confidence(-np.log(p)), np.log(p / (1 - p)), rtol=1e-6, atol=1e-12
    )
    assert np.isfinite(audits.logit_confidence([0.0, 500.0])).all()


def test_shadow_models_see_half_of_the_examples():
    members = audits.shadow_members(16, 2000, seed=1)
    assert (members.sum(axis=0) == 8).all()
    assert np.abs(members.mean(axis=1) - 0.5).max() < 5 * 0.5 / np.sqrt(2000)
    correlation = np.corrcoef(members) - np.eye(16)
    assert np.abs(correlation + (1 - np.eye(16)) / 15).max() < 5 / np.sqrt(2000)


def digits(examples: int, clients: int, noise: float) -> fs.ClientData:
    """Some digits with some labels that are wrong, numbered."""
    columns = fs.data.load("digits", clients=2, alpha=100.0, seed=0).train.columns
    generator = np.random.default_rng(0)
    y = columns["y"][:examples].copy()
    wrong = generator.random(examples) < noise
    y[wrong] = generator.integers(0, 10, wrong.sum())
    data = fs.ClientData(
        {"x": columns["x"][:examples], "y": y},
        np.linspace(0, examples, clients + 1).astype(int),
        range(clients),
    )
    return audits.number_examples(data)


def test_training_on_members_is_training_without_the_others():
    """Full batches without shuffling: the model is the one that the members alone give."""
    task = fs.tasks.classification(fs.models.linear(classes=10))
    plain = fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=fs.aggregation.mean(over="clients"))
    data = digits(60, 3, 0.0)
    members = np.random.default_rng(0).random(60) < 0.5
    options = {
        "cohort": fs.cohorts.all_clients(),
        "local": fs.LocalWork(batch_size=20, epochs=2, shuffle=False),
        "engine": fs.engines.sequential(),
    }

    def trained(algorithm, data):
        sim = fs.Simulation(algorithm, data, **options)
        return sim.run(sim.init(seed=0), rounds=2)[0].server.variables

    got, expected = trained(audits.train_on(plain, members), data), trained(plain, data.filter(members))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
    without = fs.ClientData({name: data.columns[name] for name in ("x", "y")}, data.offsets, data.ids)
    with pytest.raises(
        ValueError, match=r"have the columns x, y, expected 'example' among them: use audits.number"
    ):
        fs.Simulation(audits.train_on(plain, members), without, **options)


@pytest.mark.slow
def test_lira_knows_more_than_the_loss_of_an_overfitted_model():
    """Shadow models are replicas of one sweep; each is attacked with the help of all others."""
    models, data = 12, digits(200, 4, 0.3)
    members = audits.shadow_members(models, data.num_examples)
    task = fs.tasks.classification(fs.models.mlp(classes=10, hidden=(32,)))
    plain = fs.algorithms.fedavg(task, optax.sgd(0.3))
    sim = fs.Simulation(
        plain, data, cohort=fs.cohorts.all_clients(), local=fs.LocalWork(epochs=2, batch_size=10)
    )
    swept = sim.sweep(
        list(range(models)), 40,
        algorithm=lambda members: audits.train_on(plain, members), hyperparameters={"members": members},
    )  # fmt: skip
    losses = np.stack(
        [audits.example_losses(task, plain.params(state.server), data) for state in swept.states]
    )
    confidence = audits.logit_confidence(losses)
    scores = []
    for model in range(models):
        rest = np.arange(models) != model
        scores.append(audits.lira(confidence[model], confidence[rest], members[rest], fixed_variance=True))
    scores = np.stack(scores)
    by_loss = audits.loss_threshold(losses[members], losses[~members])
    by_ratio = audits.roc(scores[members], scores[~members])
    assert by_loss.auc > 0.6
    assert by_ratio.auc > by_loss.auc + 0.1
    assert by_ratio.true_rate_at(0.01) > 2 * by_loss.true_rate_at(0.01)


def test_losses_are_those_of_the_evaluation():
    """In the order of the rows, whatever the batches."""
    data, task = digits(50, 3, 0.2), fs.tasks.classification(fs.models.linear(classes=10))
    row = {name: column[:1] for name, column in data.columns.items()} | {"mask": np.ones(1, bool)}
    variables = task.init(jax.random.key(0), row)
    losses = audits.example_losses(task, variables, data, batch_size=16)
    np.testing.assert_allclose(losses, audits.example_losses(task, variables, data), rtol=1e-5)
    assert losses.mean() == pytest.approx(fs.evaluate(task, variables, data).examples["loss"], rel=1e-5)


def test_the_picture_of_attacks_shows_their_low_end():
    """Both axes logarithmic, a step for each curve, and the legend says what is at 0.1 %."""
    curve = audits.roc(np.linspace(0, 2, 5000), np.linspace(-1, 1, 5000))
    figure = plots.membership_roc({"loss": curve, "LiRA": curve})
    (axes,) = figure.axes
    assert (axes.get_xscale(), axes.get_yscale(), axes.get_xlim()) == ("log", "log", (1e-4, 1.0))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        *(f"{name}: AUC {curve.auc:.3f}, 50.1 % at 0.1 %" for name in ("loss", "LiRA")),
        "guessing",
    ]
    ticks = [text.get_text() for text in axes.get_xticklabels()]
    assert "0.1 %" in ticks and "100 %" in ticks
    np.testing.assert_array_equal(axes.lines[2].get_ydata(), curve.true_rates[curve.false_rates > 0])
    assert plots.membership_roc(curve).legends[0].get_texts()[0].get_text().startswith("attack: AUC")
    with pytest.raises(ValueError, match="names no curve"):
        plots.membership_roc({})
    with pytest.raises(ValueError, match="lowest is 2"):
        plots.membership_roc(curve, lowest=2)


# --- gradient inversion --------------------------------------------------------------------------------------


def test_a_linear_layer_gives_its_input_away():
    """Exactly, whatever stands behind it, at any scale of the gradient."""
    task = fs.tasks.classification(
        fs.models.mlp(classes=5, hidden=(20,)), sample_input=jnp.zeros((1, 6, 6, 1))
    )
    variables = task.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 6, 6, 1))
    layer = audits.loss_gradient(task, variables, {"x": image, "y": jnp.array([3])})["Dense_0"]
    for scale in (1.0, 1e-3):
        found = audits.invert_linear(scale * layer["kernel"], scale * layer["bias"])
        assert audits.psnr(found.reshape(image.shape), image) > 80


def test_a_search_finds_an_image_and_noise_hides_it():
    """The cosine is all that counts, so clipping hides nothing."""
    task = fs.tasks.classification(
        fs.models.mlp(classes=4, hidden=(100,)), sample_input=jnp.zeros((1, 5, 5, 1))
    )
    variables = task.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 5, 5, 1))
    label = jnp.array([2])

    def gradient(x):
        return audits.loss_gradient(task, variables, {"x": x, "y": label})

    seen = gradient(image)
    leaves, structure = jax.tree.flatten(seen)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = jax.tree.unflatten(
        structure, [x + jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )

    def attacked(observed):
        return audits.invert_gradients(
            gradient, observed, image.shape, steps=600, total_variation=0.0, restarts=2
        )

    found = attacked(seen)
    assert audits.psnr(found.images, image) > 30
    assert found.objective == found.objectives.min() < 1e-3
    clipped = attacked(jax.tree.map(lambda x: 1e-3 * x, seen))
    assert audits.psnr(clipped.images, image) > 30
    assert audits.psnr(attacked(noisy).images, image) < 15
    assert found.images.min() >= 0 and found.images.max() <= 1


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ({"w": jnp.zeros(3)}, "observed has the norm 0.0"),
        ({"w": jnp.full(3, jnp.nan)}, "observed has the norm nan"),
        ({"w": jnp.ones(4)}, "observed is .* expected what gradient gives"),
    ],
)
def test_gradients_that_say_nothing_are_refused(observed, message):
    with pytest.raises(ValueError, match=message):
        audits.invert_gradients(lambda x: {"w": jnp.sum(x) * jnp.ones(3)}, observed, (1, 2))


def test_a_mixture_is_read_off_a_batch():
    """Of two examples with the same error signal, their mean."""
    error = np.array([0.2, -0.1])
    x = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    weight = np.mean([np.outer(row, error) for row in x], axis=0)
    np.testing.assert_allclose(audits.invert_linear(weight, error), [0.5, 0.5, 0.5])
