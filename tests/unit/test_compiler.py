"""What the CPU's compiler is asked, and sums that travel together."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from fedjax_sim_kernels import backends

import fedjax_sim as fs
from fedjax_sim._src import machine
from fedjax_sim.engines import _chunk, _compiler
from fedjax_sim.engines._costs import step_flops

ONE_THREAD = {"xla_cpu_multi_thread_eigen": False}
NO_LIBRARY = {"xla_cpu_experimental_ynn_fusion_type": ""}
IN_PLACE = {"xla_cpu_copy_insertion_use_region_analysis": True}


@pytest.mark.parametrize(
    ("flops", "devices", "cores", "expected"),
    [
        (1e4, 1, 1, IN_PLACE),
        (1e4, 1, 2, IN_PLACE | ONE_THREAD | NO_LIBRARY),
        (1e4, 2, 2, IN_PLACE | ONE_THREAD | NO_LIBRARY),
        (1e7, 1, 2, IN_PLACE),
        (1e7, 2, 2, IN_PLACE | ONE_THREAD),
    ],
)
def test_only_tiny_steps_beside_a_second_core_do_without_threads(
    monkeypatch, flops, devices, cores, expected
):
    monkeypatch.setattr(machine, "cores", lambda: cores)
    monkeypatch.setattr(_compiler, "_known", lambda option: True)
    assert _compiler.cpu_options(flops, devices) == expected


def test_what_runs_once_is_optimised_less(monkeypatch):
    """But not more than somebody asked JAX for, as this suite does."""
    assert _compiler._known("xla_backend_optimization_level", 1)
    for least in (False, True):
        monkeypatch.setattr(jax.config, "read", {"jax_disable_most_optimizations": least}.get)
        assert _compiler.once_options("cpu") == (None if least else {"xla_backend_optimization_level": 1})
        assert _compiler.once_options("gpu") is None


def test_an_option_that_the_compiler_does_not_know_is_not_asked_for(monkeypatch):
    assert not _compiler._known("xla_cpu_no_such_option")
    monkeypatch.setattr(machine, "cores", lambda: 2)
    monkeypatch.setattr(_compiler, "_known", lambda option: False)
    assert _compiler.cpu_options(1e4, 1) == IN_PLACE | ONE_THREAD


def test_a_gpu_records_loops_where_its_compiler_can(monkeypatch):
    """This version's compiler knows the names, for whatever device it compiles."""
    monkeypatch.setenv("XLA_FLAGS", "")
    assert _compiler.compiler_options("gpu", 1e7, 1) is None  # of another maker
    monkeypatch.setattr(backends, "current", lambda: "nvidia")
    options = _compiler.compiler_options("gpu", 1e7, 1)
    assert options is not None and "WHILE" in str(options["xla_gpu_enable_command_buffer"])
    assert not _compiler._known("xla_gpu_enable_command_buffer", "NO_SUCH_OPERATION")
    with monkeypatch.context() as older:
        older.setattr(_compiler, "_known", lambda option, value: False)
        assert _compiler.compiler_options("gpu", 1e7, 1) == {}
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_enable_command_buffer=")
    assert _compiler.compiler_options("gpu", 1e7, 1) == {}  # what somebody asked for stands
    assert _compiler.compiler_options("tpu", 1e7, 1) is None


def test_what_the_compiler_is_asked_changes_rounding_alone(monkeypatch):
    data = fs.data.digits(5, seed=0)
    task = fs.tasks.classification(fs.models.linear(classes=10))

    def weights(cores: int):
        monkeypatch.setattr(machine, "cores", lambda: cores)
        sim = fs.Simulation(
            fs.algorithms.fedavg(task, optax.sgd(0.1)), data.train, cohort=fs.cohorts.uniform(3)
        )
        state, _ = sim.run(sim.init(0), rounds=2)
        assert (
            step_flops(sim._problem, state) <= _compiler._TINY_STEP
        )  # else it would be asked the same twice
        return jax.tree.leaves(sim.algorithm.params(state.server))

    for one, two in zip(weights(1), weights(2), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_small_arrays_travel_together_and_sums_stay_sums():
    most = _chunk.TOGETHER // 4
    values = {
        "weights": jnp.arange(4 * (most + 1), dtype=jnp.float32).reshape(4, most + 1) / 7,
        "bias": jnp.arange(8.0).reshape(4, 2),
        "counted": jnp.arange(4, dtype=jnp.int32),
        "modular": jnp.full((4, 3), 2**31, jnp.uint32),
        "whole": jnp.ones((4, 2, 3)),
        "nothing": jnp.zeros((4, 0)),
    }
    over_devices = jax.vmap(lambda tree: _chunk.summed(tree, "devices"), axis_name="devices")
    alone = jax.vmap(lambda tree: jax.lax.psum(tree, "devices"), axis_name="devices")
    jax.tree.map(np.testing.assert_array_equal, over_devices(values), alone(values))
    assert {name: x.dtype for name, x in over_devices(values).items()} == {
        name: x.dtype for name, x in values.items()
    }
    one = jax.tree.map(lambda x: x[0], values)
    program = jax.make_jaxpr(lambda tree: _chunk.summed(tree, "devices"), axis_env=[("devices", 4)])(one)
    met = [step for step in program.eqns if step.primitive.name.startswith("psum")]
    assert len(met) == 4  # float32, int32 and uint32 together, and the large one
