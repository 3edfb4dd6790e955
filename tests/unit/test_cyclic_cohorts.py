"""Samplers that keep a client's rounds apart: who takes part, and when."""

from __future__ import annotations

import math

import numpy as np
import pytest
from unit.test_cohorts import draw

import fedjax_sim as fs

cohorts = fs.cohorts


def takes_part(cohort, population, rounds, seed=0) -> np.ndarray:
    """``bool[rounds, population]``."""
    here = np.zeros((rounds, population), bool)
    for round_ in range(rounds):
        here[round_, draw(cohort, round_, population=population, seed=seed)] = True
    return here


def gaps(here: np.ndarray) -> np.ndarray:
    """Rounds from each time that a client takes part to its next."""
    return np.concatenate([np.diff(np.flatnonzero(column)) for column in here.T])


@pytest.mark.parametrize(("size", "population"), [(4, 10), (5, 10), (10, 10), (3, 7), (1, 4)])
def test_a_cyclic_order_is_one_order(size, population):
    """All passes are the same, everybody stands in each once, and the separation is what the sampler says."""
    cohort, length = cohorts.cyclic(size), math.ceil(population / size)
    here = takes_part(cohort, population, 4 * length)
    assert (here[:length].sum(axis=0) == 1).all()
    assert all(
        (here[start : start + length] == here[:length]).all() for start in range(0, 4 * length, length)
    )
    assert cohort.separation is not None and cohort.separation(population) == length
    assert (gaps(here) == length).all()


def test_seeds_draw_another_order():
    orders = {tuple(draw(cohorts.cyclic(2), 0, seed=seed)) for seed in range(40)}
    assert len(orders) > 30


def test_shuffled_cohorts_are_no_cyclic_ones():
    """A client may end a pass and begin the next: no separation is claimed."""
    assert cohorts.shuffled(4).separation is None
    assert gaps(takes_part(cohorts.shuffled(4), 12, 60)).min() == 1


@pytest.mark.parametrize(("bands", "population"), [(3, 11), (1, 6), (4, 4), (5, 3)])
def test_groups_take_turns(bands, population):
    """A client comes in its group's turn alone, with the rate, independently of the others and of other turns."""
    rate, turns = 0.6, 1500
    cohort = cohorts.cyclic_poisson(rate, bands)
    here = takes_part(cohort, population, bands * turns)
    group = np.arange(population) % bands
    assert not here[np.arange(bands * turns)[:, None] % bands != group].any()
    assert cohort.separation is not None and cohort.separation(None) == bands
    assert gaps(here).min() >= bands
    mine = np.stack([here[g::bands, i] for i, g in enumerate(group)], axis=1)
    error = 5 * math.sqrt(rate * (1 - rate) / turns)
    assert np.abs(mine.mean(axis=0) - rate).max() < error
    lagged = (mine[1:] & mine[:-1]).mean(axis=0)
    assert np.abs(lagged - rate**2).max() < error
    pairs = mine.astype(float).T @ mine / turns
    same = group[:, None] == group
    assert np.abs(pairs - rate**2)[same & ~np.eye(population, dtype=bool)].max(initial=0) < error


def test_no_cohort_of_a_group_is_cut():
    """There is room for the whole group: the law is a Poisson law, not a truncated one."""
    for population in (1, 9, 10, 11):
        cohort = cohorts.cyclic_poisson(1.0, bands=3)
        sizes = [len(draw(cohort, round_, population=population)) for round_ in range(3)]
        assert sum(sizes) == population and max(sizes) == cohort.cap(population)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: cohorts.cyclic(0), "cohort size is 0"),
        (lambda: cohorts.cyclic(11).cap(10), "cohort size is 11, but the population has 10 clients"),
        (lambda: cohorts.cyclic_poisson(1.5, 2), "participation rate is 1.5"),
        (lambda: cohorts.cyclic_poisson(0.5, 0), "bands is 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
