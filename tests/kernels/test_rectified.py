"""ReLU of a convolution and its bias in one pass equals the three operations, and its derivatives theirs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels.conv import rectified, reference
from fedjax_sim_kernels.conv.gather import Sums, Tile
from fedjax_sim_kernels.conv.shapes import EDGE_CASES, MODELS, ConvShape
from on_accelerators import TRITON, lowered, primitives

NAMED = {case.name: case for case in (*EDGE_CASES, *MODELS)}
ONE_BLOCK = [
    NAMED["explicit"], NAMED["mixed-layout"], NAMED["transposed-dilated"], NAMED["1d-causal-dilated"],
    ConvShape("27-terms", 3, (9, 8), (3, 3), 3, 40),
    ConvShape("31-terms", 2, (40,), (31,), 1, 3),
]  # fmt: skip
SEVERAL = [
    NAMED["3d"], NAMED["window-is-image"],
    ConvShape("32-terms", 2, (40,), (32,), 1, 3),
    ConvShape("40-channels", 2, (6, 5), (3, 3), 40, 70, padding="SAME"),
    ConvShape("32-channels", 2, (6, 5), (2, 2), 32, 16),
]  # fmt: skip
ARGNUMS = [(0, 1, 2), (1, 2), (1,), (2,), (0,)]
SMALL = {
    "tile": Tile(rows=32, columns=16, depth=16),
    "sums": Sums(height=32, width=32, added=16, reach=48),
}


@pytest.fixture(autouse=True)
def masked_whatever_the_width(monkeypatch):
    """Where float32 is masked, too: it is exact enough to compare."""
    monkeypatch.setattr(rectified, "MASKED_BYTES", 4)


interpreted = functools.partial(rectified.conv, interpret="cuda", **SMALL)


def composed(x, kernel, bias, spec):
    features = spec.dimension_numbers.out_spec[1]
    shape = [1] * x.ndim
    shape[features] = bias.size
    return jax.nn.relu(reference.conv(x, kernel, spec) + bias.reshape(shape))


def arguments(case, *clients):
    x, kernel = case.arguments(0, *clients)
    bias = np.random.default_rng(2).standard_normal((*clients, case.out_channels))
    return x, kernel, jnp.asarray(bias, case.dtype)


def total(form, spec):
    def sum_of_sines(*given):
        y = form(*given, spec)
        # The cotangent depends on the value and on where it stands.
        return jnp.sum(jnp.sin(y + (jnp.arange(y.size) % 7).astype(y.dtype).reshape(y.shape)))

    return sum_of_sines


def value_and_gradients(form, spec, argnums=(0, 1, 2)):
    return lambda *given: (form(*given, spec), *jax.grad(total(form, spec), argnums)(*given))


def assert_same(actual, expected, tolerance=2e-5):
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        a, b = (np.asarray(leaf, np.float32) for leaf in (a, b))
        scale = np.max(np.abs(b), initial=1e-6)
        np.testing.assert_allclose(a / scale, b / scale, atol=tolerance)


@pytest.mark.parametrize("case", [*ONE_BLOCK, *SEVERAL], ids=lambda case: case.name)
def test_values_and_gradients(case):
    """By the kernels, and by what stands in for them on other devices."""
    given = arguments(case)
    for argnums in ARGNUMS:
        kernels, elsewhere, expected = (
            jax.jit(value_and_gradients(form, case.spec, argnums))(*given)
            for form in (interpreted, rectified.conv, composed)
        )
        assert 0.1 < np.mean(kernels[0] == 0) < 0.9
        assert_same(kernels, expected)
        assert_same(elsewhere, expected)


@pytest.mark.parametrize("case", [*ONE_BLOCK, *SEVERAL], ids=lambda case: case.name)
def test_weights_of_one_block_have_their_gradient_from_one_kernel(case):
    gradient = jax.grad(total(interpreted, case.spec), argnums=(1, 2))
    backward = ("rectified_tangent", "to_kernel") if case in ONE_BLOCK else ("sliding", "to_kernel")
    assert primitives(gradient, *arguments(case)) == sorted([("rectified_sliding", None), backward])


@pytest.mark.parametrize("case", [ONE_BLOCK[0], SEVERAL[-1]], ids=lambda case: case.name)
def test_gradients_by_images_read_masked_cotangents(case):
    gradient = jax.grad(total(interpreted, case.spec), argnums=(0, 1, 2))
    assert primitives(gradient, *arguments(case)) == [
        ("rectified_sliding", None), ("sliding", "to_kernel"), ("sliding", "to_x"),
    ]  # fmt: skip


@pytest.mark.parametrize("case", [ONE_BLOCK[1], ONE_BLOCK[4], SEVERAL[-1]], ids=lambda case: case.name)
def test_clients_of_their_own(case):
    given = arguments(case, 3)
    for argnums in ((0, 1, 2), (1, 2)):
        batched = jax.jit(jax.vmap(value_and_gradients(interpreted, case.spec, argnums)))(*given)
        alone = jax.jit(value_and_gradients(composed, case.spec, argnums))
        batched, leaves = jax.tree.map(np.asarray, (batched, given))
        for client in range(3):
            expected = alone(*(leaf[client] for leaf in leaves))
            assert_same([leaf[client] for leaf in batched], expected)


@pytest.mark.parametrize("axes", [(0, None, None), (None, 0, 0), (0, None, 0), (0, 0, None), (None, None, 0)])
@pytest.mark.parametrize("case", [ONE_BLOCK[0], SEVERAL[0]], ids=lambda case: case.name)
def test_what_clients_share(case, axes):
    """Gradients of their own, as for DP-SGD, and everybody's together."""
    given = arguments(case, 3)
    given = [leaf if axis == 0 else np.asarray(leaf)[0] for leaf, axis in zip(given, axes, strict=True)]
    for argnums in ((0, 1, 2), (1, 2)):
        actual, expected = (
            jax.jit(jax.vmap(value_and_gradients(form, case.spec, argnums), axes))(*given)
            for form in (interpreted, composed)
        )
        assert_same(actual, expected)

    def together(form):
        return lambda *given: jnp.sum(jax.vmap(total(form, case.spec), axes)(*given))

    actual, expected = (jax.jit(jax.grad(together(f), (1, 2)))(*given) for f in (interpreted, composed))
    assert_same(actual, expected)


def test_a_kernel_that_examples_share_is_not_copied_for_each():
    case = NAMED["explicit"]._replace(batch=1)
    xs, kernels, biases = arguments(case, 4)
    text = str(
        jax.make_jaxpr(lambda: jax.vmap(lambda x: interpreted(x, kernels[0], biases[0], case.spec))(xs))()
    )
    assert text.count("batch=4") == 1


@pytest.mark.parametrize("case", [ONE_BLOCK[0], SEVERAL[0]], ids=lambda case: case.name)
@pytest.mark.parametrize("clients", [(), (2,)], ids=["one", "vmap"])
def test_forward_and_second_derivatives(case, clients):
    given = arguments(case, *clients)
    tangents = [np.cos(3 * np.asarray(leaf)) for leaf in given]

    def derivatives(form):
        value = functools.partial(form, spec=case.spec)
        by_all, by_weights = (jax.grad(total(form, case.spec), argnums) for argnums in ((0, 1, 2), (1, 2)))

        def of(given, tangents):
            pairs = [jax.jvp(function, given, tangents) for function in (value, by_all, by_weights)]
            # Of the weights alone, and of the gradient's gradient.
            still = lambda *weights: value(given[0], *weights)  # noqa: E731
            squares = lambda *given: sum(jnp.sum(leaf**2) for leaf in by_weights(*given))  # noqa: E731
            return pairs, jax.jvp(still, given[1:], tangents[1:]), jax.grad(squares, (0, 1, 2))(*given)

        return jax.jit(jax.vmap(of) if clients else of)

    given, tangents = tuple(given), tuple(tangents)
    assert_same(*(derivatives(form)(given, tangents) for form in (interpreted, composed)))


@pytest.mark.parametrize("case", [ONE_BLOCK[0], SEVERAL[0]], ids=lambda case: case.name)
def test_nothing_passes_at_zero(case):
    """As for ``jax.nn.relu``, whose derivative there is zero and not a half."""
    x, kernel, bias = (np.round(np.asarray(leaf)) for leaf in arguments(case))
    before = reference.conv(x, kernel, case.spec) + bias
    assert np.sum(before == 0) > 10
    for argnums in ((0, 1, 2), (1, 2)):
        actual, expected = (
            jax.jit(jax.grad(lambda *given, form=form: jnp.sum(form(*given, case.spec)), argnums))(
                x, kernel, bias
            )
            for form in (interpreted, composed)
        )
        for a, b in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("case", [ONE_BLOCK[0], SEVERAL[0]], ids=lambda case: case.name)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_adds_up_in_float32(case, dtype):
    case = case._replace(dtype=dtype)
    given = arguments(case)
    wide = [np.asarray(leaf, np.float32) for leaf in given]
    shape = jax.eval_shape(lambda *given: composed(*given, case.spec), *wide).shape
    cotangent = np.random.default_rng(2).standard_normal(shape).astype(dtype)

    def value_and_pullback(form, start):
        def of(cotangent, *given):
            y, back = jax.vjp(lambda *rest: form(*given[:start], *rest, case.spec), *given[start:])
            return y, back(cotangent)

        return jax.jit(of)

    for start in (0, 1):
        y, actual = value_and_pullback(interpreted, start)(cotangent, *given)
        wide_y, expected = value_and_pullback(composed, start)(cotangent.astype(np.float32), *wide)
        assert {leaf.dtype for leaf in (y, *actual)} == {jnp.dtype(dtype)}
        np.testing.assert_allclose(np.asarray(y, np.float32), wide_y, rtol=2**-8, atol=1e-6)
        actual = [np.asarray(leaf, np.float32) for leaf in actual]
        assert_same(actual, expected, 2**-7)


@pytest.mark.parametrize("form", [interpreted, rectified.conv], ids=["kernels", "elsewhere"])
def test_what_is_not_a_number_stays(form):
    case = NAMED["explicit"]
    x, kernel, bias = arguments(case)
    assert np.all(np.isnan(form(x, kernel, bias.at[1].set(jnp.nan), case.spec)[..., 1]))


@pytest.mark.parametrize("clients", [None, 3])
@pytest.mark.parametrize(
    ("name", "argnums", "kept", "count"),
    [
        ("cifar10-1", (1, 2), (0, 1), 2), ("cifar10-2", (1, 2), (0, 1), 2), ("cifar10-1", (0, 1, 2), (0, 1, 2), 3),
        ("cifar10-1", (0, 1, 2), (1, 2), 2), ("cifar10-2", (0,), (0,), 2),
    ],
)  # fmt: skip
def test_it_lowers_for_a_gpu(name, argnums, kept, count, clients):
    """Without gradients that nobody keeps."""
    case = NAMED[name]
    given = arguments(case, *([] if clients is None else [clients]))

    def gradients(*given):
        found = jax.grad(total(rectified.conv, case.spec), argnums)(*given)
        return [found[place] for place in kept]

    text = lowered(gradients if clients is None else jax.vmap(gradients), *given)
    assert text.count(TRITON) == count


def test_terms_that_do_not_fit_are_an_error():
    case = SEVERAL[2]
    x, _, sliding = rectified.opened(*case.arguments(0), case.spec, *SMALL.values(), True)
    y = jnp.ones((1, 2 * 9, 3))
    with pytest.raises(ValueError, match=r"33 terms with the bias's do not fit one block of 32\."):
        rectified.correlated(x, y, sliding, y)
