"""Two-dimensional convolution, ``NHWC`` images and ``HWIO`` kernels."""

from fedjax_sim_kernels.conv.slices import conv2d

__all__ = ["conv2d"]
