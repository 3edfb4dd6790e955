"""Sums of integers modulo something: what secure aggregation adds up.

A loop over rows on CPU; elsewhere, TPUs included, a remainder after every addition, which nobody has timed on a TPU.
"""

from fedjax_sim_kernels.modular.dispatch import choose, masked_sum

__all__ = ["choose", "masked_sum"]
