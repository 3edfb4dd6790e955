"""Work in a thread of its own, beside the one that asked for it."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

import jax

Work = Callable[[Callable[[], bool]], Any]
"""What is to be done; it is given a function that says whether it should end early, its result being no longer wanted."""


class Background:
    """One piece of work at a time: ``start`` it, then wait for its ``result``.

    A context: at its end, however that comes, the work under way is told to end early and waited for, so that no thread is
    left behind. JAX's settings and context variables are those of the thread that starts it.
    """

    def __init__(self, name: str):
        self._name, self._ended = name, threading.Event()
        self._thread: threading.Thread | None = None
        self._result: Any = None
        self._error: BaseException | None = None

    def start(self, work: Work) -> None:
        """Begins; the result of what was started before has been waited for."""
        # JAX keeps these for each thread; everything else that it does so does not touch a transfer.
        device = jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]
        x64 = jax.config.jax_enable_x64  # pyright: ignore[reportAttributeAccessIssue]
        context = contextvars.copy_context()

        def run() -> None:
            try:
                with jax.default_device(device), jax.enable_x64(x64):
                    self._result = context.run(work, self._ended.is_set)
            except BaseException as error:  # raised where the result is wanted
                self._error = error

        # Work that never ends must not keep the interpreter from ending, hence a daemon.
        self._thread = threading.Thread(target=run, name=self._name, daemon=True)
        self._thread.start()

    def result(self) -> Any:
        """Waits for the work and gives what it returned, or raises what it raised, with its traceback."""
        assert self._thread is not None, "nothing was started"
        self._thread.join()
        result, error, self._thread = self._result, self._error, None
        self._result = self._error = None
        if error is not None:
            try:
                raise error
            finally:
                del error  # its traceback holds this frame: a cycle, and whatever large hangs on it
        return result

    def __enter__(self) -> Background:
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
        self._thread = self._result = self._error = None
