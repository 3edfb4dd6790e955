"""Attacks on membership: against known Gaussians, and on an overfitted model."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import fedjax_sim as fs
from fedjax_sim import plots
from fedjax_sim.privacy import audits


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
