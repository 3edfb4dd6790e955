"""What a program would be on an NVIDIA GPU or on a TPU, found out where there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
from jax.extend.core import jaxprs_in_params

TRITON = "__gpu$xla.gpu.triton"
MOSAIC = "tpu_custom_call"
"""The calls that a Pallas kernel becomes on a GPU and on a TPU."""


def lowered(function: Callable[..., Any], *arguments: Any, platform: str = "cuda") -> str:
    """The program's text, traced anew: JAX keeps traces by function, and what a function chooses may have changed."""
    # From jax 0.11 Pallas wants to know the device, for TPUs before that, too.
    kind, name = ("TPU v5 lite", "tpu") if platform == "tpu" else ("NVIDIA H200", "gpu")
    device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=None, platform=name)
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(lambda *given: function(*given)).trace(*arguments)
        return traced.lower(lowering_platforms=(platform,)).as_text()


def primitives(function: Callable[..., Any], *arguments: Any) -> list[tuple[str, str | None]]:
    """The operations of a program that convolutions become: names, with the layout where there is one."""
    found = []

    def visit(program: Any) -> None:
        for equation in program.eqns:
            name = equation.primitive.name
            if name == "sliding" or name.startswith("rectified"):
                found.append((name, equation.params.get("layout")))
            for inner in jaxprs_in_params(equation.params):
                visit(inner)

    visit(jax.make_jaxpr(lambda *given: function(*given))(*arguments))
    return sorted(found, key=str)
