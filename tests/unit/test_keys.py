"""Keys: one root, a fold for every purpose, and nothing of lanes or devices in them."""

from __future__ import annotations

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedjax_sim._src import keys

ROOT = keys.root_key(0)


def words(key) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).ravel().tolist())


def test_a_root_key_is_threefry_whatever_the_default():
    with jax.default_prng_impl("rbg"):
        assert words(keys.root_key(5)) == words(jax.random.key(5, impl="threefry2x32"))


def test_a_threefry_key_is_taken_as_it_is():
    key = jax.random.key(3, impl="threefry2x32")
    assert keys.root_key(key) is key
    assert words(keys.root_key(np.int64(3))) == words(key)


@pytest.mark.parametrize(
    ("seed", "message"),
    [
        (lambda: jax.random.key(0, impl="rbg"), "expected 'threefry2x32'"),
        (lambda: jax.random.key(0, impl="unsafe_rbg"), "expected 'threefry2x32'"),
        (lambda: jax.random.split(jax.random.key(0)), r"array of keys of shape \(2,\)"),
        (lambda: jnp.zeros(2, jnp.uint32), "expected an int or a typed key"),
        (lambda: 1.0, "seed is float"),
        (lambda: True, "seed is bool"),
    ],
)
def test_other_seeds_are_refused(seed, message):
    with pytest.raises(TypeError, match=message):
        keys.root_key(seed())


def test_purposes_are_distinct():
    assert len({keys.INIT, keys.COHORT, keys.CLIENT, keys.SERVER, keys.PERSONAL}) == 5
    assert len({keys.ORDER, keys.BEGIN, keys.STEP, keys.FINISH, keys.ENCODE}) == 5


def test_fold_is_fold_in_in_order():
    assert words(keys.fold(ROOT, 1, 2)) == words(jax.random.fold_in(jax.random.fold_in(ROOT, 1), 2))
    assert words(keys.fold(ROOT, 1, 2)) != words(keys.fold(ROOT, 2, 1))
    assert words(keys.fold(ROOT)) == words(ROOT)


def test_along_several_paths_stand_the_keys_of_fold():
    paths = [(1, 2, 3), (4,), (5, 6)]
    for path, made in zip(paths, keys.along(ROOT, *paths), strict=True):
        expected = [words(keys.fold(ROOT, *path[:length])) for length in range(1, len(path) + 1)]
        assert [words(key) for key in made] == expected


def test_random_bits_are_the_folds_of_their_places():
    """What the words behind a client's order rest on (``engines._client.Turn.keys``)."""
    first, second = keys.along(ROOT, (7, 0), (7, 1))
    expected = jax.random.bits(keys.fold(ROOT, 7), (2,), jnp.uint32)
    assert [np.bitwise_xor(*words(path[-1])) for path in (first, second)] == expected.tolist()


def test_no_two_clients_rounds_stages_draws_or_servers_share_a_key():
    seen = [words(keys.client_key(ROOT, *place)) for place in itertools.product(range(3), repeat=4)]
    seen += [words(keys.server_key(ROOT, *place)) for place in itertools.product(range(3), repeat=2)]
    seen += [words(keys.fold(ROOT, keys.INIT))]
    assert len(set(seen)) == len(seen) == 81 + 9 + 1


def test_keys_do_not_depend_on_vmap_or_jit():
    make = lambda client: jax.random.key_data(keys.client_key(ROOT, 2, 0, client, 1))  # noqa: E731
    together = jax.jit(jax.vmap(make))(jnp.arange(4))
    alone = np.stack([make(client) for client in range(4)])
    np.testing.assert_array_equal(together, alone)


def test_the_hosts_generator_is_a_function_of_its_words():
    draw = lambda *data: tuple(keys.host_generator((0, 1), *data).integers(0, 2**32, 4))  # noqa: E731
    assert draw(keys.COHORT, 3) == draw(keys.COHORT, 3)
    assert len({draw(keys.COHORT, 3), draw(keys.COHORT, 4), draw(keys.CLIENT, 3), draw(3, keys.COHORT)}) == 4
    assert tuple(keys.host_generator((0, 2), keys.COHORT, 3).integers(0, 2**32, 4)) != draw(keys.COHORT, 3)


@pytest.mark.parametrize(
    "words", [(0,), (2**32 - 1, 7), (2**32, 7), (2**100 + 3,), (np.int64(5), np.uint32(6))], ids=str
)
def test_the_hosts_generator_is_that_of_a_list_of_words(words):
    """Experiments are repeated from their seeds: words of more than 32 bits count as several, as numpy has it."""
    expected = np.random.Generator(np.random.Philox(np.random.SeedSequence([*words, keys.COHORT, 3])))
    found = keys.host_generator(words, keys.COHORT, 3)
    np.testing.assert_array_equal(found.integers(0, 2**32, 8), expected.integers(0, 2**32, 8))


@given(
    st.integers(1, 9).flatmap(
        lambda words: st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * words), max_size=5)
    )
)
def test_many_generators_are_those_of_their_rows(rows):
    """Whatever was drawn before, halves of words and numbers kept for later included."""
    draw = lambda generator: (  # noqa: E731
        *generator.integers(0, 2**63, 5),
        *generator.choice(100, 7, replace=False),
        *generator.standard_normal(2),
        generator.integers(0, 5, dtype=np.uint32),
        *[child.integers(0, 2**63) for child in generator.spawn(1) + generator.spawn(1)],
    )
    drawn = [draw(generator) for generator in keys.host_generators(rows)]
    assert drawn == [draw(keys.host_generator(row)) for row in rows]


@pytest.mark.parametrize(
    ("seed", "error"), [(-1, ValueError), (1.5, TypeError), ("one", ValueError), (None, TypeError)]
)
def test_a_seed_that_is_none_is_named(seed, error):
    with pytest.raises(error, match=re.escape(f"seed is {seed!r}, expected a non-negative integer")):
        keys.host_generator((seed,), keys.COHORT)
