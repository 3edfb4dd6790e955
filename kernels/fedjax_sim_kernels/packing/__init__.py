"""Stochastic quantisation into few bits, packed into words, and back.

One form on every backend, XLA's own; nobody has timed it on a TPU.
"""

from fedjax_sim_kernels.packing.reference import Packed, quantise_and_pack, unpack

__all__ = ["Packed", "quantise_and_pack", "unpack"]
