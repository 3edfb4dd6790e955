"""StackOverflow as TensorFlow Federated publishes it."""

from __future__ import annotations

import json

import numpy as np
import optax
import pytest
from unit.tff_files import example, write_sqlite

import fedjax_sim as fs
from fedjax_sim import experiment
from fedjax_sim.data import load, stackoverflow, stackoverflow_tags

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


# --- tags ----------------------------------------------------------------------------------------------------


@pytest.fixture
def posts(tmp_path):
    (tmp_path / "words.json").write_text(json.dumps(COUNTS))
    (tmp_path / "tags.json").write_text(json.dumps({"jax": 4, "rust": 5, "go": 1}))
    said = {
        "ann": [("a list", "sort", "rust|jax"), ("sort a list please", "a zebra", "go")],
        "bo": [("", "", "jax"), ("zebra", "sort a", "python")],
    }
    rows = {
        who: [example(tokens=line, title=title, tags=tags) for line, title, tags in own]
        for who, own in said.items()
    }
    held = {"cy": [example(tokens="a", title="list", tags="rust")]}
    write_sqlite(tmp_path / "so.sqlite", {"train": rows, "test": held})
    return tmp_path


@pytest.mark.parametrize("lazy", [True, False])
def test_posts_are_ids_of_text_and_title_with_lists_of_tags(posts, lazy):
    data = stackoverflow_tags(
        posts / "so.sqlite", vocabulary=posts / "words.json", tags=posts / "tags.json", words=3, classes=2,
        length=5, most=3, lazy=lazy,
    )  # fmt: skip
    assert isinstance(data.train, fs.data.ClientSource) == lazy and data.classes == 2
    assert data.train.columns["x"].dtype == np.uint16
    ann, bo = data.train.client("ann"), data.train.client("bo")
    # 3 a, 4 sort, 5 list, 6 others; 0 rust, 1 jax, and no go.
    assert ann["x"].tolist() == [[3, 5, 4, 0, 0], [4, 3, 5, 6, 3]]
    assert ann["y"].tolist() == [[0, 1, -1], [-1, -1, -1]]
    assert bo["x"].tolist() == [[0] * 5, [6, 4, 3, 0, 0]] and bo["y"].tolist() == [[1, -1, -1], [-1] * 3]
    assert data.test.client("cy")["x"].tolist() == [[3, 5, 0, 0, 0]]


def test_a_file_describes_logistic_regression_on_tags(posts):
    made = experiment.load(
        changes=[
            "data.name=stackoverflow_tags",
            f"data.path={posts / 'so.sqlite'}",
            f"data.vocabulary={posts / 'words.json'}",
            f"data.tags={posts / 'tags.json'}",
            "data.words=3",
            "data.length=8",
            "model.name=linear",
            "task.name=multi_label",
            "task.listed=true",
            "task.preprocess=[{name='bag_of_words',words=3}]",
            "cohort.name=all_clients",
        ]
    )
    sim = made.simulation()
    state, history = sim.run(sim.init(seed=0), rounds=2, evaluate_on=made.federated.test)
    assert np.isfinite(history["loss"]).all()
    assert 0 <= history.last("precision").value <= 1
    assert history.last("recall_at_5").value == 1  # there are three tags
    kernel = state.server.variables.params["Dense_0"]["kernel"]
    assert kernel.shape == (3, 3)  # words, tags


def test_wrong_tags_are_said(posts):
    options = {"vocabulary": ["a"], "tags": ["rust", "jax"]}
    with pytest.raises(
        ValueError, match=r"so.sqlite: client 'ann': labels\[0\] has 2 known labels, expected 1"
    ):
        stackoverflow_tags(posts / "so.sqlite", **options, most=1)
    with pytest.raises(ValueError, match="classes is 0"):
        stackoverflow_tags(posts / "so.sqlite", **options, classes=0)
    with pytest.raises(ValueError, match="known holds a label twice"):
        stackoverflow_tags(posts / "so.sqlite", vocabulary=["a"], tags=["rust", "rust"])
