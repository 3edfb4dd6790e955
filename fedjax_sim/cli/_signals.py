"""How a run ends early: Ctrl-C, or a request to terminate."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

from fedjax_sim.simulate import Progress

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
EXIT_CODES = frozenset(128 + number for number in _SIGNALS)
"""Of a run that a signal ended: 128 and the signal's number, as shells have it."""


class StopOnSignal:
    """Callback and context that ends a run behind the chunk of rounds that is under way when a signal comes.

    What the device has begun cannot be taken back, and everything that the rounds before it left is whole then. A
    second signal raises KeyboardInterrupt at once. It may come in the middle of anything, also of a library that waits
    for ever after such an interruption: what has not ended ``patience`` seconds later is ended, as by a kill, which a run
    folder survives.

    Args:
      advice: what is said when the program had to be ended.
      patience: seconds between the second signal and the end of the program, at the most.

    Attributes:
      received: the signal that came last, ``None`` if none did.
    """

    def __init__(self, advice: str, patience: float = 5.0):
        self.received: signal.Signals | None = None
        self._advice, self._patience = advice, patience

    def __enter__(self) -> StopOnSignal:
        self._before = {number: signal.signal(number, self._handle) for number in _SIGNALS}
        # A thread cannot be started by a handler, which may have interrupted the start of another.
        self._wake, self._doorbell = os.pipe()
        threading.Thread(target=self._end, name="end of the run", daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        os.close(self._doorbell)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        again, self.received = self.received is not None, signal.Signals(number)
        if again:
            os.write(self._doorbell, b"!")
            raise KeyboardInterrupt
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after the rounds under way; Ctrl-C again stops at once\n")

    def _end(self) -> None:
        rung = os.read(self._wake, 1)
        os.close(self._wake)
        if rung:
            time.sleep(self._patience)
            os.write(2, f"\nended: it did not stop by itself\n{self._advice}\n".encode())
            os._exit(self.exit_code)

    @property
    def name(self) -> str:
        """What came, for people."""
        return "a request to terminate" if self.received == signal.SIGTERM else "Ctrl-C"

    @property
    def exit_code(self) -> int:
        """Of a program that the signal ended."""
        return 128 + (signal.SIGINT if self.received is None else self.received)

    def __call__(self, progress: Progress) -> bool:
        return self.received is not None
