"""Arrays that devices read, in ordinary memory and in page-locked memory."""

import time

import jax
import numpy as np
import pytest

from fedjax_sim._src.host_memory import ALIGNMENT, PINNED, copies_from_pinned, host_array

KINDS = {memory.kind for memory in jax.devices()[0].addressable_memories()}


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.int64, bool])
@pytest.mark.parametrize("shape", [(5,), (3, 2, 2), (0, 4)])
@pytest.mark.parametrize(
    "pinned",
    [False, pytest.param(True, marks=pytest.mark.skipif(PINNED not in KINDS, reason="no such memory"))],
)
def test_what_is_written_arrives_every_time(dtype, shape, pinned):
    made = host_array(shape, np.dtype(dtype), pinned)
    assert made.array.shape == shape and made.array.dtype == dtype and not made.array.any()
    # JAX would make int32 of int64: such a column is written as it is, and turned when it is placed.
    assert (made.pinned is not None) == (pinned and dtype is not np.int64)
    for value in (1, 0):
        made.array[...] = value
        # A copy: on CPU, JAX may read an array where it lies.
        found = np.array(jax.device_put(made.source()), copy=True)
        np.testing.assert_array_equal(found, np.full(shape, value, dtype))


@pytest.mark.skipif(PINNED not in KINDS, reason="no such memory")
def test_nothing_arrives_on_top_of_what_is_written_first():
    """A large array's zeros take their time; on a GPU they erased the first chunk of a streamed run."""
    made = host_array((1 << 28,), np.dtype(np.uint8), pinned=True)
    made.array[:] = 7
    time.sleep(0.2)
    assert (made.array == 7).all()
    assert (np.asarray(made.source()) == 7).all()


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="of CPU alone")
def test_ordinary_memory_is_read_where_it_lies():
    """By JAX on CPU, so that a chunk is in memory once."""
    array = host_array((7, 3), np.dtype(np.float32), pinned=False).array
    assert array.ctypes.data % ALIGNMENT == 0
    assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data
    assert not copies_from_pinned()
