"""Stochastic quantisation into few bits, packed into words, and back."""

from fedjax_sim_kernels.packing.reference import Packed, quantise_and_pack, unpack

__all__ = ["Packed", "quantise_and_pack", "unpack"]
