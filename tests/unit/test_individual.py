"""Privacy of single clients: norms of their own, and budgets that end by themselves."""

from __future__ import annotations

import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim import privacy

CLIENTS = 12
MEAN = agg.mean(over="expected_cohort")


def sim(*layers, cohort=fs.cohorts.all_clients(), engine=None):  # noqa: B008
    data = fs.data.load("digits", clients=CLIENTS, alpha=1.0, seed=0).train
    task = fs.tasks.classification(fs.models.linear(classes=10))
    algorithm = fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=agg.chain(*layers))
    return fs.Simulation(algorithm, data, cohort=cohort, engine=engine)


def test_each_client_is_clipped_to_its_own_norm():
    updates = np.random.default_rng(0).normal(size=(5, 7)).astype(np.float32)
    norms = [0.1, 0.2, 5.0, 0.1, 100.0]
    chain = agg.chain(agg.clip_by_client_norm(norms), MEAN)
    got, _, _ = agg.run(chain, updates, key=jax.random.key(0))
    lengths = np.linalg.norm(updates, axis=1)
    expected = (updates * np.minimum(1, np.array(norms) / lengths)[:, None]).mean(axis=0)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-7)


def test_who_says_less_pays_less():
    """A quarter of the norm is four times the noise, for that client; the run's price is that of the worst."""
    norms = np.where(np.arange(CLIENTS) % 3 == 0, 0.25, 1.0)
    private = sim(agg.clip_by_client_norm(norms), MEAN, agg.gaussian_noise(2.0))
    got = private.client_epsilons(rounds=5, delta=1e-4)
    dear, cheap = (
        privacy.epsilon(z, fs.cohorts.all_clients(), population=CLIENTS, rounds=5, delta=1e-4)
        for z in (2.0, 8.0)
    )
    np.testing.assert_allclose(got, np.where(norms == 1.0, dear, cheap))
    assert private.privacy(rounds=5, delta=1e-4).epsilon == got.max()
    alike = sim(agg.clip_by_global_norm(1.0), MEAN, agg.gaussian_noise(2.0)).client_epsilons(
        rounds=5, delta=1e-4
    )
    np.testing.assert_allclose(alike, dear)


def test_norms_that_do_not_fit():
    with pytest.raises(ValueError, match=r"clip_norms has shape \[2\], expected one finite number above 0"):
        agg.clip_by_client_norm([1.0, 0.0])
    with pytest.raises(ValueError, match="3 norms, but the population has 12 clients"):
        sim(agg.clip_by_client_norm([1.0] * 3), MEAN, agg.gaussian_noise(2.0))
    both = sim(
        agg.clip_by_client_norm([1.0] * CLIENTS),
        agg.adaptive_clip(count_noise_std=2.0),
        MEAN,
        agg.gaussian_noise(1.0),
    )
    with pytest.raises(ValueError, match="gaussian_noise alone"):
        both.client_epsilons(rounds=1, delta=1e-4)


# --- filters ------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.floats(0, 3), min_size=1, max_size=8),
    z=st.floats(0.5, 4),
    budget=st.floats(0.01, 2),
)
def test_no_client_pays_more_than_its_budget(lengths, z, budget):
    """Against the loop of the paper: a message whose cost does not fit is silence, and costs nothing."""
    chain = agg.chain(agg.clip_by_global_norm(1.0), MEAN, agg.filtered_gaussian_noise(z, budget))
    state, spent = None, 0.0
    for round_, length in enumerate(lengths):
        update = np.array([[length, 0.0]], np.float32)
        _, state, metrics = agg.run(chain, update, key=jax.random.key(0), round_=round_, state=state)
        cost = (min(length, 1.0) / z) ** 2 / 2
        if abs(spent + cost - budget) < 1e-5 * budget:
            return  # too close to call in float32
        silent = spent + cost > budget
        spent += 0.0 if silent else cost
        assert float(metrics["filtered_gaussian_noise/silent"].total) == silent
        got = float(state[1][-1].spent[0])
        assert got == pytest.approx(spent, rel=1e-5, abs=1e-7) and got <= budget * (1 + 1e-6)


def test_silence_is_zero_and_the_noise_stays():
    chain = agg.chain(agg.clip_by_global_norm(1.0), MEAN, agg.filtered_gaussian_noise(1.0, 0.6))
    plain = agg.chain(agg.clip_by_global_norm(1.0), MEAN, agg.gaussian_noise(1.0))
    update, nothing = np.ones((1, 4), np.float32), np.zeros((1, 4), np.float32)
    key = jax.random.key(0)
    first, state, _ = agg.run(chain, update, key=key, round_=0)
    second, _, _ = agg.run(chain, update, key=key, round_=1, state=state)
    np.testing.assert_allclose(first, agg.run(plain, update, key=key, round_=0)[0], rtol=1e-6)
    np.testing.assert_allclose(second, agg.run(plain, nothing, key=key, round_=1)[0], rtol=1e-6)


def test_the_price_is_the_budget_however_long_the_run():
    rho = privacy.zcdp_budget(epsilon=4.0, delta=1e-5)
    private = sim(
        agg.clip_by_global_norm(1.0),
        MEAN,
        agg.filtered_gaussian_noise(3.0, rho),
        cohort=fs.cohorts.poisson(0.5),
    )
    for rounds in (1, 1000):
        got = private.privacy(rounds, delta=1e-5)
        assert got.epsilon == pytest.approx(4.0, rel=1e-6) and got.epsilon <= 4.0
        assert (got.neighbour, got.accountant, got.amplified) == ("replace_special", "rdp", False)


def test_budgets_of_two_runs_and_of_two_layers_add_up():
    """Clients remember what they spent on one layer of one run."""
    rho, cohort = privacy.zcdp_budget(epsilon=4.0, delta=1e-5) / 2, fs.cohorts.all_clients()
    noise = agg.filtered_gaussian_noise(3.0, rho)
    once, twice = (agg.chain(agg.clip_by_global_norm(1.0), MEAN, *[noise] * count) for count in (1, 2))
    run = privacy.ledger_of(once, cohort, CLIENTS, 5)
    for ledger in (run + run, privacy.ledger_of(twice, cohort, CLIENTS, 5)):
        assert privacy.price(ledger, 1e-5).epsilon == pytest.approx(4.0, rel=1e-6)


def test_engines_agree_on_who_is_silent():
    """Three rounds: everybody pays for the first, and nobody for all of them."""
    ends = []
    for engine in (fs.engines.sequential(), fs.engines.lanes(3)):
        private = sim(
            agg.clip_by_global_norm(0.1), MEAN, agg.filtered_gaussian_noise(1.0, 1.2), engine=engine
        )
        state, history = private.run(private.init(seed=0), rounds=3)
        ends.append(private.algorithm.params(state.server).params)
        np.testing.assert_array_equal(history["filtered_gaussian_noise/silent"], [0, 0, 1])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), *ends)


def test_wrong_budgets():
    with pytest.raises(ValueError, match="client_budget is 0"):
        agg.filtered_gaussian_noise(1.0, 0.0)
    with pytest.raises(ValueError, match="noise_multiplier is -1"):
        agg.filtered_gaussian_noise(-1.0, 1.0)
    with pytest.raises(TypeError, match="noise_multiplier is the function"):
        agg.filtered_gaussian_noise(test_wrong_budgets, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="needs a bound"):
        agg.chain(MEAN, agg.filtered_gaussian_noise(1.0, 1.0))
    with pytest.raises(ValueError, match="delta is 1"):
        privacy.zcdp_budget(1.0, 1.0)
