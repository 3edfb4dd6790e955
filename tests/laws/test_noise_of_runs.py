"""Law 7 in runs: the noise of a sum has the stated variance and the same draws, whatever lanes, engines and chunks."""

import functools

import pytest
from laws.noises import MECHANISMS, check, noise_of_a_run

from fedjax_sim import engines

LAYOUTS = {
    "one lane": (lambda: engines.lanes(1), 2),
    "three lanes, chunks of one": (lambda: engines.lanes(3, finish="masked"), 1),
    "five lanes, one chunk": (lambda: engines.lanes(5, finish="compact"), 3),
}


@functools.cache
def oracle(name):
    return noise_of_a_run(name, engines.sequential(), 2)


@pytest.mark.parametrize("name", MECHANISMS)
def test_the_sequential_engine_adds_the_stated_noise(name):
    check(name, oracle(name), oracle(name))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", MECHANISMS)
def test_lanes_and_chunks_add_the_same_noise(name, layout):
    engine, rounds_per_chunk = LAYOUTS[layout]
    check(name, noise_of_a_run(name, engine(), rounds_per_chunk), oracle(name))


@pytest.mark.parametrize("name", MECHANISMS)
def test_half_the_noise_is_noticed(name):
    """A check that cannot fail checks nothing."""
    with pytest.raises(AssertionError):
        check(name, oracle(name) / 2, oracle(name) / 2)
