"""Every transform, in a chain that holds it: what laws of transforms run over."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

MESSAGE = {
    "w": np.random.default_rng(1).normal(size=(4, 3, 2)).astype(np.float32),
    "b": np.ones((4, 5), np.float32),
}
"""Messages of four clients."""
COVERED = fs.Message(
    MESSAGE, {"coverage": {"w": (MESSAGE["w"] > 0).astype(np.float32), "b": np.ones((4, 5), np.float32)}}
)
MEMBERS = fs.Message(
    {"w": MESSAGE["w"] * (np.arange(3) == np.array([0, 1, 2, 0])[:, None])[..., None]},
    {"members": np.eye(3, dtype=np.float32)[[0, 1, 2, 0]]},
)


class Layers(NamedTuple):
    """The layers of a chain, and messages ``[clients, ...]`` for it."""

    layers: tuple[fs.Transform, ...]
    message: Any = MESSAGE


TRANSFORMS = {
    "mean over examples": Layers((agg.mean(),)),
    "mean over clients": Layers((agg.mean(over="clients"),)),
    "clip, mean": Layers((agg.clip_by_global_norm(0.5), agg.mean())),
    "top_k, mean": Layers((agg.top_k(0.5), agg.mean())),
    "top_k without memory, clip, mean": Layers(
        (agg.top_k(0.5, error_feedback=False), agg.clip_by_global_norm(1.0), agg.mean(over="clients"))
    ),
    "clip, mean, noise": Layers(
        (agg.clip_by_global_norm(0.5), agg.mean(over="expected_cohort"), agg.gaussian_noise(1.0))
    ),
    "clip, mean, tree noise": Layers(
        (agg.clip_by_global_norm(0.5), agg.mean(over="expected_cohort"), agg.tree_noise(1.0))
    ),
    "clip, mean, banded noise": Layers(
        (agg.clip_by_global_norm(0.5), agg.mean(over="expected_cohort"), agg.banded_noise(1.0, 3, 8))
    ),
    "clip by client, mean, noise": Layers(
        (
            agg.clip_by_client_norm([0.5, 0.25, 0.125, 0.5]),
            agg.mean(over="expected_cohort"),
            agg.gaussian_noise(1.0),
        )
    ),
    "clip, mean, filtered noise": Layers(
        (
            agg.clip_by_global_norm(0.5),
            agg.mean(over="expected_cohort"),
            agg.filtered_gaussian_noise(1.0, 0.3),
        )
    ),
    "top_k, adaptive clip, mean, noise": Layers(
        (
            agg.top_k(0.5),
            agg.adaptive_clip(0.5, count_noise_std=1.0),
            agg.mean(over="expected_cohort"),
            agg.gaussian_noise(1.0),
        )
    ),
    "zeroing, clip by leaf, mean": Layers((agg.zero_out(10.0), agg.clip_by_leaf_norm(0.5), agg.mean())),
    "clip by group, mean, noise": Layers(
        (
            agg.clip_by_group_norm({"w": 0.5, "b": 1.0}),
            agg.mean(over="expected_cohort"),
            agg.gaussian_noise(1.0),
        )
    ),
    "clip, mean, rotation, discrete Gaussian": Layers(
        (
            agg.clip_by_global_norm(0.5),
            agg.mean(over="expected_cohort"),
            agg.hadamard_rotation(),
            agg.discrete_gaussian_noise(1.0, min_clients=4),
        )
    ),
    "adaptive clip, rotation, mean": Layers(
        (agg.adaptive_clip(0.5), agg.hadamard_rotation(1), agg.mean(over="clients"))
    ),
    "clip, mean, Skellam": Layers(
        (
            agg.clip_by_global_norm(0.5),
            agg.mean(over="expected_cohort"),
            agg.skellam_noise(1.0, min_clients=4),
        )
    ),
    "L1 clip, mean, Laplace": Layers(
        (agg.clip_by_l1_norm(0.5), agg.mean(over="expected_cohort"), agg.laplace_noise(1.0))
    ),
    "clip, mean, local Gaussian": Layers(
        (agg.clip_by_global_norm(0.5), agg.mean(over="expected_cohort"), agg.local_gaussian_noise(1.0))
    ),
    "L1 clip, mean, local Laplace": Layers(
        (agg.clip_by_l1_norm(0.5), agg.mean(over="expected_cohort"), agg.local_laplace_noise(1.0))
    ),
    "two clips, mean": Layers((agg.clip_by_global_norm(2.0), agg.clip_by_global_norm(0.5), agg.mean())),
    "median, clip": Layers((agg.coordinate_median(), agg.clip_by_global_norm(0.5))),
    "trimmed mean, clip": Layers((agg.trimmed_mean(0.3), agg.clip_by_global_norm(0.5))),
    "median, top_k": Layers((agg.coordinate_median(), agg.top_k(0.5))),
    "coverage mean": Layers((agg.coverage_mean(),), COVERED),
    "top_k, clip, coverage mean": Layers(
        (agg.top_k(0.5), agg.clip_by_global_norm(0.5), agg.coverage_mean()), COVERED
    ),
    "mean by model": Layers((agg.mean_by_model(),), MEMBERS),
    "adaptive clip, mean by model": Layers((agg.adaptive_clip(0.5), agg.mean_by_model()), MEMBERS),
}
