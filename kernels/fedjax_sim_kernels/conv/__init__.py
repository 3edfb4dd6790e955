"""Convolutions of any number of axes, with every setting of ``lax.conv_general_dilated``."""

from fedjax_sim_kernels.conv.dispatch import choose, conv, quarters, with_relu
from fedjax_sim_kernels.conv.spec import ConvSpec

__all__ = ["ConvSpec", "choose", "conv", "quarters", "with_relu"]
