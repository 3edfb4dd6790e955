"""Order statistics: the sorting network equals the sort, for rows that are there and rows that are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import order
from fedjax_sim_kernels.order import dispatch, network, reference
from fedjax_sim_kernels.order.shapes import EDGE_CASES
from hypothesis import given, settings
from hypothesis import strategies as st

CASES = pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)


@pytest.mark.parametrize("ties", [False, True], ids=["distinct", "ties"])
@CASES
def test_the_network_equals_the_sort(case, ties):
    rows, valid = case.arguments(0)
    rows = jnp.round(rows) if ties else rows
    np.testing.assert_array_equal(
        jax.jit(network.median)(rows, valid), jax.jit(reference.median)(rows, valid)
    )
    for trim in (0, 1, 3):
        np.testing.assert_allclose(
            jax.jit(network.trimmed_mean)(rows, valid, trim),
            jax.jit(reference.trimmed_mean)(rows, valid, trim),
            rtol=1e-5,
            atol=1e-6,
        )


@CASES
def test_the_reference_equals_numpy(case):
    rows, valid = case.arguments(0)
    there = np.asarray(rows)[np.asarray(valid)]
    expected = np.median(there, axis=0) if len(there) else np.zeros(case.coordinates)
    np.testing.assert_allclose(order.median(rows, valid), expected, rtol=1e-6)
    if len(there) > 2:
        expected = np.sort(there, axis=0)[1:-1].mean(axis=0)
        np.testing.assert_allclose(order.trimmed_mean(rows, valid, 1), expected, rtol=1e-4, atol=1e-6)


FLOATS = st.floats(width=32, allow_nan=True, allow_infinity=True, allow_subnormal=False)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(FLOATS, st.booleans()), min_size=1, max_size=7))
def test_whatever_the_rows_hold(items):
    """NaN and infinity in rows that are there, anything in rows that are not."""
    rows = jnp.array([value for value, _ in items], jnp.float32)[:, None]
    valid = jnp.array([there for _, there in items])
    np.testing.assert_array_equal(network.median(rows, valid), reference.median(rows, valid))


def test_half_floats_keep_their_type():
    rows = jax.random.normal(jax.random.key(0), (5, 40), jnp.bfloat16)
    for form in (network, reference):
        assert form.median(rows, jnp.ones(5, bool)).dtype == jnp.bfloat16
        assert form.trimmed_mean(rows, jnp.ones(5, bool), 1).dtype == jnp.bfloat16


def test_many_rows_are_sorted():
    most_rows = dispatch.FORMS["cpu"].most_rows
    assert order.choose(jnp.zeros((most_rows, 2))) == "network"
    assert order.choose(jnp.zeros((most_rows + 1, 2))) == "reference"
    assert "sort" not in str(jax.make_jaxpr(order.median)(jnp.zeros((8, 9)), jnp.ones(8, bool)))
