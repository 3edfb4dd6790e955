"""The components that a configuration can name without further ado, by kind; thin wrappers where TOML needs them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import optax

from fedjax_sim import aggregation, algorithms, data, engines, models, tasks, tracking
from fedjax_sim.algorithms import server_optimizers
from fedjax_sim.data import cohorts, partitions, sources


def sharded(devices: int, lanes: int | Literal["auto"] = "auto") -> engines.Engine:
    """The lanes on several devices, one sum over them per round. Without accelerators, CPU cores are the devices.

    Args:
      devices: how many.
      lanes: per device.
    """
    return engines.sharded(engines.client_mesh(devices), lanes=lanes)


def csv(folder: Path, keep_rounds: int | None) -> tracking.Tracker:
    """The rows of metrics.jsonl as a table, metrics.csv in the run folder."""
    return tracking.Csv(folder / "metrics.csv", keep_rounds)


def tensorboard(folder: Path, keep_rounds: int | None) -> tracking.Tracker:
    """Event files for TensorBoard, in the run folder's tensorboard/. Needs the extra ``tensorboard``."""
    return tracking.TensorBoard(folder / "tensorboard", keep_rounds)


def wandb(
    folder: Path,
    keep_rounds: int | None,
    project: str = "fedjax-sim",
    mode: Literal["online", "offline", "disabled"] = "offline",
) -> tracking.Tracker:
    """Weights & Biases; offline runs lie in the run folder. Needs the extra ``wandb``.

    Args:
      project: where the run is filed.
      mode: ``"offline"`` needs no account and no network.
    """
    # The folder's name tells the run, so that one that goes on stays the same run there.
    return tracking.WeightsAndBiases(project, folder.name, folder=folder, mode=mode, run_id=folder.name)


BUILT_IN: dict[str, dict[str, Callable[..., Any]]] = {
    "datasets": dict(sources.SOURCES),
    "partitions": {
        name: getattr(partitions, name)
        for name in (
            "iid", "dirichlet", "client_dirichlet", "shards", "labels_per_client", "quantity", "mixture", "natural", "grouped",
            "hierarchical",
        )
    },
    "augmentations": {
        name: getattr(data.augmentations, name)
        for name in ("shift", "crop", "rotate", "brightness", "horizontal_flip", "cutout", "mixup")
    },
    "preprocessing": {name: getattr(data.preprocessing, name) for name in ("bag_of_words", "centre_crop", "normalise", "standardise")},
    "decoders": {
        name: getattr(data.decoders, name) for name in ("pictures", "labels", "padded_words", "next_words", "next_characters")
    },
    "models": {
        name: getattr(models, name)
        for name in (
            "linear", "mlp", "cnn", "emnist_cnn", "reference_cnn", "deeper_cnn", "cifar10_cnn", "char_lstm",
        )
    },
    "tasks": {name: getattr(tasks, name) for name in ("classification", "multi_label", "regression")},
    "algorithms": {
        name: getattr(algorithms, name)
        for name in (
            "fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad", "fedprox", "fedsgd", "scaffold", "mime", "ifca",
            "fedavg_dp_sgd",
        )
    },
    "optimizers": {
        **{name: getattr(optax, name) for name in ("sgd", "adam", "adamw", "adagrad", "rmsprop", "yogi", "lion", "lamb")},
        **{name: getattr(server_optimizers, name) for name in ("fedavgm", "fedadam", "fedyogi", "fedadagrad")},
    },
    "transforms": {
        name: getattr(aggregation, name)
        for name in (
            "identity", "mean", "clip_by_global_norm", "adaptive_clip", "gaussian_noise", "top_k", "coordinate_median",
            "trimmed_mean", "tree_noise", "banded_noise", "clip_by_client_norm", "filtered_gaussian_noise",
            "mean_by_model", "clip_by_leaf_norm", "clip_by_group_norm", "clip_by_l1_norm", "zero_out", "hadamard_rotation",
            "discrete_gaussian_noise", "skellam_noise", "laplace_noise", "local_gaussian_noise", "local_laplace_noise",
        )
    },
    "cohorts": {
        name: getattr(cohorts, name)
        for name in ("uniform", "poisson", "shuffled", "weighted", "traced", "diurnal", "fixed", "all_clients", "cyclic", "cyclic_poisson")
    },
    "engines": {"lanes": engines.lanes, "sequential": engines.sequential, "sharded": sharded},
    "trackers": {"csv": csv, "tensorboard": tensorboard, "wandb": wandb},
}  # fmt: skip

GIVEN = {
    "algorithms": ("task",), "tasks": ("model",), "trackers": ("folder", "keep_rounds"), "unseen": ("data",),
    "partition": ("data", "partitioner"), **dict.fromkeys(("pretrained", "trainable", "lora", "precision"), ("task",)),
}  # fmt: skip
"""Parameters that the program gives: an algorithm's task is made of the tables ``task`` and ``model``."""

INSTEAD = {
    ("scaffold", "client"): "Its clients take plain SGD steps: set learning_rate.",
    ("fedsgd", "client"): "Its clients take no step: learning_rate is the server's.",
    ("mime", "client"): "Its clients step with the server's optimizer: set optimizer.",
}
"""What to set in the place of a setting that others of its kind have."""
