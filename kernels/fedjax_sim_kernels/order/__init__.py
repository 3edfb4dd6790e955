"""Order statistics over the rows of a cohort: coordinate-wise median and trimmed mean.

A sorting network on CPU, a count for few rows on NVIDIA GPUs; elsewhere, TPUs included, XLA's sort, which nobody has
timed on a TPU.
"""

from fedjax_sim_kernels.order.dispatch import choose, median, trimmed_mean

__all__ = ["choose", "median", "trimmed_mean"]
