"""Law 4: a run that is killed again and again ends with the same model, to the last bit, and loses no row."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_sim import experiment

ROOT = Path(__file__).resolve().parents[2]
KILLS = 20
CHANGES = [
    "data.clients=8", "cohort.size=3", "model=linear", "rounds=8000", "rounds_per_chunk=5", "evaluation.every=100",
    "checkpoints.every=40", "plots=false", "trackers=['csv']",
    "algorithm={name='scaffold',learning_rate=0.02,server={name='fedadam',learning_rate=0.01}}",
]  # fmt: skip
PROGRAM = """
import sys
from fedjax_sim import experiment
print("ready", flush=True)
experiment.resume(sys.argv[1])
"""


def start(folder: Path, cache: Path) -> subprocess.Popen:
    """A process that goes on with the run, at the moment in which it has imported everything."""
    own = {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env={**os.environ, **own},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def size(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    return path.stat().st_size if path.exists() else 0


def newest(folder: Path) -> int:
    checkpoints = folder / "checkpoints"
    names = [path.name for path in checkpoints.iterdir()] if checkpoints.is_dir() else []
    return max((int(name) for name in names if name.isdigit()), default=0)


@pytest.mark.slow
def test_killed_at_twenty_random_moments_and_the_same_to_the_last_bit(tmp_path):
    made = experiment.load(changes=CHANGES)
    whole = experiment.run(made, tmp_path / "whole")
    folder = tmp_path / "killed"
    experiment.RunFolder(folder).create(made.settings)
    moments, reached = random.Random(0), []
    for kill in range(KILLS):
        process = start(folder, tmp_path / "cache")
        if kill % 2:  # while it trains, evaluates or writes
            rows = size(folder)
            while size(folder) == rows and process.poll() is None:
                time.sleep(0.005)
            time.sleep(moments.uniform(0.0, 1.5))
        else:  # while it reads, restores or compiles
            time.sleep(moments.uniform(0.0, 3.0))
        assert process.poll() is None, "the run ended before it could be killed"
        process.kill()
        process.communicate()
        reached.append(newest(folder))
    process = start(folder, tmp_path / "cache")
    assert process.wait() == 0
    process.communicate()
    print(f"newest checkpoint after each kill: {reached}")
    assert len(set(reached)) > KILLS // 4, "the kills came at too few different moments"

    _, _, resumed = experiment.load_states(folder)
    same = jax.tree.map(np.array_equal, _arrays(whole.states[0]), _arrays(resumed.states[0]))
    assert jax.tree.all(same), same
    for name in ("metrics.jsonl", "metrics.csv"):
        assert (folder / name).read_text() == (tmp_path / "whole" / name).read_text()
    rounds = [json.loads(line)["round"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rounds == list(range(8000))


def _arrays(state):
    return jax.tree.map(np.asarray, (state.server, state.clients, state.aggregate, state.round))
