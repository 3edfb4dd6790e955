"""The presets of the federated EMNIST experiment: what they change, that they run, and what was committed of them."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedjax_sim import experiment
from fedjax_sim.experiment._settings import flat

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples" / "emnist"
RESULTS = FOLDER / "results"

CHANGES = {
    "original": set(),
    "rounds_50": {"rounds"},
    "rounds_100": {"rounds"},
    "deeper_cnn": {"model.name"},
    "adam": {"algorithm.client", "algorithm.server"},
    "fedadam": {"algorithm"},
    "clients_20": {"cohort"},
    "batch_64": {"local.batch_size"},
    "flipped": {"local.batch_size", "task.augment"},
    "bright_ink": {"data.ink"},
    "augmented": {"data.ink", "task.augment"},
    "fedprox": {"algorithm"},
    "fedavgm": {"algorithm"},
    "best": {"rounds", "data.ink", "model", "algorithm", "cohort", "local", "evaluation.every"},
}
"""Tables and keys in which a preset differs from the original; nothing else may differ."""

SAME = {
    "fedadam": {"algorithm.client.learning_rate": 1e-3},
    "fedprox": {"algorithm.client.name": "sgd", "algorithm.client.learning_rate": 0.02},
    "fedavgm": {"algorithm.client.name": "sgd", "algorithm.client.learning_rate": 0.02},
    "deeper_cnn": {"model.kernel_init": "glorot_uniform"},
    "best": {"local.batch_size": 20},
}
"""What a preset that replaces a table says again, or keeps."""


def run_all():
    spec = importlib.util.spec_from_file_location("emnist_run_all", FOLDER / "run_all.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def settings(name: str) -> dict:
    return flat(experiment.load(FOLDER / f"{name}.toml").settings)


def test_no_preset_is_forgotten():
    files = {path.stem for path in FOLDER.glob("*.toml")}
    assert files == set(CHANGES) == set(run_all().PRESETS)


def test_the_original_is_that_of_the_tutorials():
    found = settings("original")
    assert found["model.name"] == "reference_cnn" and found["cohort.clients"] == [0, 1, 2, 3, 4]
    assert (found["algorithm.client.learning_rate"], found["algorithm.server.learning_rate"]) == (0.02, 1.0)
    assert (found["rounds"], found["local.epochs"], found["local.batch_size"]) == (10, 1, 20)
    assert found["local.shuffle"] is False


@pytest.mark.parametrize("name", CHANGES)
def test_a_preset_changes_what_it_claims_and_nothing_else(name):
    before, after = settings("original"), settings(name)
    absent = object()
    differ = {key for key in before | after if before.get(key, absent) != after.get(key, absent)}

    def claimed(key: str) -> bool:
        return any(key == claim or key.startswith((f"{claim}.", f"{claim}[")) for claim in CHANGES[name])

    assert not {key for key in differ if not claimed(key)}
    assert all(any(key.startswith(claim) for key in differ) for claim in CHANGES[name])
    assert SAME.get(name, {}).items() <= after.items()


def test_the_lines_of_a_preset_are_its_change():
    """One line, but for the augmentation with the tutorials' batch and for the combination of all."""
    change = run_all().change
    more = {name: len(change(name)) for name in CHANGES if len(change(name)) != 1}
    assert more == {"original": 0, "flipped": 2, "best": 7}
    assert change("rounds_50") == ["rounds = 50"]


@pytest.mark.parametrize("ink", ["dark", "bright"])
def test_without_mnist_the_digits_take_its_place(tmp_path, ink):
    changes = [f"data.folder={tmp_path / 'nowhere'}", f"data.ink={ink}"]
    data = experiment.load(FOLDER / "original.toml", changes).federated
    assert (data.name, data.classes) == ("digits", 10)
    assert data.train.columns["x"].shape[1:] == (28, 28, 1)
    assert (data.train.columns["x"].mean() > 128) == (ink == "dark")


def test_mnist_by_writer_where_it_is_present(shared):
    loaded = experiment.load(FOLDER / "original.toml", [f"data.folder={shared / 'data' / 'mnist_by_writer'}"])
    train, test = loaded.federated.train, loaded.federated.test
    assert (train.num_clients, test.num_clients, train.num_examples) == (539, 297, 60_000)
    assert not set(train.ids) & set(test.ids)
    assert train.columns["x"].mean() > 128
    assert loaded.parameters() == 693_962


@pytest.mark.filterwarnings("error")
def test_flips_warn():
    with pytest.warns(UserWarning, match="mirrored digit"):
        experiment.load(FOLDER / "flipped.toml", ["data.source=digits"]).task()


# --- running all ---------------------------------------------------------------------------------------------


def start(*arguments: str) -> subprocess.CompletedProcess:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    return subprocess.run(
        [sys.executable, str(FOLDER / "run_all.py"), *arguments],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}, timeout=1800,
    )  # fmt: skip


@pytest.mark.slow
def test_all_presets_run_at_toy_size(tmp_path):
    """One command; finished runs are left alone the second time, and one that was cut short goes on."""
    done = start("--small", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "mirrored digit" in done.stderr
    made = tmp_path / "results"
    assert sorted(path.name for path in made.iterdir()) == ["comparison.png", "summaries.json", "table.md"]
    first = (made / "table.md").read_text()
    assert list(json.loads((made / "summaries.json").read_text())) == list(run_all().PRESETS)
    assert "digits: 50 clients" in first

    cut = tmp_path / "fedprox" / "summary.json"
    cut.write_text(cut.read_text().replace('"completed"', '"interrupted"'))
    again = start("--small", "--out", str(tmp_path))
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("complete already") == len(CHANGES) - 1
    assert (made / "table.md").read_text() == first

    other = start("--out", str(tmp_path), "--only", "original")
    assert other.returncode != 0 and "other settings than original.toml has now" in other.stderr


# --- what was committed --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def summaries() -> dict:
    return json.loads((RESULTS / "summaries.json").read_text())


def test_the_committed_table_is_that_of_the_committed_numbers(summaries):
    module = run_all()
    assert (RESULTS / "table.md").read_text() == module.table(summaries)
    assert module.COMMAND in (RESULTS / "table.md").read_text().splitlines()[0]


def test_the_committed_numbers_are_those_of_these_presets(summaries):
    module = run_all()
    assert list(summaries) == list(module.PRESETS)
    for name, about in summaries.items():
        found = experiment.load(FOLDER / f"{name}.toml").settings
        assert about["change"] == module.change(name)
        assert about["rounds"] == found["rounds"] == len(about["losses"])
        assert list(about["seeds"]) == [str(seed) for seed in found["seeds"]]
        assert about["data"]["name"] == "mnist_by_writer"


def test_the_committed_numbers_say_what_the_readme_says(summaries):
    """The first losses lie near the published ones, and the best preset reaches 98 % with every seed."""
    published = json.loads((FOLDER / "published.json").read_text())
    readme = (FOLDER / "README.md").read_text()
    for losses in (published["train_loss"], summaries["original"]["losses"]):
        assert " | ".join(f"{loss:.3f}" for loss in losses) in readme
    assert summaries["original"]["losses"][0] == pytest.approx(published["train_loss"][0], abs=0.1)
    best = [f"{100 * of_seed['accuracy']:.2f}" for of_seed in summaries["best"]["seeds"].values()]
    assert "{}, {} and {} %".format(*best) in readme
    assert summaries["best"]["rounds"] <= 100
    assert all(of_seed["accuracy"] >= 0.98 for of_seed in summaries["best"]["seeds"].values())


def test_nothing_committed_tells_where_it_was_made():
    for path in RESULTS.iterdir():
        content = path.read_bytes()
        assert b"/work" not in content and b"/home" not in content and b"/tmp" not in content
