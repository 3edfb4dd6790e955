"""How programs are to be compiled: options of the compiler by backend; TPUs take its defaults."""

from __future__ import annotations

import functools
import os

import jax
from fedjax_sim_kernels import backends

from fedjax_sim._src import machine

Options = dict[str, bool | int | str]

_TINY_STEP = 1e5
"""Operations of a client's step below which its products are over before another thread has heard of them."""

_RECORDED = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL,WHILE"
"""Operations that a GPU replays from a recording: the compiler's default, and loops and branches."""


def compiler_options(platform: str, step_flops: float, devices: int) -> Options | None:
    """Options for local steps of so many operations, on so many devices of a platform; ``None`` for the compiler's own."""
    if platform == "cpu":
        return cpu_options(step_flops, devices)
    return gpu_options() if platform == "gpu" and backends.current() == "nvidia" else None


def cpu_options(step_flops: float, devices: int) -> Options:
    """Options of the compiler for local steps of so many operations, on so many virtual devices.

    Parameters are updated in place, where the compiler's default copies them before every step. Several devices have
    one thread each: a pool of threads inside each would take the cores from the others. Nor have tiny steps a pool, and their
    products are not handed to a library that has one: where there is a second core to hand to it takes up to twice as
    long, and where there is none it is the faster way. Figures are in ``docs/decisions/0023-tiny-steps.md``.
    """
    options: Options = {"xla_cpu_copy_insertion_use_region_analysis": True}
    tiny = step_flops <= _TINY_STEP and machine.cores() > 1
    if devices > 1 or tiny:
        options["xla_cpu_multi_thread_eigen"] = False
    without_library: Options = {"xla_cpu_experimental_ynn_fusion_type": ""}
    if tiny and _known(*without_library):
        options |= without_library
    return options


def gpu_options() -> Options:
    """Loops are recorded, too: else the host reads the predicate of a loop of unknown length before every iteration.

    What ``XLA_FLAGS`` says of recordings stands. Figures are in ``docs/decisions/0025-convolutions-on-a-gpu.md``.
    """
    options: Options = {"xla_gpu_enable_command_buffer": _RECORDED, "xla_gpu_graph_min_graph_size": 2}
    if any(name in os.environ.get("XLA_FLAGS", "") for name in options):
        return {}
    return options if all(_known(name, value) for name, value in options.items()) else {}


def once_options(platform: str) -> Options | None:
    """Options for a program that runs once, as that of a model's first weights does; ``None`` for the compiler's own.

    On CPU all of LLVM's optimizations of a random array take 0.7 s, and the array comes no faster: of the EMNIST CNN 1.45 s
    against 0.58, the same bits. Who asks JAX to leave most optimizations out has fewer still.
    """
    if platform != "cpu" or jax.config.read("jax_disable_most_optimizations"):
        return None
    return {"xla_backend_optimization_level": 1}


@functools.cache
def _known(option: str, value: bool | int | str = "") -> bool:
    """Whether this version's compiler has an option and takes a value for it."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
