"""Budgets: how many rounds they pay for, and a run that ends with them."""

from __future__ import annotations

import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit import small

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim.privacy import Budget, BudgetSpentError, Guarantee, Ledger
from fedjax_sim.privacy._budget import affordable

DELTA = 1e-3


def private(z=3.0) -> fs.Transform:
    return agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(z))


def simulation(z=3.0, **options) -> fs.Simulation:
    return small.simulation(small.fedavg(private(z)), rounds_per_chunk=2, **options)


def paying_for(rounds: int, sim: fs.Simulation, **options) -> Budget:
    """A budget in the middle between the prices of so many rounds and one more."""
    options = {"accountant": "rdp"} | options  # the faster one
    low, high = (sim.privacy(n, DELTA, **options).epsilon for n in (rounds, rounds + 1))
    return Budget((low + high) / 2, DELTA, **options)


# --- how many rounds ---


@given(limit=st.integers(0, 40), rounds=st.integers(1, 40))
def test_the_most_rounds_are_found_with_few_prices(limit, rounds):
    asked = []

    def price_of(count):
        asked.append(count)
        return Guarantee(float(count), DELTA, "add_or_remove_one", "pld", count, (), True)

    assert affordable(price_of, Budget(limit + 0.5, DELTA), rounds) == min(limit, rounds)
    assert len(asked) <= (1 if rounds <= limit else 2 * rounds.bit_length() + 1)
    assert all(1 <= count <= rounds for count in asked)


@given(limit=st.integers(0, 60), off=st.integers(-3, 3), rounds=st.integers(1, 60))
def test_prices_that_are_nearly_right_save_exact_ones_and_change_nothing(limit, off, rounds):
    asked = []

    def price_of(count, limit=limit):
        return Guarantee(float(count - limit), DELTA, "add_or_remove_one", "pld", count, (), True)

    def exact(count):
        asked.append(count)
        return price_of(count)

    found = affordable(exact, Budget(0.5, DELTA), rounds, lambda count: price_of(count, limit + off))
    assert found == min(limit, rounds)
    assert len(asked) <= 2 + 2 * abs(off)


def test_a_budget_builds_the_loss_of_a_release_once_for_each_discretisation(monkeypatch):
    """Building takes seconds; a count of rounds is looked for among thousands."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    from fedjax_sim.privacy import _losses

    built, real = [], pld.from_truncated_subsampled_gaussian_mechanism

    def build(**options):
        built.append(options["value_discretization_interval"])
        return real(**options)

    monkeypatch.setattr(pld, "from_truncated_subsampled_gaussian_mechanism", build)
    _losses._single.cache_clear()
    sim = simulation(cohort=fs.cohorts.poisson(0.25, cap=3))
    assert 1 < sim.affordable_rounds(Budget(4.0, DELTA), 5000) < 5000
    assert sorted(built) == [1e-4, 1e-3]
    _losses._single.cache_clear()


def test_a_loss_that_is_kept_is_the_one_that_dp_accounting_builds():
    import dp_accounting as dp

    from fedjax_sim.privacy._losses import pld_accountant

    gaussian = dp.GaussianDpEvent(1.5)
    events = [
        (dp.PoissonSampledDpEvent(0.1, gaussian), 7),
        (gaussian, 2),
        (dp.TruncatedSubsampledGaussianDpEvent(40, 0.1, 6, 1.2), 3),
        (dp.PoissonSampledDpEvent(0.1, gaussian), 1),
    ]
    relation = dp.NeighboringRelation.REPLACE_SPECIAL
    books = [
        kind(relation, value_discretization_interval=1e-3)
        for kind in (pld_accountant(), dp.pld.PLDAccountant)
    ]
    ours, theirs = (
        [book.compose(event, count) for event, count in events][-1].get_epsilon(1e-5) for book in books
    )
    assert ours == pytest.approx(theirs, rel=1e-6)


@pytest.mark.parametrize("accountant", ["rdp", "pld"])
@pytest.mark.parametrize("limit", [1, 2, 5])
def test_the_price_of_one_more_is_above_the_budget(limit, accountant):
    sim = simulation()
    budget = paying_for(limit, sim, accountant=accountant)
    got = sim.affordable_rounds(budget, 12)
    assert got == limit
    assert sim.privacy(got, DELTA, accountant=accountant).epsilon <= budget.epsilon
    assert sim.privacy(got + 1, DELTA, accountant=accountant).epsilon > budget.epsilon


def test_a_schedule_of_noise_is_paid_as_it_is():
    """Cheap rounds first: two of them, and then one dear one is too much."""
    schedule = lambda round_: 9.0 - 8.5 * (round_ >= 2)  # noqa: E731
    sim = small.simulation(small.fedavg(private(schedule)))
    budget = Budget(2.0, DELTA, accountant="rdp")
    assert sim.affordable_rounds(budget, 10) == 2


# --- runs ---


def test_a_run_ends_with_its_budget():
    sim = simulation()
    state, history = sim.run(sim.init(0), rounds=10, budget=paying_for(3, sim))
    assert (int(state.round), history.rounds) == (3, 3)
    plain, _ = sim.run(sim.init(0), rounds=3)
    assert np.array_equal(*(small.params(s)["Dense_0"]["kernel"] for s in (state, plain)))


def test_a_budget_that_is_large_enough_changes_nothing():
    sim = simulation()
    state, history = sim.run(sim.init(0), rounds=2, budget=Budget(1e6, DELTA, "rdp"))
    assert (int(state.round), history.rounds) == (2, 2)


def test_what_was_spent_before_is_spent():
    sim = simulation()
    state, _ = sim.run(sim.init(0), rounds=2)
    state, history = sim.run(state, rounds=10, budget=paying_for(3, sim))
    assert (int(state.round), history.rounds) == (3, 1)
    with pytest.raises(BudgetSpentError, match="pays for 3 rounds, and 3 are done: raise it") as caught:
        sim.run(state, rounds=1, budget=paying_for(3, sim))
    assert caught.value.paid == 3


def test_a_delta_that_cannot_be_told_from_0_is_remarked_on():
    assert "is below 1e-14, what the accountant 'pld' can tell from 0" in Ledger(()).remark(1e-15)
    assert Ledger(()).remark(1e-14) == ""


def test_a_budget_below_one_round():
    sim = simulation(z=0.5)
    with pytest.raises(BudgetSpentError, match=r"does not pay for the first round.*calibrate"):
        sim.run(sim.init(0), rounds=4, budget=Budget(0.1, DELTA, "rdp"))


def test_a_run_that_goes_on_from_checkpoints_ends_where_the_budget_does(tmp_path):
    sim, store = simulation(), fs.Checkpoints(tmp_path, every=2)
    budget = paying_for(5, sim)
    sim.run(sim.init(0), rounds=3, checkpoints=store, budget=budget)
    state, history = sim.run(sim.init(0), rounds=20, checkpoints=store, budget=budget)
    assert (int(state.round), history.rounds) == (5, 5)
    # All of it ran already: nothing is left to do, and nothing is wrong.
    again, _ = sim.run(sim.init(0), rounds=20, checkpoints=store, budget=budget)
    assert int(again.round) == 5


def test_a_budget_for_examples():
    algorithm = fs.algorithms.fedavg_dp_sgd(
        small.task(), optax.sgd(0.1), clip_norm=1.0, noise_multiplier=3.0, expected_batch_size=4
    )
    sim = small.simulation(algorithm, local=fs.LocalWork(epochs=1, batch_size=4))
    budget = paying_for(2, sim, unit="example")
    state, _ = sim.run(sim.init(0), rounds=9, budget=budget)
    assert int(state.round) == 2


def test_what_has_no_price_takes_no_budget():
    sim = small.simulation()
    with pytest.raises(ValueError, match="adds no noise"):
        sim.run(sim.init(0), rounds=1, budget=Budget(1.0, DELTA))
    with pytest.raises(TypeError, match=r"budget is float, expected a Budget: use fs\.privacy\.Budget"):
        sim.run(sim.init(0), rounds=1, budget=4.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [
        {"epsilon": 0.0},
        {"epsilon": float("inf")},
        {"delta": 1.0},
        {"accountant": "moments"},
        {"neighbour": "sister"},
        {"unit": "person"},
    ],
)
def test_a_budget_is_checked(options):
    (name,) = options
    with pytest.raises(ValueError, match=name):
        Budget(**({"epsilon": 1.0, "delta": 1e-5} | options))


def test_a_schedule_without_noise_is_refused_before_the_round_it_is_for():
    """Also without a budget, which would ask for its price: round 3 would release the sum as it is."""
    falling = simulation(lambda round_: 3.0 - round_)
    state, history = falling.run(falling.init(seed=0), rounds=3)
    assert history.rounds == 3
    message = (
        "gaussian_noise: the schedule's noise multiplier of round 3 is 0, expected a finite number above 0"
    )
    with pytest.raises(ValueError, match=message):
        falling.run(state, rounds=2)
    with pytest.raises(ValueError, match=message):
        falling.sweep(seeds=[0, 1], rounds=4)
    with pytest.raises(ValueError, match="of round 1 is nan"):
        simulation(lambda round_: 0.0 / (1 - round_) + 1.0).sweep(seeds=[0], rounds=2)
