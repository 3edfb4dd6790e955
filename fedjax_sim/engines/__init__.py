"""Engines turn an algorithm and data into compiled rounds.

``sequential`` is the oracle, ``lanes`` batches clients continuously on one device, ``sharded`` does so on a mesh. All
three give the same results to float tolerance.
"""

from fedjax_sim.engines._auto import Layout
from fedjax_sim.engines._chunk import RoundReport
from fedjax_sim.engines._engine import Engine, RoundFn
from fedjax_sim.engines._lanes import client_mesh, lanes, sharded
from fedjax_sim.engines._problem import Problem
from fedjax_sim.engines._sequential import sequential
from fedjax_sim.engines._state import ClientTable, SimState

__all__ = [
    "ClientTable",
    "Engine",
    "Layout",
    "Problem",
    "RoundFn",
    "RoundReport",
    "SimState",
    "client_mesh",
    "lanes",
    "sequential",
    "sharded",
]
