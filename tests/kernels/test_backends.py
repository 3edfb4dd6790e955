"""Which form each backend takes: the tables', in the program that is made, with the values of the reference."""

import importlib.util
from types import SimpleNamespace
from typing import get_args

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import backends, clipping, conv, modular, order, packing
from fedjax_sim_kernels.clipping import dispatch as clipping_dispatch
from fedjax_sim_kernels.clipping import reference as clipping_reference
from fedjax_sim_kernels.conv import shapes as conv_shapes
from fedjax_sim_kernels.modular import dispatch as modular_dispatch
from fedjax_sim_kernels.modular import reference as modular_reference
from fedjax_sim_kernels.order import dispatch as order_dispatch
from fedjax_sim_kernels.order import reference as order_reference
from on_accelerators import TRITON, lowered

import fedjax_sim as fs

KEY = jax.random.key(0)
BACKENDS = get_args(backends.Backend)
FEW = order_dispatch.FORMS["nvidia"].most_rows
PLATFORMS = {"cpu": "cpu", "nvidia": "cuda", "other": "tpu"}


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    monkeypatch.setattr(backends, "current", lambda: request.param)
    return request.param


@pytest.fixture(autouse=True)
def usual_precision():
    """What is chosen depends on the precision, which somebody may have set for all tests of a GPU."""
    with jax.default_matmul_precision("default"):
        yield


# --- the question --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("platform", "kind", "capability", "expected"),
    [
        ("cpu", "cpu", None, "cpu"),
        ("gpu", "NVIDIA H200", "9.0", "nvidia"),
        ("gpu", "NVIDIA A100-SXM4-40GB", "8.0", "nvidia"),
        ("gpu", "NVIDIA B200", "10.0", "nvidia"),
        ("gpu", "NVIDIA TITAN V", "7.0", "other"),
        ("gpu", "Tesla T4", "7.5", "other"),
        ("gpu", "AMD Instinct MI300X", "gfx942", "other"),
        ("tpu", "TPU v5 lite", None, "other"),
    ],
)
def test_which_devices_are_what(monkeypatch, platform, kind, capability, expected):
    device = SimpleNamespace(device_kind=kind, compute_capability=capability)
    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert backends.current() == expected


def test_without_triton_no_gpu_takes_pallas(monkeypatch):
    """JAX announces that a later version will not have it."""
    device = SimpleNamespace(device_kind="NVIDIA H200", compute_capability="9.0")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert backends.current() == "other"


# --- the answer ----------------------------------------------------------------------------------------------


def floats(*shape):
    return jax.random.normal(KEY, shape)


def words(*shape):
    return jax.random.bits(KEY, shape, "uint32") % jnp.uint32(1_000_003)


CALLS = {
    "clipping": (
        clipping.clip_and_sum, clipping_reference.clip_and_sum, (floats(3, 10, 700), jnp.ones((3, 10)), jnp.full(3, 2.0)),
    ),
    "modular": (
        lambda rows, valid: modular.masked_sum(rows, valid, 1_000_003),
        lambda rows, valid: modular_reference.masked_sum(rows, valid, 1_000_003),
        (words(3, 10, 700), jnp.arange(30).reshape(3, 10) % 3 != 2),
    ),
    "packing": (
        lambda x, uniform: packing.quantise_and_pack(x, uniform, 4), None,
        (floats(3, 700), jnp.full((3, 700), 0.5)),
    ),
    "median": (
        order.median, order_reference.median, (floats(3, 10, 700), jnp.arange(30).reshape(3, 10) % 4 != 1),
    ),
    "trimmed mean": (
        lambda rows, valid: order.trimmed_mean(rows, valid, 2),
        lambda rows, valid: order_reference.trimmed_mean(rows, valid, 2),
        (floats(3, 10, 700), jnp.arange(30).reshape(3, 10) % 4 != 1),
    ),
}  # fmt: skip
LOOPS = {"cpu": {"clipping", "modular"}, "nvidia": set(), "other": set()}
SORTS = {"cpu": set(), "nvidia": set(), "other": {"median", "trimmed mean"}}
COUNTS = {"cpu": set(), "nvidia": {"median", "trimmed mean"}, "other": set()}


@pytest.mark.parametrize("clients", [False, True], ids=["one", "vmap"])
@pytest.mark.parametrize("name", CALLS)
def test_the_program_is_of_the_form_that_the_table_says(backend, name, clients):
    function, _, arguments = CALLS[name]
    if clients:
        function = jax.vmap(function)
    else:
        arguments = jax.tree.map(lambda leaf: leaf[0], arguments)
    text = lowered(function, *arguments, platform=PLATFORMS[backend])
    assert text.count(TRITON) == (name in COUNTS[backend])
    assert ("stablehlo.sort" in text) == (name in SORTS[backend])
    if name in ("clipping", "modular"):
        assert ("stablehlo.while" in text) == (name in LOOPS[backend])


@pytest.mark.parametrize("name", [name for name in CALLS if name != "packing"])
def test_values_are_those_of_the_reference_under_vmap(backend, name):
    function, reference, arguments = CALLS[name]
    actual, expected = jax.jit(jax.vmap(lambda *a: function(*a)))(*arguments), jax.vmap(reference)(*arguments)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("table", [clipping_dispatch.FORMS, modular_dispatch.FORMS, order_dispatch.FORMS])
def test_every_table_has_every_backend(table):
    assert table.keys() == set(BACKENDS)


# --- few rows, on NVIDIA GPUs --------------------------------------------------------------------------------


@pytest.fixture
def nvidia(monkeypatch):
    monkeypatch.setattr(backends, "current", lambda: "nvidia")


@pytest.mark.parametrize(("rows", "form"), [(1, "pallas"), (FEW, "pallas"), (FEW + 1, "reference")])
def test_few_rows_are_counted_and_more_are_sorted(nvidia, rows, form):
    x, valid = floats(rows, 300), jnp.ones(rows, bool)
    assert order.choose(x) == form
    assert lowered(order.median, x, valid).count(TRITON) == (form == "pallas")


def test_other_types_are_sorted(nvidia):
    assert order.choose(jnp.ones((4, 9), jnp.bfloat16)) == "reference"


@pytest.mark.parametrize("platform", ["cpu", "rocm", "tpu"])
def test_a_program_for_another_platform_than_the_machines_gpu_is_sorted(nvidia, platform):
    text = lowered(order.median, floats(4, 300), jnp.ones(4, bool), platform=platform)
    assert TRITON not in text and "stablehlo.sort" in text


def test_a_trim_may_be_traced(nvidia):
    rows, valid = floats(9, 50), jnp.ones(9, bool)
    trimmed = jax.jit(jax.vmap(lambda trim: order.trimmed_mean(rows, valid, trim)))(jnp.arange(3))
    for trim in range(3):
        expected = order_reference.trimmed_mean(rows, valid, trim)
        np.testing.assert_allclose(trimmed[trim], expected, rtol=1e-5, atol=1e-6)


CONVOLUTIONS = {
    "emnist-2": {"cpu": "winograd", "nvidia": "pallas", "other": "slices"},
    "emnist-1": {"cpu": "slices", "nvidia": "pallas", "other": "slices"},
    "resnet-down": {"cpu": "slices", "nvidia": "slices", "other": "slices"},
    "decoder": {"cpu": "overlap", "nvidia": "overlap", "other": "overlap"},
    "mobilenet": {"cpu": "shifted", "nvidia": "vendor", "other": "shifted"},
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_form_of_a_convolution(backend, name):
    case = next(case for case in conv_shapes.MODELS if case.name == name)
    x, kernel = case.arguments(0)
    assert conv.choose(x, kernel, case.spec) == (CONVOLUTIONS[name][backend], "")


@pytest.mark.parametrize("asked", ["default", "highest"])
def test_tensor_cores_are_not_for_who_asks_for_float32(monkeypatch, asked):
    monkeypatch.setattr(backends, "current", lambda: "nvidia")
    case = next(case for case in conv_shapes.MODELS if case.name == "emnist-2")
    x, kernel = case.arguments(0)
    form = {"default": "pallas", "highest": "slices"}[asked]
    assert conv.choose(x, kernel, case.spec._replace(precision=jax.lax.Precision(asked)))[0] == form
    with jax.default_matmul_precision(asked):
        assert conv.choose(x, kernel, case.spec)[0] == form


def test_a_whole_model_lowers_for_a_gpu(monkeypatch):
    """A client's step of the CIFAR10 CNN, under vmap over clients, with its gradient, dropout and pooling."""
    monkeypatch.setattr(backends, "current", lambda: "nvidia")
    task = fs.tasks.classification(fs.models.cifar10_cnn(), sample_input=jnp.zeros((1, 32, 32, 3)))
    variables = jax.eval_shape(task.init, KEY)
    batch = {
        "x": jax.ShapeDtypeStruct((3, 10, 32, 32, 3), jnp.uint8), "y": jax.ShapeDtypeStruct((3, 10), jnp.int32),
        "mask": jax.ShapeDtypeStruct((3, 10), bool),
    }  # fmt: skip
    own = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), variables)
    step = jax.vmap(lambda variables, batch: fs.rules.gradient(task, variables, batch, jax.random.key(1))[0])
    text = lowered(step, own, batch)
    # Two results, two gradients by weights, one by images: nobody needs that of the first layer.
    assert text.count(TRITON) == 5
