"""Where programs will run: the columns of the kernels' tables.

Asked while a kernel is traced. ``lax.platform_dependent`` would ask when a program is lowered, but it traces every form on
every machine: importing Pallas where there is no GPU, and writing out a hundred rows for a form that is then not taken.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Literal

import jax

Backend = Literal["cpu", "nvidia", "other"]

OLDEST = 8
"""Compute capability from which on Triton, Pallas' compiler for NVIDIA GPUs, is supported: A100 and later."""


def current() -> Backend:
    """The kind of the devices that programs run on by default.

    Returns:
      ``"nvidia"`` where Pallas kernels can be compiled for GPUs; ``"other"`` is TPU, and GPUs of other makers or older.

    >>> import jax
    >>> from fedjax_sim_kernels import backends
    >>> (backends.current() == "cpu") == (jax.default_backend() == "cpu")
    True
    """
    name = jax.default_backend()
    if name == "cpu":
        return "cpu"
    device = jax.local_devices()[0]
    # JAX calls GPUs of every maker "gpu".
    if name != "gpu" or not device.device_kind.startswith("NVIDIA"):
        return "other"
    return "nvidia" if _has_triton() and float(device.compute_capability) >= OLDEST else "other"


def varies(x: Any) -> bool:
    """Whether devices have values of their own, as far as ``shard_map`` keeps account of it."""
    aval = getattr(x, "aval", x)
    # Up to jax 0.9 an attribute of its own.
    return bool(getattr(getattr(aval, "manual_axis_type", None), "varying", getattr(aval, "vma", None)))


def _has_triton() -> bool:
    """From jax 0.11 Pallas' use of Triton is deprecated: a later version will not have it."""
    # Not asked for "...pallas.triton": to find it, Python would import Pallas.
    pallas = importlib.util.find_spec("jax.experimental.pallas")
    folders = [] if pallas is None else pallas.submodule_search_locations or []
    return any((Path(folder) / "triton.py").exists() for folder in folders)
