"""Pooling over windows: maximum, minimum, sum (an average is a sum that is divided).

The same forms on every backend; nobody has timed them on a TPU.
"""

from fedjax_sim_kernels.pooling.dispatch import choose, pool
from fedjax_sim_kernels.pooling.slices import first_largest
from fedjax_sim_kernels.pooling.spec import Kind, PoolSpec

__all__ = ["Kind", "PoolSpec", "choose", "first_largest", "pool"]
