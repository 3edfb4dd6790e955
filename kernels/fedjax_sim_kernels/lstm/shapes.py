"""Arguments of the recurrence, for tests and benchmarks."""

from __future__ import annotations

from typing import NamedTuple


class LSTMShape(NamedTuple):
    """``inputs: f32[time, batch, 4 * size]``, ``recurrent: f32[size, 4 * size]``."""

    name: str
    time: int
    batch: int
    size: int

    @property
    def inputs(self) -> tuple[int, int, int]:
        return (self.time, self.batch, 4 * self.size)

    @property
    def recurrent(self) -> tuple[int, int]:
        return (self.size, 4 * self.size)


EDGE_CASES = (
    LSTMShape("small", 7, 3, 5),
    LSTMShape("one-time", 1, 2, 4),
    LSTMShape("one-example", 9, 1, 4),
    LSTMShape("one-unit", 5, 3, 1),
    LSTMShape("in-panels", 16, 2, 192),
)

MODELS = (LSTMShape("shakespeare", 80, 4, 256),)
