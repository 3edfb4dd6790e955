"""Two-dimensional pooling of ``NHWC`` images."""

from fedjax_sim_kernels.pooling.slices import max_pool2d

__all__ = ["max_pool2d"]
