"""Clipping of a cohort's updates and their weighted sum, at once."""

from fedjax_sim_kernels.clipping.streamed import clip_and_sum

__all__ = ["clip_and_sum"]
