"""How many steps a client takes."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedjax_sim as fs


@given(
    size=st.integers(0, 60),
    epochs=st.none() | st.integers(1, 3),
    batch=st.integers(1, 9),
    per_step=st.integers(1, 3),
    limit=st.none() | st.integers(1, 12),
    drop=st.booleans(),
)
def test_steps_are_those_of_a_loop(size, epochs, batch, per_step, limit, drop):
    """A loop over epochs and over slices of a client's rows takes as many."""
    if epochs is None and limit is None:
        return
    local = fs.LocalWork(
        epochs=epochs, batch_size=batch, batches_per_step=per_step, max_steps=limit, drop_remainder=drop
    )
    rows = batch * per_step
    per_epoch = [min(start + rows, size) - start for start in range(0, size, rows)]
    per_epoch = [n for n in per_epoch if n == rows or not drop]
    assert local.rows_per_step == rows
    assert local.steps_per_epoch(size) == len(per_epoch)
    total = len(per_epoch) * epochs if epochs is not None else limit if per_epoch else 0
    assert local.steps(size) == (total if limit is None else min(total, limit))


def test_a_client_without_examples_takes_no_step():
    for local in (
        fs.LocalWork(),
        fs.LocalWork(epochs=None, max_steps=5),
        fs.LocalWork(max_steps=5, rows=lambda generator, size: np.zeros((1, 20), int)),
    ):
        assert local.steps([0]).tolist() == [0]


def test_a_client_smaller_than_a_step_takes_none_with_drop_remainder():
    assert fs.LocalWork(batch_size=10, drop_remainder=True).steps([9, 10, 19]).tolist() == [0, 1, 1]
    forever = fs.LocalWork(epochs=None, max_steps=7, batch_size=10, drop_remainder=True)
    assert forever.steps([9, 10]).tolist() == [0, 7]


def test_epochs_none_takes_exactly_max_steps():
    assert fs.LocalWork(epochs=None, max_steps=7, batch_size=10).steps([1, 1000]).tolist() == [7, 7]


def test_with_explicit_rows_the_limit_is_max_steps():
    local = fs.LocalWork(max_steps=7, rows=lambda generator, size: np.zeros((1, 20), int))
    assert local.steps([0, 1, 1000]).tolist() == [0, 7, 7]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "LocalWork.epochs is 0"),
        ({"batch_size": 2.5}, "LocalWork.batch_size is 2.5"),
        ({"batches_per_step": 0}, "LocalWork.batches_per_step is 0"),
        ({"max_steps": -1}, "LocalWork.max_steps is -1"),
        ({"epochs": None}, "leaves the number of steps open: give max_steps"),
        ({"rows": lambda generator, size: None}, "leaves the number of steps open: give max_steps"),
        (
            {"rows": lambda generator, size: None, "max_steps": 1, "batches_per_step": 2},
            "explicit rows for one batch per step",
        ),
    ],
)
def test_what_leaves_the_steps_open_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        fs.LocalWork(**arguments)


def test_it_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        fs.LocalWork().epochs = 2


@given(
    size=st.integers(0, 60),
    epochs=st.none() | st.integers(1, 5),
    limit=st.none() | st.integers(1, 12),
    share=st.floats(0.01, 1.0),
)
def test_stragglers_do_whole_epochs_of_what_others_do(size, epochs, limit, share):
    if epochs is None and limit is None:
        return
    local = fs.LocalWork(epochs=epochs, max_steps=limit, batch_size=7)
    whole, late = int(local.steps(size)), int(local.late_steps(size, share))
    assert (late >= 1) == (whole >= 1) and late <= whole
    if share == 1:
        assert late == whole
    if epochs is not None and limit is None and size:
        assert late % int(local.steps_per_epoch(size)) == 0


def test_an_evenly_drawn_share_is_an_evenly_drawn_number_of_epochs():
    shares = 1 - np.random.default_rng(0).random(100_000)
    epochs = fs.LocalWork(epochs=20, batch_size=10).late_steps(np.full(100_000, 10), shares)
    counts = np.bincount(epochs, minlength=21)
    assert counts[0] == 0 and len(counts) == 21
    np.testing.assert_allclose(counts[1:], 5_000, atol=5 * np.sqrt(5_000))


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_stragglers_is_a_share(share):
    with pytest.raises(
        ValueError, match=r"LocalWork\.stragglers is .*, expected a share of the cohort in \[0, 1\]"
    ):
        fs.LocalWork(stragglers=share)


def test_passes_cannot_go_on_with_explicit_rows():
    with pytest.raises(ValueError, match="explicit rows make no passes"):
        fs.LocalWork(max_steps=1, rows=lambda generator, size: np.zeros((1, 20), int), continue_epochs=True)


# --- Poisson batches ---


def drawn(rate, steps, size, examples, seed=0):
    local = fs.LocalWork(poisson_rate=rate, max_steps=steps, batch_size=size)
    assert local.explicit_rows is not None
    rows = local.explicit_rows(np.random.default_rng(seed), examples)
    assert rows.shape == (steps, size)
    return rows


def members(rows, examples):
    """``bool[steps, examples]``."""
    return np.stack([np.isin(np.arange(examples), batch) for batch in rows])


@pytest.mark.parametrize(("rate", "examples"), [(0.3, 12), (0.05, 40), (1.0, 7)])
def test_poisson_batches_hold_each_example_independently(rate, examples):
    steps = 20_000
    inside = members(drawn(rate, steps, examples, examples), examples)
    error = 5 * np.sqrt(rate * (1 - rate) / steps)
    assert np.all(np.abs(inside.mean(axis=0) - rate) <= error)
    together = (inside[:, :1] & inside[:, 1:]).mean(axis=0)
    assert np.all(np.abs(together - rate**2) <= 5 * np.sqrt(rate**2 * (1 - rate**2) / steps))
    # And one step says nothing of the next.
    again = (inside[:-1] & inside[1:]).mean()
    assert abs(again - rate**2) <= 5 * np.sqrt(rate**2 / (steps * examples)) + 1e-12
    # The size is binomial: its variance is that of independent examples.
    sizes = inside.sum(axis=1)
    variance = examples * rate * (1 - rate)
    assert abs(sizes.var() - variance) <= 0.05 * variance + 1e-12


def test_a_batch_that_is_too_large_keeps_a_uniform_part():
    rate, room, examples, steps = 0.5, 4, 10, 20_000
    rows = drawn(rate, steps, room, examples)
    assert (rows >= 0).sum(axis=1).max() == room
    inside = members(rows, examples)
    sizes = np.minimum(np.random.default_rng(1).binomial(examples, rate, 200_000), room)
    share = sizes.mean() / examples
    assert np.all(np.abs(inside.mean(axis=0) - share) < 5 * np.sqrt(share * (1 - share) / steps) + 1e-3)


@given(
    rate=st.floats(0.01, 1.0), steps=st.integers(1, 5), size=st.integers(1, 9), examples=st.integers(1, 30)
)
def test_a_poisson_batch_never_holds_an_example_twice(rate, steps, size, examples):
    for batch in drawn(rate, steps, size, examples):
        there = batch[batch >= 0]
        assert len(set(there)) == len(there)
        assert np.all(there < examples)
        assert np.all(batch[len(there) :] == -1)


def test_poisson_batches_take_exactly_max_steps():
    local = fs.LocalWork(epochs=3, poisson_rate=0.1, max_steps=7, batch_size=4)
    assert local.steps([0, 1, 1000]).tolist() == [0, 7, 7]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"poisson_rate": 0.0, "max_steps": 1}, r"poisson_rate is 0.0, expected a number in \(0, 1\]"),
        ({"poisson_rate": 0.1}, "poisson_rate leaves the number of steps open: give max_steps"),
        ({"poisson_rate": 0.1, "max_steps": 1, "batches_per_step": 2}, "one Poisson batch per step"),
        ({"poisson_rate": 0.1, "max_steps": 1, "continue_epochs": True}, "make no passes"),
        ({"poisson_rate": 0.1, "max_steps": 1, "rows": lambda generator, size: None}, "give one of the two"),
    ],
)
def test_poisson_batches_stand_alone(options, says):
    with pytest.raises(ValueError, match=says):
        fs.LocalWork(**options)
