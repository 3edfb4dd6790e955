"""Work in a thread of its own."""

import contextvars
import threading
import time
import traceback

import jax
import numpy as np
import pytest

from fedjax_sim._background import Background

ANSWER = contextvars.ContextVar("answer", default=0)


def test_the_result_is_that_of_what_was_started_last():
    with Background("ahead") as background:
        for value in range(3):
            background.start(lambda ended, value=value: (value, threading.current_thread().name))
            assert background.result() == (value, "ahead")
            assert threading.active_count() == 1


def test_what_it_raises_is_raised_with_its_traceback_and_only_once():
    def fails(ended):
        raise OSError("no such page")

    with Background("ahead") as background:
        background.start(fails)
        with pytest.raises(OSError, match="no such page") as error:
            background.result()
        assert "fails" in [frame.name for frame in traceback.extract_tb(error.value.__traceback__)]
        background.start(lambda ended: 4)
        assert background.result() == 4


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_however_it_ends_the_work_ends_early_and_no_thread_is_left(error):
    begun, seen = threading.Event(), []

    def endless(ended):
        begun.set()
        while not ended():
            time.sleep(0.001)
        seen.append("ended")

    try:
        with Background("ahead") as background:
            background.start(endless)
            begun.wait()
            if error is not None:
                raise error
    except (KeyboardInterrupt, ValueError) as raised:
        assert isinstance(raised, error)
    assert seen == ["ended"] and threading.enumerate() == [threading.main_thread()]


def test_what_nobody_waits_for_is_forgotten():
    def fails(ended):
        raise OSError

    with Background("ahead") as background:
        background.start(fails)
    assert threading.enumerate() == [threading.main_thread()]


def test_settings_are_those_of_the_thread_that_starts_it():
    """They belong to a thread in JAX, and numpy's to a context: results would depend on who computes them."""

    def look(ended):
        return (
            jax.device_put(np.zeros(1, np.int64)).dtype,
            jax.config.jax_default_device,
            ANSWER.get(),
            np.geterr(),
        )

    device = jax.devices()[0]
    ANSWER.set(42)
    for x64, dtype in ((True, "int64"), (False, "int32")):
        with (
            jax.enable_x64(x64),
            jax.default_device(device),
            np.errstate(over="raise"),
            Background("b") as background,
        ):
            background.start(look)
            found, *rest = background.result()
            assert found == dtype and rest == [device, 42, np.geterr()]
