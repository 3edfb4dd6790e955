"""StackOverflow as TensorFlow Federated publishes it."""

from __future__ import annotations

import json

import numpy as np
import optax
import pytest
from unit.tff_files import example, write_sqlite

import fedjax_sim as fs
from fedjax_sim.data import load, stackoverflow

COUNTS = {"sort": 9, "list": 7, "a": 9, "zebra": 1}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "counts.json").write_text(json.dumps(COUNTS))
    said = {"ann": ["a list", "sort a list please"], "bo": ["", "zebra sort"]}
    rows = {who: [example(tokens=line, score=3) for line in lines] for who, lines in said.items()}
    write_sqlite(
        tmp_path / "so.sqlite", {"train": rows, "test": {"cy": [example(tokens="a zebra", score=0)]}}
    )
    return tmp_path


def test_sentences_are_ids_of_the_most_frequent_words(folder):
    data = stackoverflow(folder / "so.sqlite", vocabulary=folder / "counts.json", words=3, length=3)
    assert isinstance(data.train, fs.data.ClientSource) and data.train.ids.tolist() == ["ann", "bo"]
    assert data.classes == 3 + 3 + 1  # padding, begin and end; a, sort and list; everything else
    ann, bo = data.train.client("ann"), data.train.client("bo")
    # 3 a, 4 sort, 5 list, 6 others: as frequent ones in the order of the alphabet.
    assert ann["x"].tolist() == [[1, 3, 5], [1, 4, 3]] and ann["y"].tolist() == [[3, 5, 2], [4, 3, 5]]
    assert bo["x"].tolist() == [[1, 0, 0], [1, 6, 4]] and bo["y"].tolist() == [[2, -1, -1], [6, 4, 2]]
    assert data.test.client("cy")["y"].tolist() == [[3, 6, 2]]


def test_it_trains_from_the_file_by_name(folder):
    data = load(f"stackoverflow:{folder / 'so.sqlite'}", vocabulary=["a", "sort", "list"], length=4)
    task = fs.tasks.classification(fs.models.char_lstm(data.classes, hidden=4, layers=1))
    sim = fs.Simulation(
        fs.algorithms.fedavg(task, optax.sgd(0.5)), data.train, cohort=fs.cohorts.all_clients()
    )
    _, history = sim.run(sim.init(seed=0), rounds=2, evaluate_on=data.test)
    assert np.isfinite(history["loss"]).all()


def test_what_is_missing_or_wrong_is_said(folder):
    with pytest.raises(
        FileNotFoundError, match=r"none.sqlite does not exist.*Nothing downloads.*load_data\(\)"
    ):
        stackoverflow(folder / "none.sqlite", vocabulary=["a"])
    (folder / "bad.json").write_text('{"a": "many"}')
    with pytest.raises(ValueError, match=r"bad.json: this is no file of counts, expected JSON"):
        stackoverflow(folder / "so.sqlite", vocabulary=folder / "bad.json")
    with pytest.raises(FileNotFoundError, match=r"no\.json"):
        stackoverflow(folder / "so.sqlite", vocabulary=folder / "no.json")
