"""Clipping and summing, quantising and packing, modular sums: every form equals its reference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import modular, mosaic, order, packing
from fedjax_sim_kernels.clipping import pallas as clipping_pallas
from fedjax_sim_kernels.clipping import pallas_tpu as clipping_tpu
from fedjax_sim_kernels.clipping import reference as clipping_reference
from fedjax_sim_kernels.clipping import streamed
from fedjax_sim_kernels.clipping.shapes import EDGE_CASES as CLIPS
from fedjax_sim_kernels.modular import pallas as modular_pallas
from fedjax_sim_kernels.modular import pallas_tpu as modular_tpu
from fedjax_sim_kernels.modular import reference as modular_reference
from fedjax_sim_kernels.modular import subtracting
from fedjax_sim_kernels.modular.shapes import EDGE_CASES as MODULAR
from fedjax_sim_kernels.order import pallas as order_pallas
from fedjax_sim_kernels.order import pallas_tpu as order_tpu
from fedjax_sim_kernels.order.shapes import EDGE_CASES as ROWS
from fedjax_sim_kernels.packing import pallas as packing_pallas
from fedjax_sim_kernels.packing import pallas_tpu as packing_tpu
from fedjax_sim_kernels.packing.shapes import EDGE_CASES as PACKS
from hypothesis import given, settings
from hypothesis import strategies as st

KEY = jax.random.key(0)
named = lambda cases: pytest.mark.parametrize("case", cases, ids=lambda case: case.name)  # noqa: E731


def interpreted(function):
    return lambda *arguments: function(*arguments, interpret=True)


def test_the_forms_for_tpus_over_several_blocks(monkeypatch):
    """Three for all but packing, the last of them not full."""
    monkeypatch.setattr(mosaic, "_WORDS", 1)
    rows, valid = jax.random.normal(KEY, (5, 3 * mosaic.LANES - 7)), jnp.array([1, 0, 1, 1, 1], bool)
    words = jax.random.bits(KEY, rows.shape) % jnp.uint32(1_000_003)
    # In packing a block is as many words.
    x, uniform = jax.random.normal(KEY, (2000,)), jax.random.uniform(KEY, (2000,))
    for actual, expected, arguments in (
        (clipping_tpu.clip_and_sum, clipping_reference.clip_and_sum, (rows, valid.astype(jnp.float32), 2.0)),
        (modular_tpu.masked_sum, modular_reference.masked_sum, (words, valid, 1_000_003)),
        (order_tpu.median, order.median, (rows, valid)),
        (order_tpu.trimmed_mean, order.trimmed_mean, (rows, valid, 1)),
        (packing_tpu.quantise_and_pack, packing.quantise_and_pack, (x, uniform, 4)),
    ):
        got, known = actual(*arguments, interpret=True), expected(*arguments)
        for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(known), strict=True):
            assert one.shape == other.shape
            if one.dtype == jnp.uint32:
                np.testing.assert_array_equal(one, other)
            else:
                np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


# --- clipping ------------------------------------------------------------------------------------------------

CLIP_FORMS = {
    "streamed": streamed.clip_and_sum,
    "pallas": interpreted(clipping_pallas.clip_and_sum),
    "pallas for TPUs": interpreted(clipping_tpu.clip_and_sum),
}


@pytest.mark.parametrize("form", CLIP_FORMS)
@named(CLIPS)
def test_clip_and_sum_equals_the_reference(form, case):
    updates, weights, bound = case.arguments(0)
    for rows in (updates, updates.at[0, 0].set(jnp.nan), updates.at[0].set(jnp.inf)):
        actual = CLIP_FORMS[form](rows, weights, bound)
        expected = clipping_reference.clip_and_sum(rows, weights, bound)
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        assert np.isfinite(actual[0]).all()


@pytest.mark.parametrize("form", CLIP_FORMS)
def test_a_sum_is_within_the_bound(form):
    """One client of weight 1: the bound of law 6."""
    update = 1e3 * jax.random.normal(KEY, (1, 3000))
    total, norms = CLIP_FORMS[form](update, jnp.ones(1), 2.0)
    assert np.linalg.norm(total) <= 2.0 * (1 + 1e-5) and norms[0] > 1e4


# --- packing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [packing_pallas, packing_tpu], ids=["gpu", "tpu"])
@named(PACKS)
def test_the_pallas_forms_of_packing_equal_the_reference(form, case):
    """Level for level, but for elements so close to one that the compiler's rounding decides."""
    x, uniform = case.arguments(0)
    expected = packing.quantise_and_pack(x, uniform, case.bits)
    actual = form.quantise_and_pack(x, uniform, case.bits, interpret=True)
    assert (actual.low, actual.step) == (expected.low, expected.step)
    low, step = float(expected.low), float(expected.step)
    place = (np.asarray(x, np.float64) - low) / (step or 1.0) + np.asarray(uniform, np.float64)
    clear = np.abs(place - np.rint(place)) > 4 * np.finfo(np.float32).eps * 2**case.bits
    assert clear.mean() > 0.9 or step == 0
    levels = [
        np.asarray(packing.unpack(packed._replace(low=0.0, step=1.0), case.size, case.bits))
        for packed in (actual, expected)
    ]
    np.testing.assert_array_equal(levels[0][clear], levels[1][clear])
    assert np.abs(levels[0] - levels[1]).max(initial=0) <= 1


@named(PACKS)
def test_packing_by_hand(case):
    """Levels from numpy in float64, packed with Python's integers, unpacked to within one step."""
    x = np.asarray(case.arguments(0)[0], np.float64)
    packed = packing.quantise_and_pack(*case.arguments(0), case.bits)
    restored = np.asarray(packing.unpack(packed, case.size, case.bits), np.float64)
    step = (x.max() - x.min()) / (2**case.bits - 1)
    assert np.all(np.abs(restored - x) <= step * (1 + 1e-3) + 1e-6)
    values = np.rint((restored - float(packed.low)) / float(packed.step or 1)).astype(int)
    words = np.zeros(len(packed.words), object)
    for place, value in enumerate(values):
        words[place * case.bits // 32] += int(value) << (place * case.bits % 32)
    assert words.tolist() == packed.words.tolist()


@pytest.mark.parametrize("bits", [1, 4])
def test_rounding_has_the_element_as_its_mean(bits):
    """The mean over 4,000 draws lies within five standard errors of each element."""
    x = jax.random.normal(KEY, (50,))

    def once(key):
        return packing.unpack(packing.quantise_and_pack(x, jax.random.uniform(key, x.shape), bits), 50, bits)

    draws = jax.jit(jax.vmap(once))(jax.random.split(jax.random.key(1), 4000))
    error = np.abs(np.mean(draws, axis=0) - x)
    assert np.all(error <= 5 * np.std(draws, axis=0) / np.sqrt(4000) + 1e-5)


def test_equal_elements_are_exact():
    packed = packing.quantise_and_pack(jnp.full(10, 2.5), jnp.full(10, 0.99), 2)
    assert packing.unpack(packed, 10, 2).tolist() == [2.5] * 10


def test_bits_divide_a_word():
    with pytest.raises(ValueError, match="bits is 3, expected one of 1, 2, 4, 8, 16"):
        packing.quantise_and_pack(jnp.ones(4), jnp.zeros(4), 3)


# --- modular sums --------------------------------------------------------------------------------------------

MODULAR_FORMS = {
    "reference": modular_reference.masked_sum,
    "subtracting": subtracting.masked_sum,
    "pallas": interpreted(modular_pallas.masked_sum),
    "pallas for TPUs": interpreted(modular_tpu.masked_sum),
}


@pytest.mark.parametrize("form", MODULAR_FORMS)
@named(MODULAR)
def test_modular_sums_are_those_of_whole_numbers(form, case):
    rows, valid = case.arguments(0)
    expected = np.asarray(rows, object)[np.asarray(valid)].sum(axis=0) % case.modulus
    np.testing.assert_array_equal(
        np.asarray(MODULAR_FORMS[form](rows, valid, case.modulus), object), expected
    )


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 2**31), st.lists(st.booleans(), min_size=6, max_size=6), st.integers(0, 2**31 - 1))
def test_any_modulus(modulus, there, seed):
    """Of 50 sums each, whose largest rows are one less than the modulus."""
    rows = np.random.default_rng(seed).integers(modulus, size=(6, 50))
    rows[:, 0] = modulus - 1
    expected = rows[there].sum(axis=0) % modulus
    for form in (modular_reference, subtracting):
        got = form.masked_sum(jnp.asarray(rows, jnp.uint32), jnp.asarray(there), modulus)
        np.testing.assert_array_equal(np.asarray(got, np.int64), expected)


@pytest.mark.parametrize("modulus", [0, 1, 2**31 + 1, 2**33])
def test_a_modulus_beyond_the_words_is_refused(modulus):
    with pytest.raises(ValueError, match=f"modulus is {modulus}, expected an integer from 2"):
        modular.masked_sum(jnp.ones((2, 2), jnp.uint32), jnp.ones(2, bool), modulus)


def test_other_types_are_refused():
    with pytest.raises(TypeError, match="rows are float32, expected uint32"):
        modular.masked_sum(jnp.ones((2, 2)), jnp.ones(2, bool), 7)


# --- order statistics ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [order_pallas, order_tpu], ids=["gpu", "tpu"])
@named(ROWS)
def test_the_pallas_forms_of_order_statistics_equal_the_reference(form, case):
    rows, valid = case.arguments(0)
    np.testing.assert_array_equal(form.median(rows, valid, interpret=True), order.median(rows, valid))
    np.testing.assert_allclose(
        form.trimmed_mean(rows, valid, 1, interpret=True),
        order.trimmed_mean(rows, valid, 1),
        rtol=1e-5,
        atol=1e-6,
    )
