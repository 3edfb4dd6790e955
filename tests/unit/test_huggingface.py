import json
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest

from fedjax_sim.data import huggingface, load

datasets.disable_progress_bars()

FEATURES = datasets.Features(
    user=datasets.Value("string"),
    image=datasets.Array2D((2, 3), "uint8"),
    label=datasets.ClassLabel(names=["no", "yes", "maybe"]),
)


def dataset(users: str = "babc", start: int = 0) -> datasets.Dataset:
    images = [np.full((2, 3), start + place, np.uint8) for place in range(len(users))]
    labels = [place % 2 for place in range(len(users))]
    return datasets.Dataset.from_dict({"user": list(users), "image": images, "label": labels}, FEATURES)


def both() -> datasets.DatasetDict:
    return datasets.DatasetDict(train=dataset(), test=dataset("aad", 10))


def save(data: datasets.Dataset | datasets.DatasetDict, path: Path, **options) -> Path:
    data.save_to_disk(path, **options)
    return path


def first_pixels(part, user: str) -> list[int]:
    return part.client(user)["x"][:, 0, 0].tolist()


@pytest.mark.parametrize("saved", [True, False])
def test_parts(tmp_path, saved):
    data = huggingface(save(both(), tmp_path / "set") if saved else both(), client="user")
    assert (data.name, data.classes, data.notes) == ("set" if saved else "huggingface", 3, ())
    assert data.train.ids.tolist() == data.test.ids.tolist() == ["a", "b", "c", "d"]
    assert first_pixels(data.train, "b") == [0, 2] and first_pixels(data.test, "a") == [10, 11]
    assert data.train.columns["x"].dtype == np.uint8 and data.train.columns["x"].shape == (4, 2, 3)
    assert data.train.columns["y"].dtype == np.int32 and data.train.client("b")["y"].tolist() == [0, 0]


def test_shards_and_names(tmp_path):
    path = save(both(), tmp_path / "set", num_shards={"train": 3, "test": 1})
    data = load(f"huggingface:{path}", client="user", channel_axis="x")
    assert first_pixels(data.train, "b") == [[0], [2]] and data.train.columns["x"].shape == (4, 2, 3, 1)


@pytest.mark.parametrize("saved", [True, False])
def test_a_selection_keeps_its_order(tmp_path, saved):
    chosen = dataset().select([3, 2, 0]).filter(lambda row: row["user"] != "c")
    data = huggingface(save(chosen, tmp_path / "set") if saved else chosen, client="user")
    assert data.train.ids.tolist() == ["b"] and first_pixels(data.train, "b") == [2, 0]
    assert data.test.num_examples == 0


def test_what_was_renamed_and_removed(tmp_path):
    changed = (
        dataset()
        .rename_column("user", "client")
        .remove_columns("image")
        .with_format("numpy", columns=["label"])
    )
    data = huggingface(changed)
    assert list(data.train.columns) == ["y"] and data.train.num_clients == 3 and data.classes == 3


def test_one_dataset_divided_by_a_column():
    data = huggingface(dataset().add_column("split", ["train", "test", "train", "odd"]), client="user")
    assert (
        data.train.num_examples == 2
        and data.test.num_examples == 1
        and data.notes == ("part 'odd' is left out",)
    )
    halves = huggingface(dataset("aabb"), client="user", test_fraction=0.5)
    assert halves.test.sizes.tolist() == [1, 1]


def test_images_and_text(tmp_path):
    from PIL import Image

    pixels = np.random.default_rng(0).integers(256, size=(2, 4, 5, 3), dtype=np.uint8)
    features = datasets.Features(
        image=datasets.Image(), text=datasets.Value("string"), label=datasets.Value("int8")
    )
    rows = {"image": [Image.fromarray(array) for array in pixels], "text": ["a", "bc"], "label": [1, 0]}
    path = save(datasets.Dataset.from_dict(rows, features), tmp_path / "set")
    with pytest.raises(ValueError, match="column 'text' is of type string, expected numbers"):
        huggingface(path)
    data = huggingface(path, decode={"text": lambda texts: [len(text) for text in texts]})
    np.testing.assert_array_equal(data.train.columns["x"], pixels)
    assert data.train.columns["text"].tolist() == [1, 2] and data.classes == 2
    second = huggingface(datasets.load_from_disk(str(path)).select([1]), columns={"x": "image"})
    np.testing.assert_array_equal(second.train.columns["x"], pixels[1:])
    assert "one client holds all" in data.notes[0]
    lists = datasets.Dataset.from_dict({"z": [[1.0, 2.0], [3.0]]})
    with pytest.raises(ValueError, match=r"Dataset: column 'z' holds arrays of several shapes"):
        huggingface(lists)


def test_other_parts_are_noted():
    data = datasets.DatasetDict(train=dataset(), validation=dataset(), unsupervised=dataset())
    found = huggingface(data, client="user")
    assert found.test.num_examples == 4 and found.notes == ("part 'unsupervised' is left out",)
    with pytest.raises(ValueError, match=r"DatasetDict: no part is called 'dev', there are 'train', 'uns"):
        huggingface(data, test="dev")


def test_the_package_is_not_needed_for_folders(tmp_path, monkeypatch):
    path = save(both(), tmp_path / "set")
    for name in [name for name in sys.modules if name.partition(".")[0] == "datasets"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert huggingface(path, client="user").train.num_examples == 4


def test_objects_that_cannot_be_used():
    for other, match in (
        (
            dataset().to_iterable_dataset(),
            "the data set is IterableDataset, expected .*streams must be saved first",
        ),
        (3, "the data set is int, expected"),
        ({"train": [1]}, "part 'train' is list"),
    ):
        with pytest.raises(TypeError, match=match):
            huggingface(other)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="the dict is empty"):
        huggingface({})


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda p: (p / "dataset_dict.json").unlink(), "holds neither state.json nor dataset_dict.json"),
        (lambda p: (p / "dataset_dict.json").write_text("{"), "dataset_dict.json: Expecting property name"),
        (
            lambda p: (p / "dataset_dict.json").write_text("[" * 10**5),
            "dataset_dict.json: the file is no JSON",
        ),
        (lambda p: (p / "dataset_dict.json").write_text("[]"), "the file holds a list, expected an object"),
        (
            lambda p: edit(p / "dataset_dict.json", splits=["../set/train"]),
            r"splits holds '../set/train', expected names",
        ),
        (
            lambda p: edit(p / "dataset_dict.json", splits=["train", "train"]),
            "splits holds 'train', .* each once",
        ),
        (lambda p: edit(p / "dataset_dict.json", splits=[]), r"splits is \[\], expected a list of names"),
        (
            lambda p: edit(p / "train/state.json", _data_files=[{"filename": "/etc/passwd"}]),
            "filename holds '/etc",
        ),
        (lambda p: edit(p / "train/state.json", _data_files=[{}]), "filename holds None"),
        (lambda p: edit(p / "train/state.json", _data_files=[3]), "_data_files is no list of objects"),
        (
            lambda p: edit(p / "train/state.json", _data_files=[]),
            r"filename is \[\], expected a list of names",
        ),
        (
            lambda p: edit(p / "train/state.json", _data_files=[{"filename": "data-00001-of-00002.arrow"}]),
            r"data-00000-of-00002 is missing, expected all 2 files",
        ),
        (
            lambda p: edit(p / "train/state.json", _indices_data_files=[{"filename": "i"}]),
            "selected by indices",
        ),
        (lambda p: cut(p / "train/data-00000-of-00002.arrow", 8), "the mark of the end is missing"),
        (
            lambda p: cut(p / "train/data-00001-of-00002.arrow", 99),
            "data-00001-of-00002.arrow is no readable Arrow",
        ),
    ],
)
def test_a_bad_folder_is_named(tmp_path, change, match):
    path = save(both(), tmp_path / "set", num_shards={"train": 2, "test": 1})
    change(path)
    with pytest.raises(ValueError, match=match) as caught:
        huggingface(path, client="user")
    assert str(path) in str(caught.value)


def cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


def test_missing_files(tmp_path):
    path = save(both(), tmp_path / "set", num_shards={"train": 2, "test": 1})
    (path / "train/data-00001-of-00002.arrow").unlink()
    with pytest.raises(FileNotFoundError, match=r"data-00001-of-00002.arrow does not exist"):
        huggingface(path)
    (path / "train/state.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"train/state.json does not exist"):
        huggingface(path)
    with pytest.raises(FileNotFoundError, match=r"absent is no folder"):
        huggingface(tmp_path / "absent")
