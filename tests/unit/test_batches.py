"""Which rows a step sees: keyed permutations, epochs, and the gather."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.data import batches

ROOM = 256


@jax.jit
def _places(words, epoch, size):
    return batches.shuffled(words, epoch, jnp.arange(ROOM), size)


def order(words, epoch, size) -> np.ndarray:
    return np.asarray(_places(jnp.asarray(words, jnp.uint32), jnp.int32(epoch), jnp.int32(size)))[:size]


def words_of(seed, count) -> jax.Array:
    return jax.random.bits(jax.random.key(seed), (count, 2), jnp.uint32)


@jax.jit
def _orders(words, epochs, size):
    return jax.vmap(lambda w, e: batches.shuffled(w, e, jnp.arange(8), size))(words, epochs)


def ranks(words, epoch, size) -> np.ndarray:
    """The permutation of each pair of words as a number below ``size!``."""
    epochs = jnp.full(len(words), epoch, jnp.int32)
    perms = np.asarray(_orders(words, epochs, jnp.int32(size)))[:, :size]
    rank = np.zeros(len(perms), int)
    for i in range(size):
        smaller = np.sum(perms[:, i + 1 :] < perms[:, i : i + 1], axis=1)
        rank = rank * (size - i) + smaller
    return rank


def assert_uniform(counts, sigmas=5.0):
    """Chi-square within ``sigmas`` standard deviations of its mean."""
    expected = counts.mean()
    freedom = counts.size - 1
    statistic = np.sum((counts - expected) ** 2 / expected)
    assert abs(statistic - freedom) < sigmas * math.sqrt(2 * freedom), (statistic, freedom)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, ROOM), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 10**6))
def test_the_order_is_a_permutation_for_any_size(size, first, second, epoch):
    assert sorted(order([first, second], epoch, size)) == list(range(size))


@pytest.mark.parametrize("size", [4095, 4096, 4097, 100_003])
def test_large_clients_have_permutations_too(size):
    rows = batches.shuffled(words_of(0, 1)[0], jnp.int32(0), jnp.arange(size), jnp.int32(size))
    np.testing.assert_array_equal(np.sort(rows), np.arange(size))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_every_permutation_is_equally_likely(size):
    """Chi-square over all ``size!`` orders, 40 draws for each on average."""
    count = math.factorial(size)
    drawn = ranks(words_of(size, max(40 * count, 2000)), 0, size)
    assert_uniform(np.bincount(drawn, minlength=count))


@pytest.mark.parametrize("size", [2, 3, 4])
def test_epochs_are_independent(size):
    """All pairs (order in epoch 0, order in epoch 1) are equally likely."""
    count = math.factorial(size)
    words = words_of(20 + size, 40 * count**2)
    pairs = ranks(words, 0, size) * count + ranks(words, 1, size)
    assert_uniform(np.bincount(pairs, minlength=count**2))


def test_places_of_a_large_client_are_uniform():
    """The row at a given place, and the rows at two neighbouring places, of a client of 16 and of 100."""
    words = words_of(3, 20_000)
    at = jax.jit(
        jax.vmap(lambda w, size: batches.shuffled(w, jnp.int32(0), jnp.arange(4, 6), size), (0, None))
    )
    first, second = np.asarray(at(words, jnp.int32(16))).T
    assert_uniform(np.bincount(first, minlength=16))
    pairs = np.bincount(first * 16 + second, minlength=256).reshape(16, 16)
    assert not np.diag(pairs).any()
    assert_uniform(pairs[~np.eye(16, dtype=bool)])
    assert_uniform(np.bincount(np.asarray(at(words, jnp.int32(100)))[:, 0], minlength=100))


def test_epochs_and_clients_have_different_orders():
    words = words_of(9, 20)
    orders = {tuple(order(w, epoch, 30)) for w in words for epoch in range(10)}
    assert len(orders) == 200


def test_an_order_depends_on_words_and_epoch_alone():
    """Asking for other places, in another shape, changes no row."""
    words = words_of(4, 1)[0]
    whole = order(words, 2, 50)
    some = batches.shuffled(words, jnp.int32(2), jnp.array([[7, 3], [49, 0]]), jnp.int32(50))
    np.testing.assert_array_equal(some, whole[[[7, 3], [49, 0]]])


@functools.partial(jax.jit, static_argnums=0)
def _steps(local: fs.LocalWork, size):
    order = batches.turn_order(local, words_of(5, 1)[0], size)
    return jax.vmap(lambda step: batches.step_rows(local, order, step, size, jnp.int32(0)))(
        jnp.arange(32, dtype=jnp.int32)
    )


def epochs_of(local: fs.LocalWork, size: int, epochs: int) -> list[list[np.ndarray]]:
    """The rows of every step that exist, by epoch."""
    per_epoch = int(local.steps_per_epoch(size))
    seen = [rows[rows >= 0] for rows in np.asarray(_steps(local, jnp.int32(size)))]
    return [seen[e * per_epoch : (e + 1) * per_epoch] for e in range(epochs)]


LOCALS = {
    "one_epoch": fs.LocalWork(batch_size=4),
    "shuffled": fs.LocalWork(epochs=3, batch_size=4),
    "in_storage_order": fs.LocalWork(epochs=3, batch_size=4, shuffle=False),
    "several_batches_a_step": fs.LocalWork(epochs=3, batch_size=2, batches_per_step=3),
}


@pytest.mark.parametrize("size", [0, 1, 3, 4, 5, 8, 23])
@pytest.mark.parametrize("name", LOCALS)
def test_an_epoch_covers_every_example_exactly_once(name, size):
    for steps in epochs_of(LOCALS[name], size, epochs=LOCALS[name].epochs):
        assert sorted(np.concatenate([*steps, []]).tolist()) == list(range(size))
        assert all(len(step) == LOCALS[name].rows_per_step for step in steps[:-1])


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_order_of_a_single_pass_is_that_of_a_first_epoch(size):
    """All that is worked out at the beginning of a turn changes no row."""
    words, size = words_of(5, 1)[0], jnp.int32(size)
    first, several = LOCALS["one_epoch"], dataclasses.replace(LOCALS["one_epoch"], epochs=2)
    for step in range(int(first.steps_per_epoch(size))):
        one, other = (
            batches.step_rows(
                local, batches.turn_order(local, words, size), jnp.int32(step), size, jnp.int32(0)
            )
            for local in (first, several)
        )
        np.testing.assert_array_equal(one, other)


def test_storage_order_is_the_order_without_shuffle():
    first, second = epochs_of(LOCALS["in_storage_order"], 10, epochs=2)
    assert [step.tolist() for step in first] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert [step.tolist() for step in second] == [step.tolist() for step in first]


@pytest.mark.parametrize("size", [4, 5, 11, 12])
def test_drop_remainder_leaves_the_partial_step_out(size):
    """All steps are full, no example comes twice in an epoch, and later epochs leave out others."""
    local = fs.LocalWork(epochs=8, batch_size=4, drop_remainder=True)
    epochs = epochs_of(local, size, epochs=8)
    for steps in epochs:
        assert [len(step) for step in steps] == [4] * (size // 4)
        assert len(set(np.concatenate(steps).tolist())) == size // 4 * 4
    left_out = {frozenset(range(size)) - set(np.concatenate(steps).tolist()) for steps in epochs}
    assert (len(left_out) > 1) == (size % 4 > 0)


@pytest.mark.parametrize(("drop", "expected"), [(False, [0, 0, 0, 1, 1, 1]), (True, [0, 0, 1, 1, 2, 2])])
def test_epoch_of_counts_passes(drop, expected):
    local = fs.LocalWork(epochs=9, batch_size=4, drop_remainder=drop)
    assert batches.epoch_of(local, jnp.arange(6), jnp.int32(10), jnp.int32(0)).tolist() == expected


def test_the_largest_client_of_32_bits_has_passes():
    size = 2**31 - 10
    steps = -(-size // 20)
    local = fs.LocalWork(epochs=2, batch_size=20)
    found = batches.epoch_of(local, jnp.array([0, steps - 1, steps]), jnp.int32(size), jnp.int32(0))
    assert found.tolist() == [0, 0, 1]


@pytest.mark.parametrize("local", [LOCALS["shuffled"], LOCALS["several_batches_a_step"]])
def test_passes_that_go_on_are_those_of_a_loader_that_outlives_the_round(local):
    """Rounds of 1, 4, 2, 7 steps see the rows that one round of as many steps sees."""
    goes_on, words, size = dataclasses.replace(local, continue_epochs=True), words_of(5, 1)[0], jnp.int32(11)
    steps = iter(range(14))
    whole = [batches.step_rows(local, words, jnp.int32(step), size, jnp.int32(0)) for step in range(14)]
    before = 0
    for count in (1, 4, 2, 7):
        for step in range(count):
            number = next(steps)
            rows = batches.step_rows(goes_on, words, jnp.int32(step), size, jnp.int32(before))
            np.testing.assert_array_equal(rows, whole[number])
            arguments = jnp.int32(step), size, jnp.int32(before)
            assert batches.epoch_of(goes_on, *arguments) == number // int(local.steps_per_epoch(11))
        before += count


def test_gather_takes_a_clients_rows_and_zeroes_the_others():
    """Rows that do not exist are zero even where the columns hold NaN there; storage types are kept."""
    x = jnp.array([[0.0], [1.0], [jnp.nan], [3.0], [jnp.nan]])
    columns = {"x": x, "y": jnp.arange(5, dtype=jnp.uint8), "flag": jnp.ones(5, bool)}
    valid = jnp.array([True, True, False, False])
    batch = batches.gather(columns, jnp.int32(1), jnp.array([2, 0, -1, -900]))
    assert batch["x"][:, 0].tolist() == [3.0, 1.0, 0.0, 0.0]
    assert batch["y"].tolist() == [3, 1, 0, 0]
    assert batch["flag"].tolist() == [True, True, False, False]
    assert batch["mask"].tolist() == valid.tolist()
    assert {name: column.dtype for name, column in batch.items()} == {
        "x": jnp.float32,
        "y": jnp.uint8,
        "flag": bool,
        "mask": bool,
    }


def test_gather_of_no_row_is_zero_although_the_client_starts_beyond_the_end():
    """An empty last client starts where the columns end."""
    batch = batches.gather({"x": jnp.full(3, jnp.nan)}, jnp.int32(3), jnp.full(2, -1))
    assert batch["x"].tolist() == [0.0, 0.0]
