"""The benchmark of peers at toy size, against the one peer that runs in this environment. Nothing is installed."""

from __future__ import annotations

import json
import shutil
import sys
import time

import numpy as np
import pytest

from fedjax_sim.bench import _environments, _exchange, _peers
from fedjax_sim.bench._workloads import WORKLOADS


@pytest.fixture
def wrong(tmp_path, monkeypatch):
    """A peer that trains with twice the learning rate, one that stops, and one that has no package index."""
    scripts = tmp_path / "scripts"
    shutil.copytree(_peers.SCRIPTS, scripts)
    source = (scripts / "jitted_loop.py").read_text()
    mutated = source.replace("w - learning_rate * g", "w - 2 * learning_rate * g")
    assert mutated != source
    (scripts / "twice.py").write_text(mutated)
    (scripts / "stops.py").write_text("import sys\n\nprint('starts')\nsys.exit('no such thing')\n")
    monkeypatch.setitem(_peers.PEERS, "twice", _peers.Peer(scripts / "twice.py", ()))
    monkeypatch.setitem(_peers.PEERS, "stops", _peers.Peer(scripts / "stops.py", ()))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")


def test_who_agrees_is_timed_and_who_does_not_is_named(tmp_path, capsys, wrong):
    _peers.main([
        "--workloads", "toy", "--peers", "jitted", "twice", "stops", "torch", "--repeats", "1", "--warm", "1",
        "--rounds", "2", "--chunks", "1", "--environments", str(tmp_path / "environments"),
        "--out", str(tmp_path / "peers.json"),
    ])  # fmt: skip
    content, shown = json.loads((tmp_path / "peers.json").read_text()), capsys.readouterr().out
    rows = {row["program"]: row for row in content["rows"]}
    assert set(rows) == {"fedjax_sim", "jitted", "twice", "stops", "torch"}
    assert rows["fedjax_sim"]["ours_times_as_fast"] == 1 and rows["fedjax_sim"]["apart"] is None
    assert "lane" in rows["fedjax_sim"]["layout"] and rows["jitted"]["layout"] is None
    assert 0 < rows["jitted"]["apart"] < 1e-3 and rows["jitted"]["observations"] == 2
    assert rows["jitted"]["versions"]["jax"] == content["hardware"]["jax"]
    for name in ("fedjax_sim", "jitted"):
        assert rows[name]["examples_per_round"] > 0
        for key in (
            "examples_per_second",
            "examples_per_core_second",
            "seconds_per_round",
            "startup_seconds",
        ):
            assert 0 < rows[name][key]["min"] <= rows[name][key]["median"] <= rows[name][key]["max"]
    assert rows["twice"]["apart"] == pytest.approx(1, abs=0.1)
    for name, reason in {
        "twice": "disagrees: its update is ",
        "stops": "ended with 1: no such thing",
        "torch": "No matching distribution found for ",
    }.items():
        assert reason in rows[name]["not_measured"] and "examples_per_second" not in rows[name]
        assert f"toy {name}: not measured: " in shown
    assert [line.split()[1] for line in shown.splitlines() if line.startswith("toy ") and ": not" not in line] == [
        "fedjax_sim", "jitted",
    ]  # fmt: skip


def test_a_process_that_does_not_end_takes_its_children_along(tmp_path):
    """Flower's and Ray's workers are processes of their own."""
    left = tmp_path / "left"
    (tmp_path / "child.py").write_text("import time\n\ntime.sleep(5)\nopen('left', 'w').close()\n")
    hangs = "import subprocess, sys, time\n\nsubprocess.Popen([sys.executable, 'child.py'])\ntime.sleep(60)\n"
    (tmp_path / "hangs.py").write_text(hangs)
    with pytest.raises(_peers.PeerFailed, match="did not end within 2 s"):
        _peers.run([sys.executable, str(tmp_path / "hangs.py")], tmp_path / "a.job.json", 1, 2)
    time.sleep(5)
    assert not left.exists()


def test_another_number_of_times_is_told(tmp_path):
    job = tmp_path / "a.job.json"
    job.write_text(json.dumps({"result": str(tmp_path / "a.result.json")}))
    np.savez(tmp_path / "a.result.npz")
    times = {"seconds": [1.0, 1.0], "cpu_seconds": [1.0, 1.0], "startup_seconds": 1.0, "versions": {}}
    (tmp_path / "a.result.json").write_text(json.dumps(times))
    command = [sys.executable, "-c", ""]
    assert _peers.run(command, job, 2, 60).seconds == [1.0, 1.0]
    with pytest.raises(_peers.PeerFailed, match="left 2 times, expected 3"):
        _peers.run(command, job, 3, 60)


def test_an_environment_is_made_once(tmp_path):
    folder = tmp_path / "environments"
    python = folder / "numpy" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (folder / "numpy" / "installed.json").write_text('[["numpy==2"]]')
    assert _environments.python_of("numpy", [["numpy==2"]], folder) == python
    (folder / "file").touch()
    with pytest.raises(_environments.EnvironmentFailed, match="cannot be made"):
        _environments.python_of("numpy", [["numpy==3"]], folder / "file")


def test_every_workload_but_its_size_is_described_for_peers():
    for workload in WORKLOADS.values():
        named = {layer.partition(":")[2] for layer in workload.layers if "_" in layer}
        assert not workload.layers or named, workload.name
        assert 0 < workload.check_factor <= 1 and workload.rounds >= 1


def test_updates_are_compared_relative_to_ours():
    start = {"w": np.zeros(2, np.float32)}
    ours, theirs = {"w": np.array([3.0, 4.0], np.float32)}, {"w": np.array([3.0, 4.5], np.float32)}
    assert _exchange.disagreement(theirs, ours, start) == pytest.approx(0.1)
    assert _exchange.disagreement({"v": ours["w"]}, ours, start) == np.inf
    assert _exchange.disagreement({"w": np.zeros(3)}, ours, start) == np.inf
    assert _exchange.disagreement({"w": np.full(2, np.nan)}, ours, start) == np.inf
