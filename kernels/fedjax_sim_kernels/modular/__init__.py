"""Sums of integers modulo something: what secure aggregation adds up."""

from fedjax_sim_kernels.modular.subtracting import masked_sum

__all__ = ["masked_sum"]
