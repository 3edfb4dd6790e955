"""Small run folders, written as a run writes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def rows(
    rounds: int = 6, seeds: Sequence[int] = (0, 1), every: int = 2, sweep: Mapping[str, Any] | None = None
) -> list[dict]:
    """Rows whose metrics are known: the loss is ``1 / (round + 1) + seed``, the accuracy ``round / rounds``."""
    found = []
    for index in range(rounds):
        for seed in seeds:
            row: dict[str, Any] = {"round": index, "seed": seed, "loss": 1 / (index + 1) + seed}
            row |= {
                "bytes_up": 1_000_000.0,
                "bytes_down": 500_000.0,
                "simulated_seconds": 0.5,
            }
            if sweep is not None:
                row["sweep"] = dict(sweep)
            if (index + 1) % every == 0:
                row |= {
                    "eval/accuracy": index / rounds,
                    "eval/loss": 2.0 + seed,
                    "eval/accuracy/worst_decile": 0.1,
                }
            found.append(row)
    return found


def clients(number: int = 8, classes: int = 4, replicas: int = 2, rounds: int = 6) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 20, (number, classes))
    cohorts = np.stack([generator.choice(number, 2, replace=False) for _ in range(rounds)])
    accuracy = generator.uniform(size=(replicas, number))
    accuracy[:, 0] = np.nan  # a client without test examples
    return {
        "ids": np.array([f"c{index}" for index in range(number)]),
        "train_examples": labels.sum(axis=1),
        "participation": np.stack([np.bincount(cohorts.ravel(), minlength=number)] * replicas),
        "cohort_rounds": np.repeat(np.arange(rounds), 2),
        "cohort_clients": cohorts.ravel(),
        "labels": labels,
        "eval/accuracy": accuracy,
    }


def toml(config: Mapping[str, Any], table: str = "") -> str:
    """Enough of TOML for these tests."""
    plain = [
        f"{key} = {json.dumps(value)}" for key, value in config.items() if not isinstance(value, Mapping)
    ]
    inner = [toml(value, f"{table}{key}.") for key, value in config.items() if isinstance(value, Mapping)]
    return "\n".join([*([f"[{table[:-1]}]"] if table else []), *plain, *inner])


CONFIG = {
    "name": "trial", "rounds": 6, "seeds": [0, 1], "data": {"name": "digits", "alpha": 0.3},
    "algorithm": {"name": "fedavg", "client": {"learning_rate": 0.1}},
}  # fmt: skip


def write_run(
    folder: Path,
    *,
    config: Mapping[str, Any] | None = CONFIG,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    arrays: Mapping[str, np.ndarray] | None = None,
    summary: Mapping[str, Any] | None = None,
    environment: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a folder; what is ``None`` has its usual content, what is empty has no file."""
    folder.mkdir(parents=True)
    metrics = rows() if metrics is None else metrics
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in metrics))
    if config:
        (folder / "config.toml").write_text(toml(config))
    arrays = clients() if arrays is None else arrays
    if arrays:
        np.savez(folder / "clients.npz", **arrays)  # pyright: ignore[reportArgumentType]
    summary = {"status": "completed", "rounds": 6, "parameters": 1234} if summary is None else summary
    environment = {"versions": {"jax": "0.10.2"}, "device": "cpu"} if environment is None else environment
    for name, content in (("summary.json", summary), ("environment.json", environment)):
        if content:
            (folder / name).write_text(json.dumps(content))
    return folder
