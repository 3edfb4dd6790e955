"""The scripts that reproduce published results: the one that takes seconds in full, the others at toy size."""

from __future__ import annotations

import re

import pytest
from e2e.test_examples import ROOT, run
from real_sets import data_path

SCRIPTS = ROOT / "examples" / "reproductions"

pytestmark = pytest.mark.slow


def rerun(name: str, *arguments: str) -> str:
    return run(str(SCRIPTS / f"{name}.py"), *arguments)


def test_heart_disease_is_within_what_flamby_publishes(shared):
    printed = rerun("heart_disease", "--data", str(data_path(shared, "flamby_heart_disease")))
    assert "outside the published mean plus or minus its spread: none" in printed, printed


def test_fedprox_on_synthetic_data_compares_draw_by_draw(tmp_path):
    file = tmp_path / "curves.jsonl"
    small = ["--draws", "2", "--rounds", "2", "--every", "1", "--sets", "IID", "--results", str(file)]
    printed = rerun("fedprox_synthetic", *small, "--plot", str(tmp_path / "picture.png"))
    ends = r"^IID, \d+% slow( +\d\.\d{3} \(\d\.\d{3}\) +\d\.\d{3} \(\d\.\d{3}\)){3}$"
    gains = r"^IID, \d+% slow( +[+-]\d\.\d{3} \+- \d\.\d{3} +[0-2]/2){4}$"
    assert len(re.findall(ends, printed, re.M)) == len(re.findall(gains, printed, re.M)) == 6, printed
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
    measured = file.read_text()
    assert len(measured.splitlines()) == 6
    assert rerun("fedprox_synthetic", *small) == printed and file.read_text() == measured
    by_size = rerun("fedprox_synthetic", *small, "--devices", "by-size")
    assert by_size != printed and len(file.read_text().splitlines()) == 12


def test_femnist_by_writer_trains_from_its_file(shared):
    path = data_path(shared, "femnist_leaf/femnist_leaf_sf05.npz")
    printed = rerun("femnist", str(path), "--rounds", "2", "--every", "1")
    assert "105 clients" in printed and "met" in printed and re.search(r"round +2 .* test 0\.\d{3}", printed)


def test_shakespeare_by_role_trains_from_its_file_and_goes_on_where_it_was_cut_off(shared, tmp_path):
    path = data_path(shared, "shakespeare/roles.jsonl.gz")
    small = [
        str(path),
        "--every",
        "1",
        "--hidden",
        "8",
        "--test-windows",
        "50",
        "--checkpoints",
        str(tmp_path),
    ]
    first = rerun("shakespeare", *small, "--rounds", "1")
    printed = rerun("shakespeare", *small, "--rounds", "2")
    assert printed.startswith(first[: first.index("\nrounds to 54 %")])
    assert len(re.findall(r"^ +[12] +\d\.\d{3}", printed, re.M)) == 2 and "McMahan" in printed


def test_dp_fedavg_draws_accuracy_against_epsilon(tmp_path):
    small = [
        "--writers",
        "4",
        "--clients",
        "300",
        "--cohort",
        "20",
        "--rounds",
        "8",
        "--seeds",
        "1",
        "--epsilon",
        "1",
    ]
    printed = rerun("dp_fedavg", *small, "--out", str(tmp_path / "picture.png"))
    methods = ["fixed clip", "adaptive clip", "DP-FTRL, tree", "DP-FTRL, 8 bands", "no clip, no noise"]
    for method in methods:
        assert re.search(rf"^{method} +\d+\.\d%", printed, re.M), printed
    assert "+-" not in printed  # one seed has no spread
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_dp_fedavg_of_mnist_says_that_it_is_simulated(shared, tmp_path):
    small = [
        "--clients",
        "2000",
        "--cohort",
        "50",
        "--rounds",
        "2",
        "--seeds",
        "2",
        "--epsilon",
        "1",
        "--methods",
        "adaptive",
    ]
    path = str(data_path(shared, "mnist_by_writer"))
    printed = rerun("dp_fedavg", "--mnist", path, *small, "--out", str(tmp_path / "picture.png"))
    assert "MNIST by 539 writers; simulated: 2,000 clients, cohorts of 50" in printed
    assert len(re.findall(r"% \+- \d", printed)) == 2, printed


def test_private_fine_tuning_starts_from_public_weights():
    small = [
        "--writers",
        "6",
        "--clients",
        "300",
        "--rate",
        "0.1",
        "--rounds",
        "2",
        "--public-rounds",
        "2",
        "--seeds",
        "1",
    ]
    printed = rerun("private_fine_tuning", *small, "--epsilon", "1")
    assert "saved to letters.safetensors" in printed
    rows = re.findall(
        r"^(everything, from scratch|everything|head alone|adapters and head|adapters' B and head) +([\d,]+)",
        printed,
        re.M,
    )
    numbers = [int(count.replace(",", "")) for _, count in rows]
    assert len(rows) == 5 and numbers[0] == numbers[1] > numbers[3] > numbers[4] > numbers[2], printed


def test_no_script_is_forgotten():
    tested = {name for name in globals() if name.startswith("test_")}
    for script in SCRIPTS.glob("*.py"):
        assert any(name.startswith(f"test_{script.stem.split('_')[0]}") for name in tested), script
