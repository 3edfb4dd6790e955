"""Trackers: what they write, what they refuse, and what a run that fails leaves."""

from __future__ import annotations

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import tracking
from fedjax_sim.tracking import JsonLines, Recorder


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_line_is_on_disk_before_the_next(tmp_path):
    path = tmp_path / "metrics.jsonl"
    with JsonLines(path) as tracker:
        for index in range(3):
            tracker.write({"round": index})
            assert [row["round"] for row in lines(path)] == list(range(index + 1))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.str_("ann"), "ann"),
        (np.arange(3), [0, 1, 2]),
        (np.float64("nan"), None),
        (jnp.float32(0.25), 0.25),
        (jnp.ones((1, 2)), [[1.0, 1.0]]),
        (float("nan"), None),
        (float("-inf"), None),
        ([1.0, float("nan")], [1.0, None]),
        ((1, "two", None), [1, "two", None]),
        ({"a": {"b": np.float32("inf")}}, {"a": {"b": None}}),
        (Path("runs") / "a", "runs/a"),
        ("snow ☃", "snow ☃"),
        (True, True),
        (10**20, 10**20),
    ],
)
def test_values_become_json(tmp_path, value, expected):
    with JsonLines(tmp_path / "rows.jsonl") as tracker:
        tracker.write({"value": value})
    (row,) = lines(tmp_path / "rows.jsonl")
    assert row["value"] == expected and type(row["value"]) is type(expected)


def test_a_file_is_never_overwritten(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("precious\n")
    with pytest.raises(FileExistsError, match=r"rows\.jsonl exists already and is not overwritten"):
        JsonLines(path)
    assert path.read_text() == "precious\n"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": object()}, "is object, expected a number, text, array, list or mapping"),
        ({"a": {1, 2}}, "is set, expected"),
        ({1: "a"}, "key 1 is int, expected a string"),
        ({"a": 1j}, "is complex, expected"),
    ],
)
def test_a_refused_row_leaves_no_trace(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    with JsonLines(path) as tracker:
        with pytest.raises(TypeError, match=message):
            tracker.write({"first": 1} | row)
        tracker.write({"round": 0})
    assert lines(path) == [{"round": 0}]


def test_a_closed_tracker_refuses_rows_and_closes_again(tmp_path):
    with JsonLines(tmp_path / "rows.jsonl") as tracker:
        pass
    tracker.close()
    with pytest.raises(ValueError, match="closed"):
        tracker.write({"round": 0})


def test_write_json_replaces_the_whole_file(tmp_path):
    path = tmp_path / "summary.json"
    for content in ({"a": 1, "b": [np.float32("nan")]}, {"a": 2}):
        tracking.write_json(path, content)
        assert json.loads(path.read_text()) == tracking.as_json(content)
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def simulation(learning_rate: float = 0.1) -> tuple[fs.Simulation, fs.ClientData]:
    generator = np.random.default_rng(0)
    columns = {"x": generator.normal(size=(12, 3)).astype(np.float32), "y": np.arange(12) % 2}
    data = fs.ClientData(columns, [0, 5, 6, 12], ["ann", "bo", "cy"])
    task = fs.tasks.classification(fs.models.linear(classes=2))
    algorithm = fs.algorithms.fedavg(task, optax.sgd(learning_rate))
    local = fs.LocalWork(batch_size=4)
    return fs.Simulation(algorithm, data, cohort=fs.cohorts.uniform(2), local=local, rounds_per_chunk=2), data


def test_the_recorder_writes_every_round_once(tmp_path):
    sim, data = simulation()
    state, _ = sim.run(sim.init(seed=0), rounds=1)
    with JsonLines(tmp_path / "metrics.jsonl") as tracker, Recorder(tracker) as recorder:
        _, history = sim.run(state, rounds=5, evaluate_on=data, every=3, callbacks=[recorder])
    rows = lines(tmp_path / "metrics.jsonl")
    assert [row["round"] for row in rows] == [1, 2, 3, 4, 5]  # the sixth round of the state has index 5
    np.testing.assert_allclose([row["loss"] for row in rows], history["loss"])
    evaluated = {row["round"] + 1: row for row in rows if any(name.startswith("eval/") for name in row)}
    assert set(evaluated) == set(history.evaluations)
    for done, row in evaluated.items():
        evaluation = history.evaluations[done]["eval"]
        assert row["eval/accuracy"] == evaluation.examples["accuracy"]
        for over in ("mean", "weighted", "worst_decile", "best_decile", "std", "variance", "jain"):
            assert row[f"eval/loss/{over}"] == evaluation.clients["loss"][over]
    assert recorder.recorded == 6


def test_rows_name_the_sets():
    sim, data = simulation()
    _, history = sim.run(sim.init(seed=0), rounds=1, evaluate_on={"test": data, "unseen": data.select([2])})
    (row,) = tracking.round_rows(history)
    assert row["test/accuracy"] == history.last("accuracy", on="test").value
    assert row["unseen/loss/jain"] == history.last("loss", on="unseen", over="jain").value
    assert not any(name.startswith("eval/") for name in row)


def test_the_recorder_keeps_the_rounds_before_a_model_that_is_not_finite(tmp_path):
    generator = np.random.default_rng(0)
    columns = {"x": generator.normal(size=(12, 3)).astype(np.float32), "y": np.ones((12, 1), np.float32)}
    data = fs.ClientData(columns, [0, 5, 6, 12], ["ann", "bo", "cy"])
    task = fs.tasks.regression(fs.models.linear(classes=1))
    # Squared error with too long a step grows by a factor in every round until it overflows.
    algorithm = fs.algorithms.fedavg(task, optax.sgd(1e4))
    sim = fs.Simulation(algorithm, data, cohort=fs.cohorts.uniform(2), rounds_per_chunk=50)
    with JsonLines(tmp_path / "metrics.jsonl") as tracker, pytest.raises(fs.NonFiniteModelError) as raised:  # noqa: SIM117
        with Recorder(tracker) as recorder:
            sim.run(sim.init(seed=0), rounds=50, callbacks=[recorder])
    assert raised.value.round > 0, "the test wants a failure in the middle of the chunk"
    assert [row["round"] for row in lines(tmp_path / "metrics.jsonl")] == list(range(raised.value.round))
