"""Clipping of a cohort's updates and their weighted sum, at once.

A loop over updates on CPU; elsewhere, TPUs included, plain reductions, which nobody has timed on a TPU.
"""

from fedjax_sim_kernels.clipping.dispatch import choose, clip_and_sum

__all__ = ["choose", "clip_and_sum"]
