import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels.lstm import hoisted, reference
from fedjax_sim_kernels.lstm.shapes import EDGE_CASES, MODELS


def arguments(case, *batch, seed=0):
    first, second = jax.random.split(jax.random.key(seed))
    scale = case.size**-0.5
    return jax.random.normal(first, (*batch, *case.inputs)), scale * jax.random.normal(
        second, (*batch, *case.recurrent)
    )


@functools.partial(jax.jit, static_argnums=0)
def value_and_gradients(lstm, inputs, recurrent):
    def total(inputs, recurrent):
        hidden = lstm(inputs, recurrent)
        return jnp.sum(jnp.sin(3 * hidden)), hidden

    gradients, hidden = jax.grad(total, argnums=(0, 1), has_aux=True)(inputs, recurrent)
    return hidden, *gradients


def assert_equal(actual, expected):
    for name, a, b in zip(("value", "inputs", "recurrent"), actual, expected, strict=True):
        scale = np.maximum(np.max(np.abs(b)), 1e-6)
        np.testing.assert_allclose(a / scale, b / scale, atol=2e-5, err_msg=name)


@pytest.mark.parametrize("case", EDGE_CASES + MODELS, ids=lambda case: case.name)
def test_hoisted_equals_the_reference(case):
    args = arguments(case)
    assert_equal(value_and_gradients(hoisted.lstm, *args), value_and_gradients(reference.lstm, *args))


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_hoisted_equals_the_reference_under_vmap_over_matrices(case):
    inputs, recurrent = arguments(case, 3)
    batched = jax.vmap(functools.partial(value_and_gradients, hoisted.lstm))(inputs, recurrent)
    for client in range(3):
        expected = value_and_gradients(reference.lstm, inputs[client], recurrent[client])
        assert_equal([leaf[client] for leaf in batched], expected)


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_hoisted_equals_the_reference_under_vmap_over_inputs(case):
    """Of one matrix, differentiated after ``vmap``."""
    inputs, recurrent = jax.random.normal(jax.random.key(2), (3, *case.inputs)), arguments(case)[1]
    actual, expected = (
        value_and_gradients(jax.vmap(lstm, in_axes=(0, None)), inputs, recurrent)
        for lstm in (hoisted.lstm, reference.lstm)
    )
    assert_equal(actual, expected)


@pytest.mark.parametrize("case", EDGE_CASES, ids=lambda case: case.name)
def test_forward_mode_equals_the_reference(case):
    primals, tangents = arguments(case), arguments(case, seed=1)
    actual, expected = (jax.jvp(lstm, primals, tangents)[1] for lstm in (hoisted.lstm, reference.lstm))
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)


def test_the_loops_carry_no_gradient_of_the_matrix():
    inputs, recurrent = arguments(EDGE_CASES[0])
    size = EDGE_CASES[0].size

    def carried(lstm):
        jaxpr = jax.make_jaxpr(jax.grad(lambda r: jnp.sum(lstm(inputs, r))))(recurrent).jaxpr
        scans = [equation for equation in jaxpr.eqns if equation.primitive.name == "scan"]
        assert scans
        return [tuple(out.aval.shape) for scan in scans for out in scan.outvars]

    assert (size, 4 * size) in carried(reference.lstm)
    assert (size, 4 * size) not in carried(hoisted.lstm)
