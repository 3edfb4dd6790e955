"""Transforms around the sum over clients: averaging, clipping, noise, compression, robust rules.

Each is a ``Transform``; ``chain`` composes them and refuses wrong orders. ``run`` aggregates stacked updates in a loop
of your own.
"""

from fedjax_sim.aggregation._chain import chain, identity
from fedjax_sim.aggregation._clipping import AdaptiveClipState, adaptive_clip, clip_by_global_norm
from fedjax_sim.aggregation._correlated import BandedNoiseState, TreeNoiseState, banded_noise, tree_noise
from fedjax_sim.aggregation._mean import coverage_mean, mean, mean_by_model
from fedjax_sim.aggregation._noise import gaussian_noise
from fedjax_sim.aggregation._robust import coordinate_median
from fedjax_sim.aggregation._run import run
from fedjax_sim.aggregation._sparsify import top_k
from fedjax_sim.aggregation._strategies import banded_coefficients, prefix_std

__all__ = [
    "AdaptiveClipState",
    "BandedNoiseState",
    "TreeNoiseState",
    "adaptive_clip",
    "banded_coefficients",
    "banded_noise",
    "chain",
    "clip_by_global_norm",
    "coordinate_median",
    "coverage_mean",
    "gaussian_noise",
    "identity",
    "mean",
    "mean_by_model",
    "prefix_std",
    "run",
    "top_k",
    "tree_noise",
]
