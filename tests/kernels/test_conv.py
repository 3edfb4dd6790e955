"""Every form of a convolution equals the reference, value and gradients, over one list of shapes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import conv
from fedjax_sim_kernels.conv import dispatch, overlap, reference, shifted, slices, winograd
from fedjax_sim_kernels.conv.shapes import EDGE_CASES, MODELS
from gradients import assert_equal, value_and_gradients

FORMS = {"slices": slices, "winograd": winograd, "shifted": shifted, "overlap": overlap}
SUPPORTED = [
    (name, case)
    for name, form in FORMS.items()
    for case in EDGE_CASES
    if form.supports(*case.arguments(0), case.spec)
]
CASES = pytest.mark.parametrize(("form", "case"), SUPPORTED, ids=[f"{n}-{c.name}" for n, c in SUPPORTED])


@CASES
def test_a_form_equals_the_reference(form, case):
    x, kernel = case.arguments(0)
    assert_equal(
        value_and_gradients(FORMS[form].conv, case.spec, x, kernel),
        value_and_gradients(reference.conv, case.spec, x, kernel),
    )


@CASES
def test_a_form_equals_the_reference_under_vmap_over_kernels(form, case):
    x, kernel = case.arguments(0, 3)
    batched = jax.vmap(lambda x, k: value_and_gradients(FORMS[form].conv, case.spec, x, k))(x, kernel)
    batched, x, kernel = jax.tree.map(np.asarray, (batched, x, kernel))
    for client in range(3):
        expected = value_and_gradients(reference.conv, case.spec, x[client], kernel[client])
        assert_equal([leaf[client] for leaf in batched], expected)


@CASES
def test_forward_mode_equals_the_reference(form, case):
    primals, tangents = case.arguments(0), case.arguments(1)

    def tangent(function):
        return jax.jit(
            lambda p, t: jax.jvp(lambda x, k: function(x, k, case.spec), p, t)[1]
        )(primals, tangents)  # fmt: skip

    np.testing.assert_allclose(tangent(FORMS[form].conv), tangent(reference.conv), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_the_form_that_is_used_equals_the_reference(case):
    x, kernel = case.arguments(0)
    assert conv.choose(x, kernel, case.spec)[0] != "reference"
    assert_equal(
        value_and_gradients(conv.conv, case.spec, x, kernel),
        value_and_gradients(reference.conv, case.spec, x, kernel),
    )


@pytest.mark.parametrize("case", MODELS, ids=lambda case: case.name)
def test_no_convolution_is_left_in_the_compiled_loop(case):
    x, kernel = case.arguments(0, 2)
    if conv.choose(*case.arguments(0), case.spec)[0] == "vendor":
        pytest.skip("this backend's own convolution was measured to be the fastest")

    def train(x, kernel):
        def step(_, kernel):
            total = lambda k, x: jnp.sum(conv.conv(x, k, case.spec) ** 2)  # noqa: E731
            return kernel - 0.1 * jax.vmap(jax.grad(total))(kernel, x)

        return jax.lax.fori_loop(0, 3, step, kernel)

    assert "convolution" not in jax.jit(train).lower(x, kernel).as_text()


@pytest.mark.parametrize("form", ["slices", "shifted", "overlap"])
def test_narrow_types_and_wide_sums(form):
    """bfloat16 stays bfloat16, unless a wider type of the sums is asked for."""
    case = next(c for c in EDGE_CASES if c.name == ("transposed" if form == "overlap" else "same"))
    x, kernel = (a.astype(jnp.bfloat16) for a in case.arguments(0))
    assert FORMS[form].conv(x, kernel, case.spec).dtype == jnp.bfloat16
    wide = case.spec._replace(preferred_element_type=jnp.dtype("float32"))
    got, expected = FORMS[form].conv(x, kernel, wide), reference.conv(x, kernel, wide)
    assert got.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=1e-5)


def test_narrow_types_are_left_to_forms_that_transform_nothing():
    case = next(c for c in MODELS if c.name == "emnist-2")
    x, kernel = case.arguments(0)
    assert conv.choose(x, kernel, case.spec)[0] == "winograd"
    narrow = (x.astype(jnp.bfloat16), kernel.astype(jnp.bfloat16))
    assert conv.choose(*narrow, case.spec)[0] == "slices" and not winograd.supports(*narrow, case.spec)


def test_what_has_no_form_is_the_reference():
    case = next(c for c in EDGE_CASES if c.name == "same")
    x, kernel = case.arguments(0)
    groups_of_rows = case.spec._replace(batch_group_count=2)
    assert conv.choose(x, kernel, groups_of_rows)[0] == "reference"
    assert conv.choose(x.astype(jnp.int32), kernel.astype(jnp.int32), case.spec)[0] == "reference"
    large = jnp.zeros((17, 17, 1, 4))
    assert conv.choose(x, large, case.spec) == ("reference", "a window of 17 x 17")
    tiles = case.spec._replace(strides=(17, 17))
    assert conv.choose(x, large, tiles)[0] != "reference"
    assert dispatch.MOST_OFFSETS < 17 * 17
