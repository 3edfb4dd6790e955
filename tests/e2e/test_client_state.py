"""Client state on disk in processes of their own: killed at any moment, and with less memory than the table has bytes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_sim.checkpoint import Checkpoints

ROOT = Path(__file__).resolve().parents[2]

KILLED = """
import itertools, os, signal, sys
from pathlib import Path
import numpy as np
import fedjax_sim as fs
from fedjax_sim import _client_item, _client_layout
from fedjax_sim._client_store import StoreTable

folder, where, kind, moment = Path(sys.argv[1]), sys.argv[2], sys.argv[3], int(sys.argv[4])
_client_layout.PIECE = 400
events = itertools.count(1)


def event(name):
    if name == kind and next(events) == moment:
        os.kill(os.getpid(), signal.SIGKILL)


def killed_before(call):
    def wrapped(*args, **options):
        event(call.__name__)
        return call(*args, **options)

    return wrapped


def pieces(*args):
    for part in used_rows(*args):
        event("piece")
        yield part


# A write into the table, a piece of a checkpoint, its end, and the new name of its folder or the table's.
used_rows, _client_item.used_rows = _client_item.used_rows, pieces
StoreTable.put, os.fsync, os.rename = map(killed_before, (StoreTable.put, os.fsync, os.rename))
generator = np.random.default_rng(0)
data = fs.data.ClientData(
    {"x": generator.normal(size=(60, 3)).astype(np.float32), "y": generator.integers(2, size=60).astype(np.int32)},
    np.arange(0, 61, 3), np.arange(20),
)
sim = fs.Simulation(
    fs.algorithms.scaffold(fs.tasks.classification(fs.models.linear(classes=2)), 0.1), data,
    cohort=fs.cohorts.uniform(4), rounds_per_chunk=2, client_state=where if where == "device" else folder / "scratch",
)
state, _ = sim.run(sim.init(0), 40, checkpoints=fs.Checkpoints(folder / "checkpoints", every=2))
np.savez(folder / "end.npz", *map(np.asarray, __import__("jax").tree.leaves((state.server, state.clients))))
"""

LARGE = """
import json, resource, sys
from pathlib import Path
import jax, numpy as np
import fedjax_sim as fs

folder, where, last = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
CLIENTS, COHORT = 4400, 50
data = fs.data.ClientData(
    {"x": np.ones((CLIENTS, 784), np.uint8), "y": (np.arange(CLIENTS) % 62).astype(np.int32)},
    np.arange(CLIENTS + 1), np.arange(CLIENTS),
)
task = fs.tasks.classification(fs.models.linear(classes=62))


def run(rounds, name):
    sim = fs.Simulation(
        fs.algorithms.scaffold(task, 0.01), data, cohort=fs.cohorts.shuffled(COHORT), rounds_per_chunk=1,
        client_state=folder if where == "disk" else where,
    )
    checkpoints = fs.Checkpoints(folder / "runs" / name, every=CLIENTS // COHORT, keep=1)
    state, _ = sim.run(sim.init(0), rounds, checkpoints=checkpoints)
    table = sum(leaf.nbytes for leaf in jax.tree.leaves(state.clients))
    return table, sum(int(state.clients.seen[i : i + 100].sum()) for i in range(0, CLIENTS, 100))


for rounds in (3, 4):  # what the libraries take, also those who read
    run(rounds, f"before {last}")
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
allowed = 200 * 2**20
limit = int(status["VmData"].split()[0]) * 1024 + allowed
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
table, seen = run(last, "large")
print(json.dumps({"table": table, "allowed": allowed, "seen": seen}))
"""


MOMENTS = [
    ("put", 3),
    ("piece", 2),
    ("fsync", 3),
    ("piece", 9),
    ("rename", 8),
    ("put", 9),
    ("piece", 15),
]


def process(program: str, *args: object) -> subprocess.CompletedProcess:
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, "-c", program, *map(str, args)],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=600,
    )


@pytest.mark.slow
def test_killed_at_every_kind_of_moment_and_the_same_to_the_last_bit(tmp_path):
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    for path in (whole, folder / "scratch"):
        path.mkdir(parents=True)
    done = process(KILLED, whole, "device", "never", 0)
    assert done.returncode == 0, done.stderr
    reached, checkpoints = [0], Checkpoints(folder / "checkpoints")
    for kind, moment in MOMENTS:
        done = process(KILLED, folder, "disk", kind, moment)
        assert done.returncode == -signal.SIGKILL, (done.returncode, done.stderr)
        reached.append(max(checkpoints.rounds(), default=0))
        assert len(list((folder / "scratch").iterdir())) <= 2, "what the one before had is gone"
    done = process(KILLED, folder, "disk", "never", 0)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert not list((folder / "scratch").iterdir())
    print(f"newest checkpoint after each kill: {reached}")
    assert reached == sorted(reached) and len(set(reached)) > 3
    with np.load(whole / "end.npz") as expected, np.load(folder / "end.npz") as got:
        assert expected.files == got.files
        assert jax.tree.all([expected[name].tobytes() == got[name].tobytes() for name in expected.files])


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_DATA is Linux's")
def test_a_table_larger_than_the_memory_runs_is_saved_and_goes_on(tmp_path):
    """With four times the bytes that may be allocated beside those of the libraries; in memory it does not even begin."""
    for rounds in (88, 90):
        done = process(LARGE, tmp_path, "disk", rounds)
        assert done.returncode == 0, done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["runs"], "what it had on disk is gone"
        found = json.loads(done.stdout.splitlines()[-1])
        assert found["seen"] == 4400
        assert found["table"] > 4 * found["allowed"]
    done = process(LARGE, tmp_path / "in memory", "host", 88)
    assert done.returncode != 0 and ("MemoryError" in done.stderr or "RESOURCE_EXHAUSTED" in done.stderr), (
        done.stderr
    )
