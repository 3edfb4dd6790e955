"""Order statistics over the rows of a cohort: coordinate-wise median and trimmed mean."""

from fedjax_sim_kernels.order.dispatch import choose, median, trimmed_mean

__all__ = ["choose", "median", "trimmed_mean"]
