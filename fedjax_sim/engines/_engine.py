"""What an engine is: something that turns a problem into a compiled round function."""

from __future__ import annotations

import abc
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from fedjax_sim.data.plans import Plan
from fedjax_sim.engines._auto import Layout
from fedjax_sim.engines._chunk import RoundReport
from fedjax_sim.engines._problem import Problem
from fedjax_sim.engines._state import ClientTable, SimState


class RoundFn(abc.ABC):
    """``(state, columns, plan, hyper) -> (state, reports)`` for a chunk of rounds.

    Attributes:
      layout: how clients share a device, once it is known; ``None`` where they do not.
    """

    layout: Layout | None

    @abc.abstractmethod
    def place_columns(self, columns: Mapping[str, np.ndarray | jax.Array]) -> Any:
        """Columns on the engine's devices, which may read a numpy array where it lies."""

    @abc.abstractmethod
    def place_state(self, state: SimState) -> SimState:
        """A copy of the state that the engine may consume; its client table has equal shares for the devices."""

    @abc.abstractmethod
    def place_clients(self, table: ClientTable) -> ClientTable:
        """A client table of numpy arrays on the engine's devices, which may keep the arrays; for ``place_state``'s copy."""

    @abc.abstractmethod
    def compilations(self) -> int:
        """Programs compiled so far for chunks of rounds."""

    @abc.abstractmethod
    def __call__(
        self, state: SimState, columns: Any, plan: Plan, hyper: Any = ()
    ) -> tuple[SimState, RoundReport]:
        """Runs ``plan.rounds`` rounds; consumes ``state``."""

    def lower(self, state: SimState, columns: Any, plan: Plan, hyper: Any = ()) -> Any:
        """The lowered program of a chunk, to look at.

        Raises:
          TypeError: the engine has no such program.
        """
        raise TypeError(
            "this engine runs rounds from Python and has no program of a round; use lanes() or sharded()."
        )


def programs(jitted: Any) -> int:
    """How many programs a jitted function has compiled."""
    return jitted._cache_size()


class Engine(NamedTuple):
    """An engine.

    Attributes:
      name: for reports.
      devices: how many devices share a cohort.
      compile: a problem to its round function; compilation itself happens at the first call.
      at: the same engine with a given layout; ``None`` where there is nothing to lay out.
    """

    name: str
    devices: int
    compile: Callable[[Problem], RoundFn]
    at: Callable[[Layout], Engine] | None = None

    def __repr__(self) -> str:
        return f"Engine({self.name}, {self.devices} device{'s' * (self.devices > 1)})"
