"""Arrays of the host's memory that devices read: page-locked where a device copies from such memory, aligned elsewhere."""

from __future__ import annotations

import ctypes
import functools
import math
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

ALIGNMENT = 64
"""Bytes; JAX reads a numpy array on CPU where it lies, instead of copying it, when it begins at a multiple of so many."""

PINNED = "pinned_host"
"""JAX's name of page-locked memory, from which a device copies by itself while the host does something else."""

TRIAL_BYTES = 1 << 26
"""Of the trial: a copy of less may be over before anything could go wrong with it."""


class HostArray(NamedTuple):
    """An array to write to, and what a device is given for it.

    Attributes:
      array: ``[...]``, zero at first.
      pinned: the same memory as JAX sees it, where it is page-locked; else ``None``.
    """

    array: np.ndarray
    pinned: jax.Array | None = None

    def source(self) -> np.ndarray | jax.Array:
        """For ``jax.device_put``; of page-locked memory a copy on the device, which may be under way yet."""
        if self.pinned is None:
            return self.array
        return jax.device_put(self.pinned, jax.memory.Space.Device)


def host_array(shape: tuple[int, ...], dtype: np.dtype, pinned: bool) -> HostArray:
    """Zeros.

    Who writes to the array a second time has to know that no device reads it any more: no program that was given it,
    where nothing is copied, and no copy.

    Args:
      shape: of the array.
      dtype: of the array.
      pinned: in page-locked memory, if JAX keeps the dtype as it is; see ``copies_from_pinned``.
    """
    dtype = np.dtype(dtype)
    if pinned and jax.dtypes.canonicalize_dtype(dtype) == dtype:
        return _pinned(shape, dtype)
    size = math.prod(shape) * dtype.itemsize
    memory = np.zeros(size + ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % ALIGNMENT
    return HostArray(memory[begin : begin + size].view(dtype).reshape(shape))


def _pinned(shape: tuple[int, ...], dtype: np.dtype) -> HostArray:
    device = jax.devices()[0]
    pinned = jax.device_put(np.zeros(shape, dtype), SingleDeviceSharding(device, memory_kind=PINNED))
    # The zeros are on their way yet, and would arrive on top of what is written first.
    jax.block_until_ready(pinned)
    # JAX has no call that makes page-locked memory to write to; what it holds there for an array is such memory.
    memory = (ctypes.c_byte * pinned.nbytes).from_address(pinned.unsafe_buffer_pointer())
    return HostArray(np.frombuffer(memory, np.uint8).view(dtype).reshape(shape), pinned)


@functools.cache
def copies_from_pinned() -> bool:
    """Whether the first device has memory of its own, and copies what is written to page-locked memory; found out by trying."""
    try:
        device = jax.devices()[0]
        plain = host_array((ALIGNMENT,), np.dtype(np.float32), pinned=False).array
        in_place = jax.device_put(plain, device).unsafe_buffer_pointer() == plain.ctypes.data
        if in_place or PINNED not in {memory.kind for memory in device.addressable_memories()}:
            return False
        return _arrives()
    except (AttributeError, NotImplementedError, RuntimeError, ValueError):
        return False  # a backend that lacks one of these


def _arrives() -> bool:
    """Whether what is written to page-locked memory arrives on the device, the second time, too."""
    made = host_array((TRIAL_BYTES,), np.dtype(np.uint8), pinned=True)
    for value in (1, 2):
        made.array[:] = value
        if not (np.asarray(made.source()) == value).all():
            return False
    return True
