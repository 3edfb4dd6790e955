"""TensorFlow Datasets: true prepared sets, written without TensorFlow."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from unit.tfds_sets import as_tfrecord, both_kinds, prepare

from fedjax_sim import experiment, partitions
from fedjax_sim.data import load, repartition, tfds


@pytest.fixture(scope="module")
def masters(tmp_path_factory) -> dict[str, Path]:
    return both_kinds(tmp_path_factory.mktemp("sets"))


@pytest.fixture(params=["array_record", "tfrecord"])
def root(request, masters, tmp_path) -> Path:
    """A copy of the set that a test may damage."""
    shutil.copytree(masters[request.param], tmp_path / "sets")
    return tmp_path / "sets"


# --- what is read --------------------------------------------------------------------------------------------


def test_a_feature_says_who_owns_an_example(root):
    before = "tensorflow" in sys.modules  # by the tests beside this one, where it is installed
    data = load("tfds:toy", data_dir=root, client="writer")
    assert (data.name, data.classes, data.notes) == ("toy", 3, ())
    assert data.train.ids.tolist() == data.test.ids.tolist() == ["w0", "w1", "w2", "w3"]
    assert data.train.sizes.tolist() == [3, 3, 2, 2] and data.test.sizes.tolist() == [1, 1, 1, 1]
    columns = data.train.columns
    assert columns["x"].dtype == np.uint8 and columns["x"].shape == (10, 6, 5, 1)
    assert columns["y"].dtype == np.int32
    for client in range(4):
        numbers = data.train.client(client)["x"][:, 0, 0, 0]
        assert sorted(numbers) == list(range(client, 10, 4))
        assert data.train.client(client)["y"].tolist() == (numbers % 3).tolist()
    assert ("tensorflow" in sys.modules) == before


def test_without_a_client_one_holds_all(root):
    data = tfds("toy:1.0.0", data_dir=root)
    assert data.train.sizes.tolist() == [10] and data.test.sizes.tolist() == [4]
    assert repartition(data, partitions.iid(5)).train.sizes.tolist() == [2] * 5


def test_columns_splits_and_fractions(root):
    data = tfds("toy", data_dir=root, columns={"a": "nested/pair", "n": "number"}, train="train+test[:50%]")
    assert data.train.columns["a"].dtype == np.float32 and data.train.columns["n"].dtype == np.int64
    assert sorted(data.train.columns["n"]) == sorted([*range(10), *data.test.columns["n"][:2]])
    assert data.classes is None
    data = tfds("toy", data_dir=root, columns=["number"], client="label", test_fraction=0.4, seed=1)
    assert data.train.ids.tolist() == [0, 1, 2] and data.train.sizes.tolist() == [2, 2, 2]
    assert data.notes == ("Splits that were not read: test.",)
    labels = tfds("toy", data_dir=root, columns={"x": "image", "y": "number"})
    assert labels.train.columns["y"].dtype == np.int32 and labels.classes == 10


def test_text_is_decoded_by_a_function(root):
    decode = {"writer": lambda texts: [[ord(letter) for letter in text] for text in texts]}
    data = tfds("toy", data_dir=root, columns={"x": "writer", "y": "label"}, decode=decode)
    assert {tuple(row) for row in data.train.columns["x"].tolist()} == {(119, 48 + k) for k in range(4)}
    data = tfds(
        "toy",
        data_dir=root,
        columns={"x": "words"},
        decode={"words": lambda rows: [row.sum() for row in rows]},
    )
    assert sorted(data.train.columns["x"]) == sorted(n * (n - 1) // 2 for n in range(10))


@pytest.mark.parametrize(
    "options",
    [
        {"client": "writer"},
        {"client": "number", "columns": {"x": "nested/pair", "y": "number"}, "test_fraction": 0.3, "seed": 2},
        {"columns": ["label"], "client": "label", "test_fraction": 0.4},
        {"columns": {"x": "words"}, "decode": {"words": lambda rows: {"n": [len(r) for r in rows], "y": [1] * len(rows)}}},
        {"train": "test", "test": "train[:70%]"},
        {"train": "train[:1]+test"},
    ],
)  # fmt: skip
def test_a_stored_set_is_the_one_in_memory(root, tmp_path, options, monkeypatch):
    monkeypatch.setattr("fedjax_sim.data.formats.tfds._PIECE", 3)
    expected = tfds("toy", data_dir=root, **options)
    for _ in range(2):
        found = tfds("toy", data_dir=root, **options, store=tmp_path / "set")
        assert (found.name, found.classes, found.notes) == (expected.name, expected.classes, expected.notes)
        for one, other in ((found.train, expected.train), (found.test, expected.test)):
            assert one.ids.tolist() == other.ids.tolist() and one.sizes.tolist() == other.sizes.tolist()
            assert list(one.columns) == list(other.columns)
            for name, column in other.columns.items():
                assert one.columns[name].dtype == column.dtype
                np.testing.assert_array_equal(one.columns[name], column)
    with pytest.raises(ValueError, match=r"manifest.json: the set was made of something else \(seed\)"):
        tfds("toy", data_dir=root, **options | {"seed": 9}, store=tmp_path / "set")


def test_a_set_that_cannot_be_read_is_not_stored(root, tmp_path):
    for options, match in (
        ({"columns": ["words"]}, "expected one shape"),
        ({"train": "train[5:5]"}, r"split 'train\[5:5\]' has no example"),
        ({"decode": {"image": lambda images: [0]}}, r"column 'x' has shape \[1\]"),
    ):
        with pytest.raises(ValueError, match=match):
            tfds("toy", data_dir=root, **options, store=tmp_path / "set")
        assert not (tmp_path / "set").exists()


def test_the_folder_of_the_environment(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert tfds("toy").train.num_examples == 10


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_several_files(tmp_path, kind):
    folder = prepare(tmp_path, "many", lambda n: {"x": n}, {"train": 23}, pair=None, shards=3, x=np.int64)
    if kind == "tfrecord":
        as_tfrecord(folder)
    files = sorted(folder.glob(f"many-train.{kind}-*"))
    assert len(files) == 3
    whole = tfds("many", data_dir=tmp_path, columns="x").train.columns["x"]
    assert sorted(whole) == list(range(23))
    part = tfds("many", data_dir=tmp_path, columns="x", train="train[5:12]+train[20:]").train.columns["x"]
    assert part.tolist() == [*whole[5:12], *whole[20:]]


def test_settings_name_it(root):
    changes = [
        f"data={{name='tfds', dataset='toy', data_dir='{root}', client='writer'}}", "model=linear", "rounds=1",
        "cohort.size=2", "plots=false",
    ]  # fmt: skip
    assert experiment.load(changes=changes).federated.train.num_clients == 4


def test_features_that_the_set_does_not_pair(tmp_path):
    features = {"image": np.int64, "label": np.int64}
    prepare(tmp_path, "a", lambda n: {"image": n, "label": -n}, pair=None, **features)
    data = tfds("a", data_dir=tmp_path)
    assert data.classes is None and sorted(data.train.columns["y"]) == list(range(-9, 1))
    prepare(tmp_path, "b", lambda n: {"left": n}, sizes={"only": 3}, pair=None, left=np.int64)
    with pytest.raises(
        ValueError, match=r"names no pair of input and label, its features are left. Say which"
    ):
        tfds("b", data_dir=tmp_path)
    data = tfds("b", data_dir=tmp_path, columns="left", train="only")
    assert data.train.num_examples == 3 and data.test.sizes.tolist() == [0]


def test_configurations_and_versions(root):
    (root / "toy/1.0.0").rename(root / "moved")
    for place in (
        "sets/small/1.0.0",
        "sets/large/1.0.0",
        "sets/large/2.0.0",
        "one/only/10.0.0",
        "one/only/9.0.0",
    ):
        shutil.copytree(root / "moved", root / place)
    with pytest.raises(ValueError, match=r"of which .* has sets/large, sets/small; name one of them"):
        tfds("sets", data_dir=root)
    for older in ("sets/large/1.0.0", "one/only/9.0.0"):
        (root / older / "features.json").write_text("damaged")
    assert tfds("sets/large", data_dir=root).train.num_examples == 10
    assert tfds("sets/small:1.0.0", data_dir=root).name == "sets_small"
    assert tfds("one", data_dir=root).train.num_examples == 10  # as numbers, 10 comes after 9
    with pytest.raises(ValueError, match=r"sets/large/1.0.0/features.json: the file is no JSON"):
        tfds("sets/large:1.0.0", data_dir=root)


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"columns": ["words"]},
            r"record \d has 'words' of shape .* expected one shape. Give decode=\{'words'",
        ),
        ({"columns": {"x": "writer"}}, r"feature 'writer' is text, .* Give decode=\{'writer': function\}"),
        ({"columns": ["nested"]}, "no feature is called 'nested', the set has image, label, nested/pair"),
        ({"columns": []}, "columns is empty"),
        ({"client": "author"}, "no feature is called 'author'"),
        ({"client": "nested/pair"}, r"record 0 has 2 values of 'nested/pair', expected one"),
        ({"train": "valid"}, "split 'valid' cannot be read, the set has 'train', 'test'"),
        ({"test": "train[:70"}, r"split 'train\[:70' cannot be read"),
        ({"train": "train[5:5]"}, r"split 'train\[5:5\]' has no example"),
        ({"decode": {"z": len}}, "decode names 'z', expected one of the columns image, label"),
        ({"decode": {"image": lambda images: [0]}}, r"column 'x' has shape \[1\], expected \d+ rows"),
        ({"test": "test", "test_fraction": 0.1}, "test is 'test' and test_fraction is 0.1, expected one"),
        ({"columns": {"mask": "number"}}, "column 'mask' has a reserved name"),
    ],
)
def test_refuses(root, options, match):
    with pytest.raises(ValueError, match=match):
        tfds("toy", data_dir=root, **options)
