"""Transforms around the sum over clients: averaging, clipping, noise, compression, robust rules.

Each is a ``Transform``; ``chain`` composes them and refuses wrong orders. ``run`` aggregates stacked updates in a loop
of your own.
"""

from fedjax_sim.aggregation._chain import chain, identity
from fedjax_sim.aggregation._clipping import AdaptiveClipState, adaptive_clip, clip_by_global_norm
from fedjax_sim.aggregation._clipping_parts import (
    clip_by_group_norm,
    clip_by_l1_norm,
    clip_by_leaf_norm,
    zero_out,
)
from fedjax_sim.aggregation._correlated import BandedNoiseState, TreeNoiseState, banded_noise, tree_noise
from fedjax_sim.aggregation._describe import Description, LayerRow, describe
from fedjax_sim.aggregation._distributed import discrete_gaussian_noise, skellam_noise
from fedjax_sim.aggregation._individual import FilterState, clip_by_client_norm, filtered_gaussian_noise
from fedjax_sim.aggregation._laplace import laplace_noise, local_gaussian_noise, local_laplace_noise
from fedjax_sim.aggregation._mean import coverage_mean, mean, mean_by_model
from fedjax_sim.aggregation._noise import gaussian_noise
from fedjax_sim.aggregation._robust import coordinate_median, trimmed_mean
from fedjax_sim.aggregation._rotation import hadamard_rotation
from fedjax_sim.aggregation._run import run
from fedjax_sim.aggregation._simulated import simulated
from fedjax_sim.aggregation._sparsify import top_k
from fedjax_sim.aggregation._strategies import banded_coefficients, prefix_std

__all__ = [
    "AdaptiveClipState",
    "BandedNoiseState",
    "Description",
    "FilterState",
    "LayerRow",
    "TreeNoiseState",
    "adaptive_clip",
    "banded_coefficients",
    "banded_noise",
    "chain",
    "clip_by_client_norm",
    "clip_by_global_norm",
    "clip_by_group_norm",
    "clip_by_l1_norm",
    "clip_by_leaf_norm",
    "coordinate_median",
    "coverage_mean",
    "describe",
    "discrete_gaussian_noise",
    "filtered_gaussian_noise",
    "gaussian_noise",
    "hadamard_rotation",
    "identity",
    "laplace_noise",
    "local_gaussian_noise",
    "local_laplace_noise",
    "mean",
    "mean_by_model",
    "prefix_std",
    "run",
    "simulated",
    "skellam_noise",
    "top_k",
    "tree_noise",
    "trimmed_mean",
    "zero_out",
]
