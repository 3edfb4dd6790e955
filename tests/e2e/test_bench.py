"""Benchmarks at toy size: that they run and what they write. Nothing is timed here."""

from __future__ import annotations

import json
import lzma
import os
import statistics
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fedjax_sim_kernels import backends

from fedjax_sim.bench import _kernels, _rounds

ROOT = Path(__file__).resolve().parents[2]


def bench(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own: benchmarks pin the cores they use."""
    own = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, "-m", "fedjax_sim", "bench", *arguments]
    return subprocess.run(
        command, cwd=folder, env={**os.environ, **own}, capture_output=True, text=True, timeout=300
    )


def test_kernels_time_every_form_and_mark_the_one_in_use(tmp_path):
    shapes = ["resnet", "digits-1", "emnist-1"]
    done = bench(
        tmp_path, "kernels", "--", "--shapes", *shapes, "--repeats", "1", "--clients", "2", "--out", "k.json"
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "k.json").read_text())["rows"]
    assert {(row["kernel"], row["shape"]) for row in rows} == {
        ("conv", "emnist-1"), ("conv", "digits-1"), ("pooling", "resnet max"), ("pooling", "resnet sum"),
        ("packing", "emnist-1"),
    }  # fmt: skip
    for row in rows:
        assert row["seconds"]["min"] <= row["seconds"]["median"] <= row["seconds"]["max"]
        assert row["floor_seconds"] > 0
    of_conv = {row["form"]: row["used"] for row in rows if row["shape"] == "digits-1"}
    assert of_conv == {"reference": False, "slices": True, "shifted": False, "winograd": False}
    assert "slices *" in done.stdout and "of floor" in done.stdout


def test_kernels_mark_what_a_gpu_takes(monkeypatch):
    monkeypatch.setattr(backends, "current", lambda: "nvidia")
    monkeypatch.setattr(_kernels, "_on_accelerators", lambda *_, **__: {"pallas": None})
    used = {}
    for case in _kernels.sum_cases(1):
        assert case.used in case.forms
        used.setdefault(case.used, set()).add(f"{case.kernel} {case.shape}")
    assert used.keys() == {"reference", "pallas"} and used["pallas"] == {
        "order emnist-10 median", "order emnist-10 trimmed mean",
    }  # fmt: skip


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_programs_stay_with_their_cases_and_what_does_not_compile_says_so_when_it_is_asked_for(
    monkeypatch, backend
):
    """On an accelerator all are compiled ahead: what one of them raises must not end the others."""

    def broken(x):
        raise NotImplementedError("no such form")

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    cases = [
        _kernels.Case(
            "toy", str(n), {"plain": lambda x, n=n: n * x, "broken": broken}, "plain", (jnp.ones(2),), 0, 8
        )
        for n in range(3)
    ]
    for n, (case, programs) in enumerate(_kernels.compiled_cases(iter(cases), threads=2)):
        assert case is cases[n]
        program, seconds = programs["plain"]()
        assert program(*case.arguments).tolist() == [n, n] and seconds > 0
        with pytest.raises(NotImplementedError, match="no such form"):
            programs["broken"]()
    assert n == 2


def test_streaming_stands_beside_the_same_work_in_memory(tmp_path):
    done = bench(
        tmp_path, "streaming", "--", "--gigabytes", "0.003", "--models", "linear", "--cohort", "3", "--rounds", "2",
        "--chunks", "2", "--repeats", "1", "--out", "s.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    resident, streamed = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert (resident["feed"], streamed["feed"]) == ("resident", "streamed")
    speeds = [row["examples_per_second"]["median"] for row in (resident, streamed)]
    assert streamed["ratio"] == pytest.approx(speeds[1] / speeds[0]) and resident["ratio"] == 1
    assert streamed["set_gigabytes"] == pytest.approx(0.003, rel=0.1)


def test_a_streamed_run_may_not_allocate_more_than_it_is_given(tmp_path):
    done = bench(
        tmp_path, "streaming", "--", "--gigabytes", "0.003", "--models", "linear", "--limit", "0.05", "--repeats", "1",
    )  # fmt: skip
    assert done.returncode != 0 and "run of linear ended with" in done.stderr


def test_privacy_stands_beside_the_plain_mean(tmp_path):
    done = bench(tmp_path, "privacy", "--", "--workloads", "toy", "--repeats", "1", "--out", "p.json")
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "p.json").read_text())
    assert [row["chain"] for row in content["rows"]] == [
        "mean", "clip, mean", "clip, mean, noise", "adaptive clip, mean, noise",
    ]  # fmt: skip
    plain, *others = (row["seconds_per_round"]["median"] for row in content["rows"])
    assert content["rows"][0]["added"] == 0
    assert [row["added"] for row in content["rows"][1:]] == pytest.approx([x / plain - 1 for x in others])
    assert content["ledger_seconds_per_round"] > 0 and set(content["price_seconds"]) == {"pld", "rdp"}


def test_scaling_has_a_row_for_each_size(tmp_path):
    done = bench(
        tmp_path, "scaling", "--", "--clients", "30", "--cohort", "5", "--lanes", "1", "2", "--cohorts", "5", "30",
        "--populations", "30", "300", "--rounds", "2", "--repeats", "2", "--out", "s.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "s.json").read_text())["rows"]
    assert [(row["what"], row["population"], row["cohort"]) for row in rows if row["what"] != "devices"] == [
        ("lanes", 30, 5), ("lanes", 30, 5), ("cohort", 30, 5), ("cohort", 30, 30), ("population", 30, 5),
        ("population", 300, 5),
    ]  # fmt: skip
    assert [row["devices"] for row in rows if row["what"] == "devices"] == list(
        range(1, len(os.sched_getaffinity(0)) + 1)
    )


def test_rounds_states_floors_and_marks_slow_compilation(tmp_path, capsys):
    done = bench(
        tmp_path, "rounds", "--", "--cores", "1", "--workloads", "toy", "--lanes", "1", "--repeats", "2", "--out", "r.json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "r.json").read_text())
    assert [(r["workload"], r["engine"], r["lanes"]) for r in result["rows"]] == [
        ("toy", "sequential", 1), ("toy", "lanes", 1),
    ]  # fmt: skip
    for found in result["rows"]:
        assert found["floor_seconds"] == max(found["floors_seconds"].values()) > 0
        # Each of a round's steps moves every parameter twice.
        assert found["bytes_per_round"] > found["steps_per_round"] * 2 * 4 * 100_000
        assert found["seconds_per_round"]["repetitions"] == 2
    result["rows"][0]["compile_seconds"] = result["compile_budget_seconds"] + 0.1
    result["rows"][1]["compile_seconds"] = result["compile_budget_seconds"] - 0.1
    _rounds.show(result)
    shown = capsys.readouterr().out
    assert (
        "! 10.1" in shown and "! 9.9" not in shown and "! 1 row(s) took longer to compile than 10 s" in shown
    )


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_rounds_of_one_core_and_of_all_take_turns(tmp_path):
    done = bench(
        tmp_path, "rounds", "--", "--workloads", "toy", "--lanes", "1", "--repeats", "3", "--out", "r.json"
    )
    assert done.returncode == 0, done.stderr
    one, all_of_them = json.loads((tmp_path / "r.json").read_text())
    assert one["hardware"]["cores"] == 1 < all_of_them["hardware"]["cores"]
    fastest = min(one["rows"], key=lambda row: row["seconds_per_round"]["median"])["seconds_per_round"]
    assert not any("times_one_core" in row for row in one["rows"])
    for row in all_of_them["rows"]:
        pairs = zip(fastest["in_turn"], row["seconds_per_round"]["in_turn"], strict=True)
        assert row["times_one_core"]["median"] == statistics.median(a / b for a, b in pairs)
    assert "x 1 core" in done.stdout


def test_rounds_says_what_to_add_where_there_is_no_accelerator(tmp_path):
    done = bench(tmp_path, "rounds", "--", "--accelerator", "--workloads", "toy")
    assert done.returncode == 2 and "leave out --accelerator" in done.stderr


def test_accuracy_of_lanes_stands_beside_that_of_the_sequential_engine(tmp_path):
    """On images that a network can learn: a bright spot says of which class they are."""
    generator = np.random.default_rng(0)
    labels = {part: generator.integers(0, 4, count) for part, count in (("train", 200), ("test", 40))}
    for part, own in labels.items():
        images = generator.integers(0, 80, (len(own), 12, 12, 1), dtype=np.uint8)
        images[np.arange(len(own)), 2 * own + 2, 5] = 255
        with lzma.open(tmp_path / f"{part}_images.npy.xz", "wb") as file:
            np.save(file, images)
    np.savez(tmp_path / "labels.npz", **{f"{part}_label": own for part, own in labels.items()})
    done = bench(
        tmp_path, "accuracy", "--", str(tmp_path), "--workload", "toy", "--rounds", "6", "--every", "3", "--out", "a.json"
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "a.json").read_text())["rows"]
    assert [(row["engine"], row["rounds"]) for row in rows] == [
        ("sequential", 3), ("lanes", 3), ("sequential", 6), ("lanes", 6),
    ]  # fmt: skip
    for sequential, lanes in zip(rows[::2], rows[1::2], strict=True):
        assert lanes["apart"] < 1e-3 and abs(lanes["accuracy"] - sequential["accuracy"]) <= 0.05
    assert rows[-1]["loss"] < rows[0]["loss"]


def test_published_runs_whole_experiments_with_their_evaluations(tmp_path):
    done = bench(
        tmp_path, "published", "--", "--experiments", "toy", "--precision", "default", "bfloat16", "--rounds", "2",
        "--repeats", "2", "--out", "p.json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "p.json").read_text())
    assert [(row["experiment"], row["precision"], row["rounds"]) for row in content["rows"]] == [
        ("toy", "default", 2), ("toy", "bfloat16", 2),
    ]  # fmt: skip
    for found in content["rows"]:
        seconds, evaluation = found["seconds"], found["evaluation_seconds"]
        assert all(seconds[name] > evaluation[name] > 0 for name in ("min", "median", "max"))
        # Two rounds of four of its clients, two epochs each; they have 3 to 30 examples.
        assert 2 * 4 * 2 * 3 <= found["examples"] <= 2 * 4 * 2 * 30
        assert found["examples_per_second"] == pytest.approx(found["examples"] / seconds["median"])
        assert found["floor_seconds"] == max(found["floors_seconds"].values()) > 0
        assert found["share_of_floor"] == pytest.approx(found["floor_seconds"] / seconds["median"])
        rate = content["matmul_flops_per_second"][found["precision"]]
        arithmetic = found["floors_seconds"]["arithmetic"] * rate
        assert found["flops_per_second"] == pytest.approx(arithmetic / seconds["median"])
        assert found["compile_seconds"] > 0 and found["first_evaluations_seconds"] > 0
        assert ("bfloat16" in found["computes"]) == (found["precision"] == "bfloat16")
    assert "of floor" in done.stdout and "matrix product, bfloat16" in done.stdout


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot be read as JSON"),
        ("{", "cannot be read as JSON"),
        ('{"rows": []}', "is no file of a benchmark: it needs 'hardware' and 'rows'"),
        ("[1]", "is no file of a benchmark"),
    ],
)
def test_what_is_no_benchmark_is_named(tmp_path, content, message):
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content)
    right = ROOT / "benchmarks/results/published-h200.json"
    done = bench(tmp_path, "compare", "--", str(right), str(path))
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
