"""Samplers: their laws, their caps, and that (seed, round) decides everything."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim._src import keys

cohorts = fs.cohorts
SAMPLERS = {
    "uniform": cohorts.uniform(4),
    "with_replacement": cohorts.uniform(4, replace=True),
    "poisson": cohorts.poisson(0.3),
    "poisson_capped": cohorts.poisson(0.5, cap=4),
    "shuffled": cohorts.shuffled(4),
    "weighted": cohorts.weighted(4, np.arange(10.0).tolist()),
    "traced": cohorts.traced(4, np.random.default_rng(0).random((7, 10)) < 0.5, rounds_per_row=3),
    "diurnal": cohorts.diurnal(4),
    "fixed": cohorts.fixed([3, 0, 7]),
    "all": cohorts.all_clients(),
    "cyclic": cohorts.cyclic(4),
    "cyclic_poisson": cohorts.cyclic_poisson(0.6, bands=3),
}
POPULATION = 10


def draw(cohort, round_, *, seed=0, population=POPULATION) -> np.ndarray:
    keyed = round_ if cohort.key_round is None else cohort.key_round(round_, population)
    generator = keys.host_generator((0, seed), keys.COHORT, keyed)
    return np.asarray(cohort.sample(generator, round_, population))


def assert_uniform(counts, sigmas=5.0):
    """Chi-square within ``sigmas`` standard deviations of its mean."""
    counts = np.asarray(counts, float)
    expected = counts.mean()
    statistic = np.sum((counts - expected) ** 2 / expected)
    freedom = counts.size - 1
    assert abs(statistic - freedom) < sigmas * math.sqrt(2 * freedom), counts


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_keeps_its_word(name):
    """Members are clients of the population, no more than the cap; distinct unless drawn with replacement."""
    cohort = SAMPLERS[name]
    for round_ in range(50):
        members = draw(cohort, round_)
        assert len(members) <= cohort.cap(POPULATION)
        assert np.all((members >= 0) & (members < POPULATION))
        assert cohort.sampling == "with_replacement" or len(set(members)) == len(members)


@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_and_round_decide_the_cohort(name):
    cohort = SAMPLERS[name]
    for round_ in (0, 7):
        np.testing.assert_array_equal(draw(cohort, round_, seed=1), draw(cohort, round_, seed=1))


@pytest.mark.parametrize(
    "name",
    ["uniform", "with_replacement", "poisson", "poisson_capped", "shuffled", "weighted", "traced", "diurnal"],
)
def test_rounds_and_seeds_draw_anew(name):
    many = [tuple(draw(SAMPLERS[name], round_, seed=seed)) for round_ in range(20) for seed in range(20)]
    assert len(set(many)) > 200


@pytest.mark.parametrize(
    "name", ["uniform", "with_replacement", "poisson", "poisson_capped", "shuffled", "diurnal"]
)
def test_every_client_comes_equally_often(name):
    members = np.concatenate([draw(SAMPLERS[name], round_) for round_ in range(3000)])
    assert_uniform(np.bincount(members, minlength=POPULATION))


def test_uniform_draws_every_subset_equally_often():
    """Without replacement, all ``C(5, 2)`` cohorts have one probability."""
    subsets = {pair: 0 for pair in itertools.combinations(range(5), 2)}
    for round_ in range(3000):
        subsets[tuple(sorted(draw(cohorts.uniform(2), round_, population=5)))] += 1
    assert_uniform(list(subsets.values()))


def test_with_replacement_draws_every_tuple_equally_often():
    counts = np.zeros((3, 3))
    for round_ in range(3000):
        counts[tuple(draw(cohorts.uniform(2, replace=True), round_, population=3))] += 1
    assert_uniform(counts.ravel())


def test_poisson_draws_clients_independently():
    """The cohort's size is binomial: mean ``n p``, variance ``n p (1 - p)``; two clients meet with probability p^2."""
    rate, rounds = 0.3, 4000
    here = np.zeros((rounds, POPULATION))
    for round_ in range(rounds):
        here[round_, draw(cohorts.poisson(rate), round_)] = 1
    sizes = here.sum(axis=1)
    variance = POPULATION * rate * (1 - rate)
    assert abs(sizes.mean() - POPULATION * rate) < 5 * math.sqrt(variance / rounds)
    assert abs(sizes.var() / variance - 1) < 5 * math.sqrt(2 / rounds)
    assert abs((here[:, 0] * here[:, 1]).mean() - rate**2) < 5 * math.sqrt(rate**2 / rounds)


def test_a_poisson_cohort_above_the_cap_is_cut_uniformly():
    """The truncated cohort is the full draw's, cut to the cap, and no client is preferred."""
    cut, full = cohorts.poisson(0.9, cap=3), cohorts.poisson(0.9)
    for round_ in range(200):
        assert set(draw(cut, round_)) <= set(draw(full, round_))
        assert len(draw(cut, round_)) == min(3, len(draw(full, round_)))
    assert_uniform(np.bincount(np.concatenate([draw(cut, r) for r in range(2000)]), minlength=POPULATION))


def test_the_default_cap_of_poisson_lies_six_deviations_above_the_mean():
    cohort = cohorts.poisson(0.01)
    assert cohort.cap(60_000) == math.ceil(600 + 6 * math.sqrt(600 * 0.99)) + 1
    assert cohort.cap(50) == 6
    assert cohorts.poisson(1.0).cap(50) == 50
    assert cohorts.poisson(0.5, cap=1000).cap(50) == 50


def test_a_poisson_round_may_be_empty():
    sizes = [len(draw(cohorts.poisson(0.05), round_)) for round_ in range(100)]
    assert min(sizes) == 0


def test_rate_one_is_everybody():
    assert sorted(draw(cohorts.poisson(1.0), 0)) == list(range(POPULATION))


def test_fixed_and_all_are_the_same_in_every_round():
    for round_ in range(5):
        assert draw(SAMPLERS["fixed"], round_).tolist() == [3, 0, 7]
        assert draw(SAMPLERS["all"], round_).tolist() == list(range(POPULATION))


@pytest.mark.parametrize(
    ("name", "expected", "cap", "sampling", "rate"),
    [
        ("uniform", 4.0, 4, "without_replacement", None),
        ("with_replacement", 4.0, 4, "with_replacement", None),
        ("poisson_capped", 5.0, 4, "truncated_poisson", 0.5),
        ("fixed", 3.0, 3, "fixed", None),
        ("all", 10.0, 10, "all", 1.0),
        ("cyclic", 4.0, 4, "cyclic", None),
        ("cyclic_poisson", 2.0, 4, "cyclic_poisson", 0.6),
    ],
)
def test_what_an_accountant_reads(name, expected, cap, sampling, rate):
    """The expected cohort is a public constant of sampler and population, not of the draws."""
    cohort = SAMPLERS[name]
    assert cohort.expected(POPULATION) == expected
    assert isinstance(cohort.expected(POPULATION), float)
    assert (cohort.cap(POPULATION), cohort.sampling, cohort.rate) == (cap, sampling, rate)


def test_with_replacement_may_exceed_the_population():
    assert cohorts.uniform(25, replace=True).cap(POPULATION) == 25
    assert len(draw(cohorts.uniform(25, replace=True), 0)) == 25


@pytest.mark.parametrize(("size", "population"), [(4, 10), (5, 10), (10, 10), (1, 3), (7, 9)])
def test_a_pass_meets_everybody_once(size, population):
    cohort, rounds = cohorts.shuffled(size), math.ceil(population / size)
    passes = [
        np.concatenate([draw(cohort, start + round_, population=population) for round_ in range(rounds)])
        for start in range(0, 40 * rounds, rounds)
    ]
    assert all(sorted(members) == list(range(population)) for members in passes)
    assert population < 5 or len({tuple(members) for members in passes}) > 30


def test_the_first_of_a_weighted_cohort_follows_the_weights():
    weights = [1.0, 2.0, 3.0, 4.0, 0.0]
    cohort = cohorts.weighted(2, weights)
    drawn = np.array([draw(cohort, round_, population=5) for round_ in range(20_000)])
    first = np.bincount(drawn[:, 0], minlength=5) / len(drawn)
    np.testing.assert_allclose(first, np.array(weights) / 10, atol=0.015)
    # Then the second, of those that are left: P(j | i) = w_j / (10 - w_i).
    after_last = drawn[drawn[:, 0] == 3, 1]
    np.testing.assert_allclose(np.bincount(after_last, minlength=5)[:3] / len(after_last), [1 / 6, 2 / 6, 3 / 6], atol=0.02)  # fmt: skip


def test_tiny_weights_are_compared_and_not_overflowed():
    cohort = cohorts.weighted(1, [5e-324, 3 * 5e-324, 0.0])
    drawn = [draw(cohort, round_, population=3)[0] for round_ in range(4000)]
    assert np.mean(drawn) == pytest.approx(0.75, abs=0.03)
    assert sorted(draw(cohorts.weighted(2, [5e-324, 1.0, 1.0]), 0, population=3)) == [1, 2]


def test_a_trace_says_who_can_come(tmp_path):
    trace = np.array([[True] * 6, [False] * 5 + [True], [False] * 6])
    np.save(tmp_path / "trace.npy", trace)
    for cohort in (cohorts.traced(4, trace, 2), cohorts.traced(4, tmp_path / "trace.npy", 2)):
        drawn = [draw(cohort, round_, population=6) for round_ in range(12)]
        assert [len(members) for members in drawn] == [4, 4, 1, 1, 0, 0] * 2
        assert drawn[2].tolist() == [5]


def test_days_change_who_comes():
    cohort = cohorts.diurnal(10_000, rounds_per_day=24)
    day = [draw(cohort, round_, population=2000) for round_ in range(24)]
    assert np.mean([len(members) for members in day]) == pytest.approx(1000, rel=0.05)
    shared = len(set(day[0]) & set(day[12])) / len(day[0])
    assert shared < 0.3  # half a day apart; a quarter of those who come at all is what chance gives
    same_place = cohorts.diurnal(10_000, rounds_per_day=24, longitudes=1)
    numbers = [len(draw(same_place, round_, population=2000)) for round_ in range(24)]
    assert numbers[6] == 2000 and numbers[18] == 0
    flat = cohorts.diurnal(10_000, available=0.3, amplitude=0.0)
    assert len(draw(flat, 0, population=2000)) == pytest.approx(600, rel=0.1)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: cohorts.shuffled(0), "cohort size is 0"),
        (lambda: cohorts.fixed([1.5, 2.0]), "clients holds 1.5, expected integers"),
        (lambda: cohorts.fixed(np.array([True, False])), "clients holds True, expected integers"),
        (lambda: cohorts.fixed(["0"]), "clients holds '0', expected integers"),
        (lambda: cohorts.weighted(2, [1.0, -1.0, 1.0]), r"weights has shape \[3\], expected one finite number"),
        (lambda: cohorts.weighted(2, [1.0, math.nan, 1.0]), "expected one finite number"),
        (lambda: cohorts.weighted(3, [1.0, 0.0, 1.0]), "cohort size is 3, but 2 clients have a weight above 0"),
        (lambda: cohorts.traced(3, np.ones((2, 3))), r"trace is float64\[2, 3\], expected bool\[rows, population\]"),
        (lambda: cohorts.diurnal(3, amplitude=1.5), "amplitude is 1.5, expected a number from 0 to 1"),
        (lambda: cohorts.diurnal(3, available=0.0), "available is 0.0"),
        (lambda: cohorts.shuffled(11).cap(POPULATION), "cohort size is 11, but the population has 10 clients"),
        (lambda: cohorts.weighted(1, [1.0]).cap(POPULATION), "weights has 1 entries, but the population has 10"),
        (lambda: cohorts.traced(1, np.ones((1, 3), bool)).cap(POPULATION), "trace is of 3 clients, but the population"),
    ],
)  # fmt: skip
def test_what_cannot_be_drawn_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
