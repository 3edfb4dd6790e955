"""Trackers beside metrics.jsonl: tables, event files, Weights & Biases; continuing after a crash; failing alone."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest

from fedjax_sim.history import Costs, History
from fedjax_sim.tracking import Csv, JsonLines, Lenient, Recorder, TensorBoard, WeightsAndBiases

ROOT = Path(__file__).resolve().parents[2]


def json_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# Continuing after a crash: the same laws for both kinds of file.


@pytest.fixture(params=[JsonLines, Csv])
def tracker_type(request):
    return request.param


def rounds_in(path: Path, tracker_type) -> list[int]:
    return [int(row["round"]) for row in (json_rows(path) if tracker_type is JsonLines else table(path))]


def write_rounds(tracker, rounds):
    with tracker:
        for index in rounds:
            tracker.write({"round": index, "loss": 1 / (index + 1), "note": 'a "quoted",\ntext'})


@pytest.mark.parametrize(
    "tail", ["", '{"round": 5, "lo', '5,0.1,"a ""quo', "5,0.1", "\udcff".encode(errors="surrogateescape")]
)
def test_a_continued_file_is_that_of_a_run_without_a_crash(tmp_path, tracker_type, tail):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_rounds(tracker_type(whole), range(8))
    write_rounds(tracker_type(broken), range(5))
    with broken.open("ab") as file:
        file.write(tail if isinstance(tail, bytes) else tail.encode())
    write_rounds(tracker_type(broken, keep_rounds=3), range(3, 8))
    assert broken.read_bytes() == whole.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole", "broken"}


@pytest.mark.parametrize("keep", [0, 2, 9])
def test_rounds_below_the_number_stay(tmp_path, tracker_type, keep):
    path = tmp_path / "rows"
    write_rounds(tracker_type(path), range(4))
    tracker_type(path, keep_rounds=keep).close()
    assert rounds_in(path, tracker_type) == list(range(4))[:keep]


def test_a_missing_file_is_begun(tmp_path, tracker_type):
    write_rounds(tracker_type(tmp_path / "rows", keep_rounds=3), [3])
    assert rounds_in(tmp_path / "rows", tracker_type) == [3]


@pytest.mark.parametrize("keep", [-1, 1.5, True, "3"])
def test_what_is_no_count_is_refused_before_the_file_is_touched(tmp_path, tracker_type, keep):
    with pytest.raises(ValueError, match=r"keep_rounds is .*expected the number of rounds to keep"):
        tracker_type(tmp_path / "rows", keep_rounds=keep)
    assert not list(tmp_path.iterdir())


def test_a_file_that_dies_while_it_is_replaced_is_still_there(tmp_path, tracker_type, monkeypatch):
    path = tmp_path / "rows"
    write_rounds(tracker_type(path), range(4))
    before = path.read_bytes()
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError("killed")))
    with pytest.raises(OSError, match="killed"):
        tracker_type(path, keep_rounds=2)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"round": 0}\n{"rou\n{"round": 1}\n', r"line 2 of .*rows is '\{\"rou', expected a JSON object"),
        ('{"round": 0}\n{"step": 1}\n{"round": 1}\n', "line 2 of"),
        ('{"round": 0}\n\n{"round": 1}\n', "line 2 of .* is ''"),
    ],
)
def test_a_broken_line_in_the_middle_is_an_error_and_stays(tmp_path, content, message):
    path = tmp_path / "rows"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        JsonLines(path, keep_rounds=2)
    assert path.read_text() == content


@pytest.mark.parametrize(
    ("content", "message"), [("a,b\n1,2\n", "columns of .* are a, b"), ("round\nx\n", "row without a round")]
)
def test_a_table_of_something_else_is_an_error(tmp_path, content, message):
    (tmp_path / "rows").write_text(content)
    with pytest.raises(ValueError, match=message):
        Csv(tmp_path / "rows", keep_rounds=2)


# Csv


def test_columns_are_those_of_all_rows(tmp_path):
    path = tmp_path / "metrics.csv"
    with Csv(path) as tracker:
        tracker.write({"round": 0, "seed": 0, "loss": np.float32(0.5)})
        tracker.write({"loss": float("nan"), "round": 1, "seed": 0})
        tracker.write(
            {"round": 1, "seed": 1, "eval/accuracy": 0.25, "sweep": {"client.lr": 0.1}, "list": [1, 2]}
        )
        assert len(table(path)) == 3, "every row is on disk before the next"
        tracker.write({"round": 2, "flag": True})
    assert path.read_text().splitlines() == [
        "round,seed,loss,eval/accuracy,sweep/client.lr,list,flag",
        "0,0,0.5,,,,",
        "1,0,,,,,",
        '1,1,,0.25,0.1,"[1, 2]",',
        "2,,,,,,true",
    ]


def test_csv_refuses_what_json_lines_refuses(tmp_path):
    path = tmp_path / "rows.csv"
    with Csv(path) as tracker:
        with pytest.raises(TypeError, match="is object, expected"):
            tracker.write({"round": 0, "a": object()})
        tracker.write({"round": 0})
    assert path.read_text() == "round\n0\n"
    with pytest.raises(ValueError, match="closed"):
        tracker.write({"round": 1})
    with pytest.raises(FileExistsError, match=r"rows\.csv exists already .* keep_rounds=n"):
        Csv(path)


# TensorBoard


def events(folder: Path) -> dict[str, list[tuple[int, str, float]]]:
    """Scalars per run as TensorBoard's own reader sees them."""
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    multiplexer = EventMultiplexer().AddRunsFromDirectory(str(folder)).Reload()
    return {
        run: sorted(
            (event.step, tag, event.value)
            for tag in tags["scalars"]
            for event in multiplexer.Scalars(run, tag)
        )
        for run, tags in multiplexer.Runs().items()
    }


def quietly(function, *arguments):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the reader's dependencies
        return function(*arguments)


def test_tensorboard_reads_what_was_written(tmp_path):
    with TensorBoard(tmp_path / "board") as tracker:
        tracker.write({"round": 0, "loss": np.float32(0.5), "note": "text", "flag": True, "none": None})
        tracker.write({"round": 1, "loss": 0.25, "eval/accuracy": 1})
    tracker.close()
    assert quietly(events, tmp_path / "board") == {
        ".": [(1, "loss", 0.5), (2, "eval/accuracy", 1.0), (2, "loss", 0.25)]
    }
    with pytest.raises(ValueError, match="closed"):
        tracker.write({"round": 2})


def test_tensorboard_gives_every_replica_a_run(tmp_path):
    with TensorBoard(tmp_path) as tracker:
        for seed in (0, 1):
            tracker.write({"round": 0, "seed": seed, "sweep": {"a.lr": 0.5, "path": "../up"}, "loss": seed})
    assert quietly(events, tmp_path) == {
        f"a.lr=0.5,path=.._up,seed={seed}": [(1, "loss", float(seed))] for seed in (0, 1)
    }


def test_tensorboard_forgets_the_rounds_after_a_crash(tmp_path):
    with TensorBoard(tmp_path) as tracker:
        for index in range(5):
            tracker.write({"round": index, "loss": 1.0})
    with TensorBoard(tmp_path, keep_rounds=2) as tracker:
        for index in range(2, 4):
            tracker.write({"round": index, "loss": 2.0})
    (run,) = quietly(events, tmp_path).values()
    assert run == [(1, "loss", 1.0), (2, "loss", 1.0), (3, "loss", 2.0), (4, "loss", 2.0)]


def test_tensorboard_does_not_import_tensorflow(tmp_path):
    code = f"""
import sys
class NoTensorFlow:
    def find_spec(self, name, path=None, target=None):
        assert name.partition(".")[0] != "tensorflow", "imported TensorFlow"
sys.meta_path.insert(0, NoTensorFlow())
from fedjax_sim.tracking import TensorBoard
assert "tensorboard" not in sys.modules
with TensorBoard({str(tmp_path)!r}) as tracker:
    tracker.write({{"round": 0, "loss": 1.0}})
assert "tensorboard" in sys.modules
"""
    subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, env={"PYTHONPATH": ".:kernels"}, timeout=300
    )


@pytest.mark.parametrize(
    ("package", "make"),
    [
        ("tensorboard", lambda path: TensorBoard(path)),
        ("wandb", lambda path: WeightsAndBiases("project", "run")),
    ],
)
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package, make):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"pip install 'fedjax-sim\[{package}\]'"):
        make(tmp_path)


# Weights & Biases, with a stand-in for the package.


@pytest.fixture
def wandb(monkeypatch):
    class Run:
        def __init__(self, **options):
            self.options, self.logged, self.finished = options, [], 0

        def log(self, metrics, step):
            self.logged.append((step, metrics))

        def finish(self):
            self.finished += 1

    fake = types.ModuleType("wandb")
    fake.runs = []
    fake.init = lambda **options: fake.runs.append(Run(**options)) or fake.runs[-1]
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


def test_every_replica_is_a_run_of_one_group(wandb, tmp_path):
    config = {"rounds": 2, "path": Path("data")}
    with WeightsAndBiases("digits", "fedavg", folder=tmp_path, mode="offline", config=config) as tracker:
        assert wandb.runs == [], "a run begins with its first row"
        for index in range(2):
            for seed in (0, 1):
                tracker.write({"round": index, "seed": seed, "loss": np.float32(0.5)})
    tracker.close()
    assert [run.options["name"] for run in wandb.runs] == ["fedavg, seed=0", "fedavg, seed=1"]
    first = wandb.runs[0]
    assert first.options == {
        "project": "digits", "group": "fedavg", "mode": "offline", "dir": str(tmp_path), "name": "fedavg, seed=0",
        "config": {"rounds": 2, "path": "data", "seed": 0}, "reinit": "create_new",
    }  # fmt: skip
    assert first.logged == [(1, {"loss": 0.5}), (2, {"loss": 0.5})]
    assert [run.finished for run in wandb.runs] == [1, 1]


def test_the_same_run_id_continues_the_same_runs(wandb):
    for _ in range(2):
        with WeightsAndBiases("p", "n", run_id="a") as tracker:
            for seed in (0, 1):
                tracker.write({"round": 0, "seed": seed})
    ids = [run.options["id"] for run in wandb.runs]
    assert ids[:2] == ids[2:] and len(set(ids)) == 2
    assert wandb.runs[0].options["resume"] == "allow"


def test_an_unknown_mode_is_refused(wandb):
    with pytest.raises(ValueError, match="mode is 'of', expected one of 'online', 'offline'"):
        WeightsAndBiases("p", "n", mode="of")


# Failing alone.


class Broken:
    def __init__(self, at: int, error: BaseException | None = None):
        self.at, self.error = at, error or ConnectionError("no route to host")
        self.rows, self.closed = [], 0

    def write(self, row):
        if row["round"] == self.at:
            raise self.error
        self.rows.append(row["round"])

    def close(self):
        self.closed += 1
        if self.at < 0:
            raise self.error


def history(rounds: int) -> History:
    return History(0, {"loss": np.linspace(1, 0, rounds)}, {}, Costs())


def test_a_broken_optional_tracker_does_not_end_the_run(tmp_path):
    broken = Broken(at=2)
    message = (
        "tracker Broken is off for the rest of the run, which goes on: ConnectionError: no route to host"
    )
    with (
        JsonLines(tmp_path / "metrics.jsonl") as rows,
        Lenient(broken) as optional,
        pytest.warns(RuntimeWarning) as caught,
    ):
        Recorder(optional, rows).record([history(5)])
    assert [row["round"] for row in json_rows(rows.path)] == list(range(5))
    assert broken.rows == [0, 1] and broken.closed == 1
    assert len(caught) == 1 and message in str(caught[0].message)
    assert optional.error is broken.error


def test_a_broken_tracker_without_leniency_ends_the_run():
    with pytest.raises(ConnectionError):
        Recorder(Broken(at=2)).record([history(5)])


def test_a_tracker_that_cannot_close_is_a_warning():
    with (
        pytest.warns(RuntimeWarning, match="tracker uploads is off"),
        Lenient(Broken(at=-1), name="uploads") as tracker,
    ):
        tracker.write({"round": 0})
    tracker.close()


def test_an_interrupt_is_not_swallowed():
    with pytest.raises(KeyboardInterrupt):
        Lenient(Broken(at=0, error=KeyboardInterrupt())).write({"round": 0})
