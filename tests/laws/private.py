"""Every private chain: what laws of privacy run over. A new clip or mechanism joins here."""

from __future__ import annotations

from collections.abc import Callable

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

CLIP, MULTIPLIER = 0.7, 1.3
MEAN = agg.mean(over="expected_cohort")
NOISE = agg.gaussian_noise(MULTIPLIER)
CLIPPED = agg.clip_by_global_norm(CLIP)
IN_L1 = agg.clip_by_l1_norm(CLIP)
ADAPTIVE = agg.adaptive_clip(CLIP, count_noise_std=0.5)
ROTATED = agg.hadamard_rotation()
FEW = {"min_clients": 3, "max_clients": 4}
"""Fewer are counted on than come."""

PRIVATE: dict[str, Callable[[], fs.Transform]] = {
    # Clips.
    "clip": lambda: agg.chain(CLIPPED, MEAN, NOISE),
    "adaptive clip": lambda: agg.chain(ADAPTIVE, MEAN, NOISE),
    "two clips": lambda: agg.chain(agg.clip_by_global_norm(9.0), CLIPPED, MEAN, NOISE),
    "clip by leaf": lambda: agg.chain(agg.clip_by_leaf_norm(CLIP), MEAN, NOISE),
    "clip by group": lambda: agg.chain(agg.clip_by_group_norm({"a": CLIP, "b|c": 2.0}), MEAN, NOISE),
    "clip by client": lambda: agg.chain(agg.clip_by_client_norm([CLIP] + [0.2] * 9), MEAN, NOISE),
    "clip in L1, Gaussian": lambda: agg.chain(IN_L1, MEAN, NOISE),
    "clip in L1 and L2": lambda: agg.chain(IN_L1, CLIPPED, MEAN, NOISE),
    "zeroing alone": lambda: agg.chain(agg.zero_out(CLIP), MEAN, NOISE),
    "zeroing, clip": lambda: agg.chain(agg.zero_out(5.0), CLIPPED, MEAN, NOISE),
    "zeroing without a norm, clip": lambda: agg.chain(agg.zero_out(), CLIPPED, MEAN, NOISE),
    "top_k, clip": lambda: agg.chain(agg.top_k(0.25), CLIPPED, MEAN, NOISE),
    "clip, top_k without memory": lambda: agg.chain(
        CLIPPED, agg.top_k(0.25, error_feedback=False), MEAN, NOISE
    ),
    "top_k, adaptive clip": lambda: agg.chain(agg.top_k(0.25), ADAPTIVE, MEAN, NOISE),
    "clip, rotation": lambda: agg.chain(CLIPPED, MEAN, ROTATED, NOISE),
    "rotation, clip": lambda: agg.chain(ROTATED, CLIPPED, MEAN, NOISE),
    # Noise on the sum.
    "two noises": lambda: agg.chain(CLIPPED, MEAN, NOISE, NOISE),
    "a schedule": lambda: agg.chain(CLIPPED, MEAN, agg.gaussian_noise(lambda r: 1.0 + r / 50)),
    "simulated": lambda: agg.chain(
        CLIPPED, MEAN, agg.simulated(NOISE, fs.cohorts.uniform(32), population=10**6)
    ),
    "adaptive clip, simulated": lambda: agg.chain(
        agg.simulated(ADAPTIVE, fs.cohorts.uniform(32), population=10**6),
        MEAN,
        agg.simulated(NOISE, fs.cohorts.uniform(32), population=10**6),
    ),
    "filtered": lambda: agg.chain(CLIPPED, MEAN, agg.filtered_gaussian_noise(MULTIPLIER, 0.5)),
    "clip by client, filtered": lambda: agg.chain(
        agg.clip_by_client_norm([CLIP] + [0.2] * 9), MEAN, agg.filtered_gaussian_noise(MULTIPLIER, 0.1)
    ),
    "Laplace": lambda: agg.chain(IN_L1, MEAN, agg.laplace_noise(MULTIPLIER)),
    "zeroing in L1, Laplace": lambda: agg.chain(
        agg.zero_out(CLIP, norm="l1"), MEAN, agg.laplace_noise(MULTIPLIER)
    ),
    # Noise that is correlated over rounds.
    "tree": lambda: agg.chain(CLIPPED, MEAN, agg.tree_noise(MULTIPLIER)),
    "tree that restarts": lambda: agg.chain(CLIPPED, MEAN, agg.tree_noise(MULTIPLIER, restart_every=12)),
    "clip by leaf, tree": lambda: agg.chain(
        agg.clip_by_leaf_norm(CLIP), MEAN, agg.tree_noise(MULTIPLIER, restart_every=8)
    ),
    "one band": lambda: agg.chain(CLIPPED, MEAN, agg.banded_noise(MULTIPLIER, 1, 50)),
    "bands": lambda: agg.chain(CLIPPED, MEAN, agg.banded_noise(MULTIPLIER, 5, 50)),
    "top_k, bands": lambda: agg.chain(agg.top_k(0.25), CLIPPED, MEAN, agg.banded_noise(MULTIPLIER, 8, 8)),
    "bands, tree and independent noise": lambda: agg.chain(
        CLIPPED, MEAN, agg.banded_noise(MULTIPLIER, 4, 20), agg.tree_noise(MULTIPLIER, 8), NOISE
    ),
    # Noise of the clients.
    "local Gaussian": lambda: agg.chain(CLIPPED, MEAN, agg.local_gaussian_noise(MULTIPLIER)),
    "local Laplace": lambda: agg.chain(IN_L1, MEAN, agg.local_laplace_noise(MULTIPLIER)),
    "zeroing, clip in L1, local Laplace": lambda: agg.chain(
        agg.zero_out(100.0, norm="l1"), IN_L1, MEAN, agg.local_laplace_noise(MULTIPLIER)
    ),
    "discrete Gaussian": lambda: agg.chain(CLIPPED, MEAN, agg.discrete_gaussian_noise(MULTIPLIER, **FEW)),
    "discrete Gaussian, coarse": lambda: agg.chain(
        CLIPPED, MEAN, agg.discrete_gaussian_noise(MULTIPLIER, bits=5, **FEW)
    ),
    "rotation, discrete Gaussian": lambda: agg.chain(
        CLIPPED, MEAN, ROTATED, agg.discrete_gaussian_noise(MULTIPLIER, bits=12, **FEW)
    ),
    "rotation, discrete Gaussian, rounded once": lambda: agg.chain(
        CLIPPED, MEAN, ROTATED, agg.discrete_gaussian_noise(MULTIPLIER, bits=6, beta=0.0, **FEW)
    ),
    "Skellam": lambda: agg.chain(CLIPPED, MEAN, agg.skellam_noise(MULTIPLIER, **FEW)),
    "Skellam, coarse": lambda: agg.chain(CLIPPED, MEAN, agg.skellam_noise(MULTIPLIER, bits=5, **FEW)),
    "clip by leaf, rotation, Skellam": lambda: agg.chain(
        agg.clip_by_leaf_norm(CLIP), MEAN, ROTATED, agg.skellam_noise(MULTIPLIER, bits=10, **FEW)
    ),
    "Skellam with little room": lambda: agg.chain(
        CLIPPED, MEAN, ROTATED, agg.skellam_noise(MULTIPLIER, bits=4, deviations=1.2, **FEW)
    ),
}
