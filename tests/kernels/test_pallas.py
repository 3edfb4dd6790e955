"""Pallas forms: the convolution equals its reference, and every form lowers for an NVIDIA GPU or a TPU, where none is needed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels.clipping import pallas as clipping
from fedjax_sim_kernels.clipping import pallas_tpu as clipping_tpu
from fedjax_sim_kernels.conv import pallas as conv
from fedjax_sim_kernels.conv import pallas_tpu as conv_tpu
from fedjax_sim_kernels.conv import reference
from fedjax_sim_kernels.conv.shapes import EDGE_CASES, MODELS
from fedjax_sim_kernels.modular import pallas as modular
from fedjax_sim_kernels.modular import pallas_tpu as modular_tpu
from fedjax_sim_kernels.order import pallas as order
from fedjax_sim_kernels.order import pallas_tpu as order_tpu
from fedjax_sim_kernels.packing import pallas as packing
from fedjax_sim_kernels.packing import pallas_tpu as packing_tpu
from gradients import assert_equal, value_and_gradients
from on_accelerators import MOSAIC, TRITON, lowered

NAMED = {case.name: case for case in (*EDGE_CASES, *MODELS)}
SUPPORTED = [case for case in EDGE_CASES if conv.supports(*case.arguments(0), case.spec)]

gpu = functools.partial(conv.conv, interpret="cuda")
tpu = functools.partial(conv.conv, interpret="tpu")
on_both = pytest.mark.parametrize("interpreted", [gpu, tpu], ids=["gpu", "tpu"])


@on_both
@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_the_convolution_equals_the_reference(interpreted, case):
    x, kernel = case.arguments(0)
    assert_equal(
        value_and_gradients(interpreted, case.spec, x, kernel),
        value_and_gradients(reference.conv, case.spec, x, kernel),
    )


@on_both
@pytest.mark.parametrize("name", ["same-strided", "transposed-dilated", "mixed-layout"])
def test_the_convolution_equals_the_reference_under_vmap_over_kernels(interpreted, name):
    case = NAMED[name]
    x, kernel = case.arguments(0, 3)
    batched = jax.vmap(lambda x, k: value_and_gradients(interpreted, case.spec, x, k))(x, kernel)
    batched, x, kernel = jax.tree.map(np.asarray, (batched, x, kernel))
    for client in range(3):
        expected = value_and_gradients(reference.conv, case.spec, x[client], kernel[client])
        assert_equal([leaf[client] for leaf in batched], expected)


def test_channels_and_rows_of_several_blocks_on_a_gpu():
    case = NAMED["resnet-3x3"]._replace(batch=2, in_channels=40, out_channels=70)
    tile, sums = conv.Tile(rows=64, columns=32, depth=16), conv.Sums(height=16, width=32, added=32, reach=64)
    assert case.in_channels % tile.depth and case.out_channels % tile.columns and case.batch * 64 > sums.reach
    x, kernel = case.arguments(0)
    assert_equal(
        value_and_gradients(functools.partial(gpu, tile=tile, sums=sums), case.spec, x, kernel),
        value_and_gradients(reference.conv, case.spec, x, kernel),
    )


def test_images_and_rows_of_several_blocks_on_a_tpu(monkeypatch):
    """The last block has images that are not there, and the last rows of a block are none's."""
    monkeypatch.setattr(conv_tpu, "BLOCK", 400)
    monkeypatch.setattr(conv_tpu, "CHUNK", 48)
    case = NAMED["resnet-down"]._replace(batch=5, image=(9, 11))
    x, kernel = case.arguments(0)
    lying = conv_tpu.layout_of(conv.opened(x, kernel, case.spec, conv.TILE, conv.SUMS, "tpu")[2])
    assert lying.images == 2 and lying.blocks == 3 and lying.rows // lying.chunk == 2
    assert_equal(
        value_and_gradients(tpu, case.spec, x, kernel),
        value_and_gradients(reference.conv, case.spec, x, kernel),
    )


@on_both
def test_the_convolution_has_forward_and_second_derivatives(interpreted):
    case = NAMED["explicit"]
    x, kernel = case.arguments(0)

    def derivatives(form):
        def of(*primals):
            total = lambda x, k: jnp.sum(jnp.sin(form(x, k, case.spec)))  # noqa: E731
            ones = tuple(map(jnp.ones_like, primals))
            forward = jax.jvp(functools.partial(form, spec=case.spec), primals, ones)
            return forward, jax.jvp(jax.grad(total, argnums=(0, 1)), primals, ones)

        return jax.jit(of)(x, kernel)

    for actual, expected in zip(
        *map(jax.tree.leaves, map(derivatives, (interpreted, reference.conv))), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@on_both
def test_a_kernel_that_all_clients_share(interpreted):
    case = NAMED["explicit"]
    x, kernel = case.arguments(0, 3)
    actual, expected = (
        jax.jit(jax.vmap(lambda x, k, form=form: form(x, k, case.spec), in_axes=(0, None)))(x, kernel[0])
        for form in (interpreted, reference.conv)
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", SUPPORTED, ids=lambda case: case.name)
def test_where_pallas_cannot_be_compiled_the_same_comes_out(case):
    """A model that was rewritten for the machine's GPU may run on its CPU."""
    x, kernel = case.arguments(0)
    assert_equal(
        value_and_gradients(conv.conv, case.spec, x, kernel),
        value_and_gradients(reference.conv, case.spec, x, kernel),
    )


def test_a_kernel_that_examples_share_is_not_copied_for_each():
    """Whose gradients differ, as for DP-SGD."""
    case = NAMED["explicit"]._replace(batch=1)
    xs, kernels = case.arguments(0, 4)

    def gradients(form):
        total = lambda k, x: jnp.sum(jnp.sin(form(x, k, case.spec)))  # noqa: E731
        return jax.jit(jax.vmap(jax.grad(total), in_axes=(None, 0)))(kernels[0], xs)

    np.testing.assert_allclose(gradients(gpu), gradients(reference.conv), rtol=1e-4, atol=1e-4)
    text = str(jax.make_jaxpr(lambda: jax.vmap(lambda x: gpu(x, kernels[0], case.spec))(xs))())
    assert text.count("batch=4") == 1


@on_both
def test_bfloat16_adds_up_in_float32(interpreted):
    case = NAMED["resnet-3x3"]._replace(batch=1, in_channels=96)
    x, kernel = (a.astype(jnp.bfloat16) for a in case.arguments(0))
    actual = interpreted(x, kernel, case.spec)
    expected = reference.conv(x.astype(jnp.float32), kernel.astype(jnp.float32), case.spec)
    assert actual.dtype == jnp.bfloat16
    np.testing.assert_allclose(actual.astype(jnp.float32), expected, rtol=2**-8, atol=1e-2)


@pytest.mark.parametrize("name", ["groups", "depthwise", "empty-batch", "3x3-above-image"])
def test_what_the_convolution_does_not_support(name):
    assert not conv.supports(*NAMED[name].arguments(0), NAMED[name].spec)


def floats(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


ROWS = jax.ShapeDtypeStruct((10,), jnp.bool_)
EMNIST = NAMED["emnist-2"]


def sums(clipping, packing, modular, order):
    """Calls of the kernels for sums over a cohort, and what they are given."""
    words = jax.ShapeDtypeStruct((10, 5000), jnp.uint32)
    return {
        "clipping": (clipping.clip_and_sum, (floats(10, 5000), floats(10), floats())),
        "packing": (
            lambda x, uniform: packing.quantise_and_pack(x, uniform, 4),
            (floats(5000), floats(5000)),
        ),
        "modular sum": (lambda rows, valid: modular.masked_sum(rows, valid, 1_000_003), (words, ROWS)),
        "median": (order.median, (floats(10, 5000), ROWS)),
        "trimmed mean": (lambda rows, valid: order.trimmed_mean(rows, valid, 2), (floats(10, 5000), ROWS)),
    }


CONVOLUTION = {
    "convolution": (
        lambda x, kernel: value_and_gradients(conv.conv, EMNIST.spec, x, kernel),
        EMNIST.arguments(0),
    )
}
ON_GPUS = CONVOLUTION | sums(clipping, packing, modular, order)
ON_TPUS = CONVOLUTION | sums(clipping_tpu, packing_tpu, modular_tpu, order_tpu)
CALLS = {"convolution": 3, "clipping": 2}


def kernels_called(name, clients, forms, call, platform):
    function, arguments = forms[name]
    if clients is not None:
        function = jax.vmap(function)
        arguments = jax.tree.map(lambda x: jax.ShapeDtypeStruct((clients, *x.shape), x.dtype), arguments)
    return lowered(function, *arguments, platform=platform).count(call)


@pytest.mark.parametrize("clients", [None, 3])
@pytest.mark.parametrize("name", ON_GPUS)
def test_every_form_lowers_for_a_gpu(name, clients):
    """To Triton's program, which a GPU's compiler takes from there; also with an axis of clients in front."""
    assert kernels_called(name, clients, ON_GPUS, TRITON, "cuda") == CALLS.get(name, 1)


@pytest.mark.parametrize("clients", [None, 3])
@pytest.mark.parametrize("name", ON_TPUS)
def test_every_form_lowers_for_a_tpu(name, clients):
    """To Mosaic's program."""
    assert kernels_called(name, clients, ON_TPUS, MOSAIC, "tpu") == CALLS.get(name, 1)


LARGE = NAMED["emnist-2"]._replace(batch=1, image=(224, 224))
WIDE = NAMED["resnet-3x3"]._replace(batch=1, in_channels=200, out_channels=40)


@pytest.mark.parametrize(
    "case", [LARGE, WIDE, EMNIST._replace(dtype="float16")], ids=["large", "wide", "float16"]
)
def test_what_a_tpus_kernels_do_not_support_is_left_to_xla(case):
    run = functools.partial(conv.conv, spec=case.spec)
    arguments = (jax.ShapeDtypeStruct(shape, case.dtype) for shape in (case.x, case.kernel))
    assert conv.supports(*case.arguments(0), case.spec)
    assert lowered(run, *arguments, platform="tpu").count(MOSAIC) == 0
