"""The price of a run: golden numbers, what the ledger reads, and what has no price."""

from __future__ import annotations

import functools
import json
import math

import dp_accounting
import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim import cohorts, privacy
from fedjax_sim.privacy import Entry, Ledger, Sampling, _accounting

TOLERANCE = 1e-4
POISSON = cohorts.poisson(0.01)
GOLDEN = {
    "poisson_add_remove_rdp": (POISSON, 1.0, {"accountant": "rdp"}, 2.101367),
    "poisson_add_remove_pld": (POISSON, 1.0, {"accountant": "pld"}, 1.828244),
    "poisson_replace_one_pld": (POISSON, 1.0, {"neighbour": "replace_one"}, 2.843446),
    "without_replacement_replace_one_rdp_std_2C": (
        cohorts.uniform(600),
        2.0,
        {"population": 60_000},
        3.576111,
    ),
    "without_replacement_replace_one_rdp_std_C": (
        cohorts.uniform(600),
        1.0,
        {"population": 60_000},
        20.98707,
    ),
    "truncated_poisson_pld": (cohorts.poisson(0.01, cap=700), 1.0, {"population": 60_000}, 1.879227),
    "emnist_3400_clients_100_per_round_rdp": (
        cohorts.poisson(100 / 3400),
        1.0,
        {"accountant": "rdp", "rounds": 1500, "delta": 0.00013042},
        7.070588,
    ),
    "plain_gaussian_exact": (cohorts.all_clients(), 1.0, {"rounds": 1, "population": 10}, 4.377178),
}
"""Cases of ``privacy.json``: sampler, noise multiplier, what else differs from 1000 rounds at delta 1e-5, epsilon."""
CALIBRATION = {
    "eps2_population_1e6_pld": (cohorts.poisson(0.001), {"accountant": "pld"}, 0.616145),
    "eps2_population_1e6_rdp": (cohorts.poisson(0.001), {"accountant": "rdp"}, 0.713777),
    "eps2_without_replacement_replace_one_rdp": (cohorts.uniform(1000), {"population": 10**6}, 1.453917),
}
RELEASES = [(0.1, 1e-5, 30.75), (1.0, 1e-5, 3.731), (2.0, 1e-6, 2.231), (8.0, 1e-5, 0.6002)]


def chain(z=1.0, clip=None):
    clip = agg.clip_by_global_norm(1.0) if clip is None else clip
    return agg.chain(clip, agg.mean(over="expected_cohort"), agg.gaussian_noise(z))


@pytest.mark.parametrize("name", GOLDEN)
def test_epsilon_is_the_golden_one(name):
    cohort, z, options, expected = GOLDEN[name]
    got = privacy.epsilon(z, cohort, **{"rounds": 1000, "delta": 1e-5, **options})
    assert got == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize("name", CALIBRATION)
def test_calibration_is_the_golden_one(name):
    cohort, options, expected = CALIBRATION[name]
    run = {"rounds": 1500, "delta": 1e-6, **options}
    z = privacy.calibrate(2.0, cohort, **run)
    assert z == pytest.approx(expected, rel=TOLERANCE)
    assert privacy.epsilon(z, cohort, **run) <= 2.0
    assert privacy.epsilon(z * (1 - 1e-4), cohort, **run) > 2.0


FALLING = {
    "a line": lambda x: -1.3 * (x - 0.7),
    "a curve": lambda x: math.exp(-x) - 0.2,
    "none at either end": lambda x: min(max(-2 * (x - 3), -1.0), 1.0),
    "a step": lambda x: 0.5 if x < 1.25 else -0.5,
    "a high step": lambda x: 27.0 if x < 1.2345 else -0.001,
    "a deep step": lambda x: 1e-4 if x < 1.2345 else -27.0,
    "a floor close below": lambda x: math.log(math.exp(-x) + 0.999),
    "far away": lambda x: -0.1 * (x - 13),
    "far below": lambda x: -4 * (x + 30),
}


@pytest.mark.parametrize(("guess", "width"), [(-3.0, 1.0), (0.0, 1.0), (2.5, 1e-3)])
@pytest.mark.parametrize("name", FALLING)
def test_a_root_is_never_short_of_it_and_found_in_few_looks(name, guess, width):
    asked, tolerance = [], 1e-5
    value = functools.cache(lambda x: asked.append(x) or FALLING[name](x))
    bracket = _accounting._bracket(value, guess, width)
    found = _accounting._root(value, *bracket, tolerance)
    assert FALLING[name](found) <= 0 < FALLING[name](found - tolerance)
    assert len(asked) <= 50


def test_what_no_noise_reaches_is_said_at_once():
    asked = []
    assert _accounting._bracket(lambda x: asked.append(x) or 1e-3, 0.0, 1.0) is None
    assert max(asked) == math.log(1e6) and len(asked) < 10


def test_coarse_losses_that_say_far_too_much_are_a_guess():
    """Of many rounds with little epsilon, the coarse ones say that no noise is enough."""
    run = {"rounds": 100_000, "delta": 1e-6}
    z = privacy.calibrate(0.05, POISSON, **run)
    assert z == pytest.approx(382.9, rel=1e-3)
    assert privacy.epsilon(z, POISSON, **run) <= 0.05 < privacy.epsilon(z * (1 - 1e-4), POISSON, **run)


def test_a_multiplier_beside_what_a_chain_costs_at_any_noise():
    """The count of an adaptive clip has a price of its own, 0.03269: what is left for the sum is tiny, or nothing."""
    chain = lambda z: agg.chain(  # noqa: E731
        agg.adaptive_clip(1.0, count_noise_std=5.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(z)
    )
    run = {"rounds": 100, "delta": 1e-5, "accountant": "rdp"}
    cost = lambda z: privacy.epsilon(chain(z), POISSON, **run)  # noqa: E731
    floor = cost(1e6)
    z = privacy.calibrate(1.001 * floor, POISSON, **run, source=chain)
    assert cost(z) <= 1.001 * floor < cost(z * (1 - 1e-4))
    with pytest.raises(ValueError, match="which no noise multiplier up to 10"):
        privacy.calibrate(0.999 * floor, POISSON, **run, source=chain)


@pytest.mark.parametrize(("epsilon", "delta", "sigma"), RELEASES)
def test_one_release_costs_what_the_analytic_mechanism_says(epsilon, delta, sigma):
    got = privacy.gaussian_sigma(epsilon, delta)
    # The file has four digits, rounded up in one case: dp-accounting's own value is 2.230476.
    assert got == pytest.approx(sigma, rel=3e-4)
    assert got == pytest.approx(dp_accounting.get_sigma_gaussian(epsilon, delta), rel=1e-9)
    assert privacy.gaussian_delta(got, epsilon) <= delta < privacy.gaussian_delta(got * (1 - 1e-6), epsilon)
    assert privacy.gaussian_sigma(epsilon, delta, sensitivity=3.0) == pytest.approx(3 * got, rel=1e-9)


def test_the_literals_are_those_of_the_file(shared):
    with open(shared / "conformance" / "privacy.json") as file:
        golden = json.load(file)
    assert golden["tolerance"] == TOLERANCE
    cases = {case["name"]: case for case in golden["accounting"]}
    elsewhere = {"tree_aggregation", "banded_matrix_amplified"}
    assert set(cases) == set(GOLDEN) | elsewhere
    for name, (_, _, _, epsilon) in GOLDEN.items():
        assert cases[name]["epsilon"] == epsilon
    calibrated = {
        case["name"]: case.get("z", case.get("noise_std_over_clip")) for case in golden["calibration"]
    }
    assert calibrated == {name: z for name, (_, _, z) in CALIBRATION.items()}
    releases = golden["single_release_gaussian_sensitivity_1"]
    assert [(r["epsilon"], r["delta"], r["analytic_sigma"]) for r in releases] == RELEASES
    for case in golden["secure_aggregation_cost_bits"]:
        bits = privacy.secure_aggregation_bits(case["clients"], case["dimension"])
        assert bits / (16 * case["dimension"]) == pytest.approx(case["expansion"], abs=5e-4)
    split = golden["adaptive_clipping"]
    assert privacy.update_noise_multiplier(split["z"], split["count_noise_std"]) == pytest.approx(
        split["z_delta"], rel=TOLERANCE
    )


# --- what the ledger reads ---------------------------------------------------------------------------------------


def test_an_adaptive_clip_with_its_noise_split_costs_what_the_round_may():
    """Andrew et al. 2021, theorem 1: the update's and the count's noise together are one of multiplier z."""
    split = chain(privacy.update_noise_multiplier(1.0, 5.0), agg.adaptive_clip(count_noise_std=5.0))
    run = {"rounds": 100, "delta": 1e-5, "accountant": "rdp"}
    assert privacy.epsilon(split, POISSON, **run) == pytest.approx(
        privacy.epsilon(1.0, POISSON, **run), rel=1e-6
    )
    assert privacy.epsilon(
        chain(1.0, agg.adaptive_clip(count_noise_std=5.0)), POISSON, **run
    ) > privacy.epsilon(1.0, POISSON, **run)


def test_a_schedule_costs_the_sum_of_its_rounds():
    """Renyi divergences add up: a schedule's are those of its parts."""
    schedule = chain(lambda round_: 1.0 if round_ < 30 else 2.0)
    whole = privacy.ledger_of(schedule, POISSON, None, rounds=100)
    assert [(e.multiplier, e.first, e.rounds) for e in whole.entries] == [(1.0, 0, 30), (2.0, 30, 70)]
    parts = privacy.ledger_of(chain(1.0), POISSON, None, 30) + privacy.ledger_of(
        chain(2.0), POISSON, None, 70, first=30
    )
    prices = [privacy.price(ledger, 1e-5, accountant="rdp").epsilon for ledger in (whole, parts)]
    assert prices[0] == pytest.approx(prices[1], rel=1e-12)
    low, high = (privacy.epsilon(z, POISSON, rounds=100, delta=1e-5, accountant="rdp") for z in (2.0, 1.0))
    assert low < prices[0] < high


def test_two_runs_cost_what_one_of_all_their_rounds_does():
    """Each has a first round and cohorts of its own: the noises of their first rounds are not one release."""
    half = privacy.ledger_of(1.0, POISSON, None, 50)
    both, whole = (privacy.price(x, 1e-5) for x in (half + half, privacy.ledger_of(1.0, POISSON, None, 100)))
    assert both.epsilon == pytest.approx(whole.epsilon, rel=1e-9) and both.rounds == whole.rounds == 100
    assert [entry.run for entry in (half + half + half).entries] == [0, 1, 2]


def test_a_schedule_is_the_noise_that_is_drawn():
    schedule = chain(lambda round_: 0.5 + round_)
    for round_ in (0, 3):
        draw = lambda t, r=round_: agg.run(  # noqa: E731
            t, np.zeros((2, 20_000), np.float32), key=jax.random.key(0), round_=r
        )[0]
        np.testing.assert_allclose(draw(schedule), draw(chain(0.5 + round_)), rtol=1e-6)


def test_shuffled_cohorts_cost_a_client_one_round_in_a_pass():
    """Ten clients in cohorts of four: three rounds a pass, in whatever round one begins."""
    sampling = Sampling.of(cohorts.shuffled(4), 10)
    assert [sampling.participations(0, rounds) for rounds in (1, 3, 4, 6, 7)] == [1, 1, 2, 2, 3]
    assert sampling.participations(2, 2) == 2
    got = privacy.epsilon(3.0, cohorts.shuffled(4), population=10, rounds=6, delta=1e-5)
    all_of_two = privacy.epsilon(3.0, cohorts.all_clients(), population=10, rounds=2, delta=1e-5)
    assert got == pytest.approx(all_of_two, rel=1e-9)


@pytest.mark.parametrize(
    "cohort",
    [
        cohorts.fixed([0, 1]),
        cohorts.weighted(2, [1.0] * 10),
        cohorts.traced(2, np.ones((1, 10), bool)),
        cohorts.diurnal(2),
    ],
    ids=lambda cohort: cohort.sampling,
)
def test_who_may_come_in_every_round_amplifies_nothing(cohort):
    ledger = privacy.ledger_of(4.0, cohort, 10, rounds=16)
    got = privacy.price(ledger, 1e-5)
    assert not got.amplified and got.neighbour == "replace_special"
    # Sixteen releases at four bounds are one at a single bound, exactly.
    exact = privacy.gaussian_delta(1.0, got.epsilon)
    assert exact == pytest.approx(1e-5, rel=1e-2)


@settings(max_examples=20, deadline=None)
@given(z=st.floats(0.8, 8), rate=st.floats(0.001, 0.2), rounds=st.integers(1, 200))
def test_a_price_falls_with_noise_and_rises_with_rounds_and_rate(z, rate, rounds):
    """But for the few orders in which the accountant gives up on a moment."""

    def price(z, rate, rounds):
        return privacy.epsilon(z, cohorts.poisson(rate), rounds=rounds, delta=1e-5, accountant="rdp")

    here = price(z, rate, rounds)
    assert price(1.1 * z, rate, rounds) <= 1.01 * here
    assert 1.01 * price(z, rate, rounds + 10) >= here
    assert 1.01 * price(z, min(1.0, 1.1 * rate), rounds) >= here


def test_a_ledger_is_json():
    ledger = privacy.ledger_of(chain(lambda r: 1.0 + r), cohorts.poisson(0.1, cap=5), 40, rounds=3)
    again = Ledger.from_json(json.loads(json.dumps(ledger.as_json())))
    assert again == ledger
    with pytest.raises(ValueError, match="no ledger"):
        Ledger.from_json([{"law": "gaussian"}])


def test_a_simulation_reads_its_own_chain_and_sampler():
    data = fs.data.load("digits", clients=40, alpha=1.0, seed=0).train
    task = fs.tasks.classification(fs.models.linear(classes=10))

    def sim(aggregate, cohort):
        return fs.Simulation(
            fs.algorithms.fedavg(task, optax.sgd(0.1), aggregate=aggregate), data, cohort=cohort
        )

    private = sim(chain(1.5), cohorts.poisson(0.1, cap=6))
    assert private.ledger(7).entries == (
        Entry("gaussian", 1.5, 0, 7, Sampling("truncated_poisson", 40, 0.1, 6), {}),
    )
    got = private.privacy(rounds=7, delta=1e-3)
    assert (got.neighbour, got.accountant, got.unit, got.rounds) == ("replace_special", "pld", "client", 7)
    assert "truncated_poisson cohorts, amplified" in str(got)
    with pytest.raises(ValueError, match="adds no noise"):
        sim(agg.mean(), cohorts.poisson(0.1)).privacy(rounds=7, delta=1e-3)


def test_a_private_model_does_not_tell_whether_anybody_came():
    """Mime leaves its optimizer alone in an empty round, but not where the sum is noised: the noise moves it as ever."""
    data = fs.data.load("digits", clients=4, alpha=1.0, seed=0).train
    task = fs.tasks.classification(fs.models.linear(classes=10))
    nobody = cohorts.poisson(0.5)._replace(sample=lambda generator, round_, population: np.zeros(0, np.int64))

    def momentum(aggregate):
        algorithm = fs.algorithms.mime(
            task, optax.sgd(0.1, momentum=0.9), aggregate=aggregate, aggregate_gradient=aggregate
        )
        sim = fs.Simulation(algorithm, data, cohort=nobody)
        state, _ = sim.run(sim.init(seed=0), rounds=2)
        return max(float(np.abs(x).max()) for x in jax.tree.leaves(state.server.optimizer))

    assert momentum(agg.mean(over="clients")) == 0
    assert momentum(chain(1.0)) > 0


DEPLOYED = cohorts.poisson(0.001)


def simulated(clip, noise, cohort=DEPLOYED):
    mean = agg.mean(over="expected_cohort")
    return agg.chain(clip, mean, agg.simulated(noise, cohort, 10**6))


@pytest.mark.parametrize(
    "noise",
    [agg.gaussian_noise(1.0), agg.laplace_noise(2**-0.5), agg.banded_noise(1.0, 1, 5), agg.tree_noise(1.0)],
    ids=lambda noise: noise.facts[0].name,
)
def test_a_simulated_cohort_is_said_to_be_one(noise):
    """Noise on the mean as in a cohort of 1,000, priced for a million clients, and never as the run's own."""
    zeros, clip = np.zeros((10, 40_000), np.float32), agg.clip_by_l1_norm(1.0)
    mean, _, _ = agg.run(simulated(clip, noise), zeros, key=jax.random.key(0))
    assert np.std(mean) == pytest.approx(1 / 1000, rel=0.02)
    if noise.facts[0].name == "gaussian_noise":
        ledger = privacy.ledger_of(simulated(clip, noise), cohorts.uniform(10), 100, rounds=1500)
        got = privacy.price(ledger, 1e-6)
        assert got.simulated and str(got).startswith("simulated, not that of this run: epsilon")
        own = {"rounds": 1500, "delta": 1e-6, "population": 10**6}
        assert got.epsilon == privacy.epsilon(1.0, DEPLOYED, **own)


def test_the_count_of_an_adaptive_clip_is_simulated_too():
    clip = agg.simulated(agg.adaptive_clip(1.0, count_noise_std=50.0), DEPLOYED, 10**6)

    def fraction(round_):
        chain = agg.chain(clip, agg.mean(over="expected_cohort"))
        metrics = agg.run(chain, np.zeros((10, 1), np.float32), key=jax.random.key(0), round_=round_)[2]
        return metrics["adaptive_clip/unclipped"].total

    draws = np.asarray(jax.vmap(fraction)(np.arange(2000)))
    assert draws.std() == pytest.approx(50 / 1000, rel=0.1)
    ledger = privacy.ledger_of(simulated(clip, agg.gaussian_noise(1.0)), cohorts.uniform(10), 100, rounds=5)
    assert [(e.multiplier, e.sampling.simulated) for e in ledger.entries] == [(100.0, True), (1.0, True)]


# --- what has no price --------------------------------------------------------------------------------------------

WRONG = {
    "noise of 0": (lambda: privacy.epsilon(0.0, POISSON, rounds=1, delta=1e-5), "noise_multiplier is 0.0"),
    "noise below 0": (
        lambda: privacy.epsilon(-1.0, POISSON, rounds=1, delta=1e-5),
        "noise_multiplier is -1.0",
    ),
    "schedule to 0": (
        lambda: privacy.epsilon(chain(lambda r: 1.0 - r), POISSON, rounds=2, delta=1e-5),
        "noise multiplier of round 1 is 0.0",
    ),
    "delta of 0": (lambda: privacy.epsilon(1.0, POISSON, rounds=1, delta=0), "delta is 0"),
    "delta of 1": (lambda: privacy.epsilon(1.0, POISSON, rounds=1, delta=1.0), "delta is 1.0"),
    "no rounds": (lambda: privacy.epsilon(1.0, POISSON, rounds=0, delta=1e-5), "rounds is 0"),
    "epsilon of 0": (lambda: privacy.calibrate(0.0, POISSON, rounds=1, delta=1e-5), "epsilon is 0.0"),
    "out of reach": (
        lambda: privacy.calibrate(
            1e-3,
            cohorts.uniform(5),
            population=10,
            rounds=10,
            delta=1e-12,
            source=lambda z: chain(z, agg.adaptive_clip(count_noise_std=0.5)),
        ),
        "no noise multiplier",
    ),
    "drawn twice": (
        lambda: privacy.epsilon(1.0, cohorts.uniform(5, replace=True), population=10, rounds=1, delta=1e-5),
        "with_replacement.*no epsilon",
    ),
    "unknown population": (
        lambda: privacy.epsilon(1.0, cohorts.uniform(5), rounds=1, delta=1e-5),
        "give population",
    ),
    "foreign relation": (
        lambda: privacy.epsilon(
            1.0, cohorts.uniform(5), population=9, rounds=1, delta=1e-5, neighbour="add_or_remove_one"
        ),
        "neighbour is 'add_or_remove_one'.*'replace_one'",
    ),
    "accountant without the law": (
        lambda: privacy.epsilon(
            1.0, cohorts.uniform(5), population=9, rounds=1, delta=1e-5, accountant="pld"
        ),
        "accountant is 'pld'.*'rdp' alone",
    ),
    "no noise": (lambda: privacy.epsilon(agg.mean(), POISSON, rounds=1, delta=1e-5), "adds no noise"),
    "two relations": (
        lambda: privacy.price(
            privacy.ledger_of(1.0, POISSON, None, 1) + privacy.ledger_of(1.0, cohorts.uniform(2), 9, 1), 1e-5
        ),
        "different neighbour relations",
    ),
    "law without a price": (
        lambda: privacy.epsilon(fs.Noise("cauchy", 1.0), POISSON, rounds=1, delta=1e-5),
        "law 'cauchy'",
    ),
    "empty": (lambda: privacy.price(Ledger(()), 1e-5), "nothing was released"),
    "count dearer than the round": (
        lambda: privacy.update_noise_multiplier(1.0, 0.5),
        "count_noise_std is 0.5",
    ),
    "a sum of one": (lambda: privacy.secure_aggregation_bits(1, 10), "a sum of one client hides nothing"),
    "a part of it simulated": (
        lambda: privacy.epsilon(
            simulated(agg.adaptive_clip(count_noise_std=5.0), agg.gaussian_noise(1.0)),
            POISSON,
            rounds=1,
            delta=1e-5,
        ),
        "Simulate all of it, or nothing",
    ),
    "a clip simulated": (
        lambda: agg.simulated(agg.clip_by_global_norm(1.0), DEPLOYED, 10**6),
        "clip_by_global_norm, expected one layer with central noise",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_has_no_price_says_so(name):
    call, message = WRONG[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


def test_a_cohort_is_a_cohort():
    with pytest.raises(TypeError, match=r"cohort is float.*fs\.cohorts"):
        privacy.epsilon(1.0, 0.01, rounds=1, delta=1e-5)  # pyright: ignore[reportArgumentType]
    assert math.isfinite(privacy.epsilon(1.0, cohorts.poisson(1.0), rounds=1, delta=1e-5))
