"""The price of a run for one example: what the ledger reads off rules, batches and cohorts, and what has no price."""

from __future__ import annotations

import dp_accounting as dp
import numpy as np
import optax
import pytest
from unit import small

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.privacy import Ledger

DELTA = 1e-5
PRIVATE = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(2.0))


def algorithm(z=1.0, **options) -> fs.Algorithm:
    return fs.algorithms.fedavg_dp_sgd(
        small.task(), optax.sgd(0.1), clip_norm=1.0, noise_multiplier=z, expected_batch_size=4, **options
    )


def simulation(local, *, z=1.0, cohort=None, sizes=small.SIZES, **options) -> fs.Simulation:
    return small.simulation(algorithm(z, **options), small.make_data(sizes), cohort, local=local)


def poisson(rate=0.2, steps=3, size=9) -> fs.LocalWork:
    return fs.LocalWork(poisson_rate=rate, max_steps=steps, batch_size=size)


def by_hand(event, count, accountant="pld", neighbour="REPLACE_SPECIAL", delta=DELTA) -> float:
    kind = dp.NeighboringRelation[neighbour]
    book = (
        dp.rdp.RdpAccountant(neighboring_relation=kind) if accountant == "rdp" else dp.pld.PLDAccountant(kind)
    )
    book.compose(event, count)
    return book.get_epsilon(delta)


# --- golden numbers ---


@pytest.mark.parametrize(("accountant", "epsilon"), [("rdp", 2.596556), ("pld", 2.381686)])
def test_the_setting_of_the_tutorials(accountant, epsilon):
    """MNIST, batches of 256 of 60,000, noise 1.1, 60 epochs: literals of dp-accounting, which TF Privacy and Opacus use."""
    local = fs.LocalWork(poisson_rate=256 / 60_000, max_steps=14_062, batch_size=60_000)
    sizes = (60_000,)
    data = fs.ClientData(
        {"x": np.zeros((60_000, 1), np.float32), "y": np.zeros(60_000, np.int32)}, [0, *sizes], ["hospital"]
    )
    sim = small.simulation(algorithm(1.1), data, fs.cohorts.all_clients(), local=local)
    got = sim.privacy(1, DELTA, unit="example", accountant=accountant)
    assert got.epsilon == pytest.approx(epsilon, rel=1e-4)
    event = dp.PoissonSampledDpEvent(256 / 60_000, dp.GaussianDpEvent(1.1))
    assert got.epsilon == pytest.approx(by_hand(event, 14_062, accountant, "ADD_OR_REMOVE_ONE"), rel=1e-9)


@pytest.mark.parametrize("rounds", [1, 7])
def test_poisson_steps_compose_over_rounds(rounds):
    sim = simulation(poisson(0.2, steps=3))
    got = sim.privacy(rounds, DELTA, unit="example")
    event = dp.PoissonSampledDpEvent(0.2, dp.GaussianDpEvent(1.0))
    assert got.epsilon == pytest.approx(by_hand(event, 3 * rounds), rel=1e-9)
    assert (got.unit, got.neighbour, got.sampling) == ("example", "replace_special", ("poisson",))
    assert got.amplified
    assert got.rounds == rounds


def test_a_client_larger_than_a_batch_has_a_truncated_law():
    """And the worst client's price is the run's."""
    sim = simulation(poisson(0.5, steps=2, size=4), z=8.0)
    truncated = {
        size: by_hand(dp.TruncatedSubsampledGaussianDpEvent(size, 0.5, 4, 8.0), 2) for size in (5, 9)
    }
    whole = by_hand(dp.PoissonSampledDpEvent(0.5, dp.GaussianDpEvent(8.0)), 2)
    prices = sim.example_epsilons(1, DELTA)
    np.testing.assert_allclose(prices, [0.0, whole, truncated[5], truncated[9]], rtol=1e-9)
    assert sim.privacy(1, DELTA, unit="example").epsilon == prices.max() > whole


@pytest.mark.parametrize("shuffle", [True, False])
def test_epochs_amplify_nothing(shuffle):
    """Each example comes into one batch of a pass: as many releases as passes, whatever the client's size."""
    sim = simulation(fs.LocalWork(epochs=2, batch_size=4, shuffle=shuffle))
    got = sim.privacy(3, DELTA, unit="example")
    assert got.epsilon == pytest.approx(by_hand(dp.GaussianDpEvent(1.0), 6), rel=1e-9)
    assert not got.amplified
    assert "batches by passes, no amplification by sampling" in str(got)
    assert "How many examples a client has is public" in str(got)


# --- what the ledger reads ---


def releases(local, rounds=1, first=0, cohort=None, sizes=(9,)):
    sim = simulation(local, cohort=cohort, sizes=sizes)
    ledger = sim.ledger(rounds, first, unit="example", client=0)
    return sum(entry.releases for entry in ledger.entries)


@pytest.mark.parametrize(
    ("local", "rounds", "first", "expected"),
    [
        (fs.LocalWork(epochs=1, batch_size=4), 1, 0, 1),
        (fs.LocalWork(epochs=3, batch_size=4), 2, 0, 6),
        # Seven steps of three a pass: parts of three passes.
        (fs.LocalWork(epochs=None, max_steps=7, batch_size=4), 1, 0, 3),
        (fs.LocalWork(epochs=2, max_steps=2, batch_size=4), 2, 0, 2),
        # Four rounds of two steps are three passes of three, with one to spare.
        (fs.LocalWork(epochs=None, max_steps=2, batch_size=4, continue_epochs=True), 4, 0, 3),
        (fs.LocalWork(epochs=None, max_steps=2, batch_size=4, continue_epochs=True), 4, 1, 4),
        (fs.LocalWork(epochs=1, batch_size=2, batches_per_step=2), 1, 0, 1),
        (fs.LocalWork(epochs=1, batch_size=10, drop_remainder=True), 5, 0, 0),
        (fs.LocalWork(poisson_rate=0.1, max_steps=6, batch_size=9), 2, 3, 12),
    ],
)
def test_releases_of_one_example(local, rounds, first, expected):
    assert releases(local, rounds, first) == expected


@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize("rounds", [1, 3, 4])
def test_no_example_comes_into_more_batches_than_the_ledger_says(steps, rounds):
    """Counted in the batches that the program makes, of passes that go on."""
    local = fs.LocalWork(epochs=None, max_steps=steps, batch_size=4, continue_epochs=True)
    seen = np.zeros(9, int)
    of_pass = 3
    for first in range(4):
        seen[:] = 0
        for step in range(first * steps, (first + rounds) * steps):
            seen[step % of_pass * 4 : step % of_pass * 4 + 4] += 1
        assert seen.max() <= releases(local, rounds, first)
        if not first:
            assert seen.max() == releases(local, rounds, 0)


def test_a_sampler_that_bounds_participations_bounds_the_price():
    """Passes over ten clients in cohorts of five: everybody comes once in two rounds."""
    sizes = (4,) * 10
    local = fs.LocalWork(epochs=1, batch_size=4)
    assert releases(local, 4, 0, fs.cohorts.shuffled(5), sizes) == 2
    assert releases(local, 4, 0, fs.cohorts.uniform(5), sizes) == 4
    assert releases(local, 4, 0, fs.cohorts.poisson(0.1), sizes) == 4


def test_clients_have_ledgers_of_their_own():
    sim = simulation(poisson(0.5, steps=2, size=4))
    by_id = sim.ledger(5, unit="example", client="client-3")
    assert by_id == sim.ledger(5, unit="example", client=3)
    (entry,) = by_id.entries
    assert (entry.unit, entry.releases, entry.sampling.population, entry.sampling.size) == (
        "example",
        10,
        9,
        4,
    )
    assert sim.ledger(5, unit="example", client=0) == Ledger(())
    assert Ledger.from_json(by_id.as_json()) == by_id


def test_both_levels_have_a_price_of_their_own():
    """Central noise on clipped updates, and DP-SGD below it."""
    sim = simulation(poisson(), aggregate=PRIVATE)
    client, example = sim.privacy(2, DELTA), sim.privacy(2, DELTA, unit="example")
    assert client.epsilon == pytest.approx(
        by_hand(dp.GaussianDpEvent(2.0), 2, neighbour="ADD_OR_REMOVE_ONE"), rel=1e-9
    )
    assert example.epsilon == pytest.approx(
        by_hand(dp.PoissonSampledDpEvent(0.2, dp.GaussianDpEvent(1.0)), 6), rel=1e-9
    )
    with pytest.raises(ValueError, match="price them one by one"):
        fs.privacy.price(sim.ledger(2) + sim.ledger(2, unit="example", client=1), DELTA)


def test_groups_pay_for_their_own_noise():
    """Clients of two rules: the price of a client is that of its rule."""
    rules = {
        name: fs.rules.dp_sgd(
            small.task(), optax.sgd(0.1), clip_norm=1.0, noise_multiplier=z, expected_batch_size=4
        )
        for name, z in (("careful", 4.0), ("open", 0.8))
    }
    base = algorithm()
    grouped = base._replace(stages=(base.stages[0]._replace(client=rules),))
    names = ["careful", "open", "careful", "open"]
    sim = small.simulation(grouped, local=fs.LocalWork(epochs=1, batch_size=4), groups=names)
    prices = sim.example_epsilons(1, DELTA)
    expected = [0.0, *(by_hand(dp.GaussianDpEvent(z), 1) for z in (0.8, 4.0, 0.8))]
    np.testing.assert_allclose(prices, expected, rtol=1e-9)


# --- what has no price ---


def test_a_rule_without_noise():
    sim = small.simulation(small.fedavg(PRIVATE))
    with pytest.raises(ValueError, match=r"adds no noise to its steps.*rules\.dp_sgd.*unit='client'"):
        sim.privacy(1, DELTA, unit="example")


def test_a_chain_without_noise_says_that_the_examples_have_some():
    with pytest.raises(ValueError, match=r"adds no noise to what it releases.*unit='example'"):
        simulation(poisson()).privacy(1, DELTA)


def test_rows_of_ones_own():
    local = fs.LocalWork(max_steps=1, batch_size=4, rows=lambda generator, size: np.zeros((1, 4), int))
    with pytest.raises(ValueError, match="a law that is not known"):
        simulation(local).privacy(1, DELTA, unit="example")


def test_cohorts_with_replacement():
    with pytest.raises(ValueError, match="with replacement"):
        simulation(poisson(), cohort=fs.cohorts.uniform(2, replace=True)).privacy(1, DELTA, unit="example")


def test_numbers_of_examples_are_public():
    with pytest.raises(ValueError, match="numbers of examples are public"):
        simulation(poisson()).privacy(1, DELTA, unit="example", neighbour="add_or_remove_one")


def test_truncated_batches_are_known_to_pld_alone():
    with pytest.raises(ValueError, match="'truncated_poisson' sampling is known to 'pld' alone"):
        simulation(poisson(size=4)).privacy(1, DELTA, unit="example", accountant="rdp")


def test_replacing_an_example_costs_more():
    """Twice the bound: as half the noise would, where nothing is sampled."""
    sim = simulation(fs.LocalWork(epochs=1, batch_size=4), z=2.0)
    for accountant in ("rdp", "pld"):
        got = sim.privacy(1, DELTA, unit="example", neighbour="replace_one", accountant=accountant)
        assert got.epsilon == pytest.approx(by_hand(dp.GaussianDpEvent(1.0), 1, accountant), rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"unit": "example"}, "name one with client="),
        ({"client": 0}, "the same for all"),
        ({"unit": "person"}, "unit is 'person'"),
    ],
)
def test_a_ledger_is_about_a_client_or_an_example(arguments, says):
    with pytest.raises(ValueError, match=says):
        simulation(poisson(), aggregate=PRIVATE).ledger(1, **arguments)


def test_nobody_takes_a_step():
    local = fs.LocalWork(epochs=1, batch_size=10, drop_remainder=True)
    with pytest.raises(ValueError, match="no client takes a step"):
        simulation(local).privacy(1, DELTA, unit="example")
