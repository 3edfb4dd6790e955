"""The least time that rounds could take on this machine, by their arithmetic and by their memory traffic.

Arithmetic: the operations of one step of the model as it is written, scaled to the examples that are real, at the rate of
a large matrix product of the same precision on the same cores. Memory: in every step that trains a batch each parameter
of one client is read once and written once, and of every real example the stored input and label are read once, at the
rate of a large array that fits no cache. Activations, gradients and a second reading in the backward pass are left out,
as a program may keep them in a cache; so may it keep a small model, whose memory floor it can then pass. Evaluation has
no part in either.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax

from fedjax_sim._src import tree
from fedjax_sim.bench import _measure
from fedjax_sim.engines import SimState
from fedjax_sim.history import Costs
from fedjax_sim.simulate import Simulation
from fedjax_sim.tasks.precision import Compute, Products


class Machine(NamedTuple):
    """What this machine can do.

    Attributes:
      flops_per_second: in matrix products of one precision.
      bytes_per_second: from and to memory.
    """

    flops_per_second: float
    bytes_per_second: float


class Work(NamedTuple):
    """What rounds cannot do without.

    Attributes:
      flops: floating-point operations on real examples.
      bytes: read and written.
    """

    flops: float
    bytes: float

    def floors(self, machine: Machine) -> dict[str, Any]:
        """Both floors, the longer one, and which that is, as a row of a benchmark has them."""
        floors = {
            "arithmetic": self.flops / machine.flops_per_second,
            "memory": self.bytes / machine.bytes_per_second,
        }
        return {"floors_seconds": floors, "floor_seconds": max(floors.values())}


def precision_of(compute: Compute | None = None, products: Products | None = None) -> _measure.Precision:
    """The precision of the matrix product that a workload is held against, from its arguments to ``with_precision``.

    >>> precision_of(compute="bfloat16"), precision_of(products="highest"), precision_of()
    ('bfloat16', 'highest', 'default')
    """
    return "bfloat16" if compute == "bfloat16" else products or "default"


def work_of(
    sim: Simulation, state: SimState, costs: Costs, rounds: int = 1, unwritten: Sequence[str] = ()
) -> Work:
    """A round's share of the work that so many rounds of a simulation did; ``unwritten`` parameters, no client has."""
    leaves = jax.tree.leaves_with_path(sim.algorithm.params(state.server).params)
    own = [x for path, x in leaves if jax.tree_util.keystr(path, simple=True, separator="/") not in unwritten]
    step_bytes = 2 * tree.num_bytes(own)
    row_bytes = sim.data.nbytes / sim.data.num_examples
    flops = costs.flops * costs.examples / (costs.steps * costs.rows_per_step)
    return Work(flops / rounds, (costs.steps * step_bytes + costs.examples * row_bytes) / rounds)


def bounding(row: dict[str, Any]) -> str:
    """Which floor of a row is the longer one."""
    return max(row["floors_seconds"], key=row["floors_seconds"].__getitem__)
