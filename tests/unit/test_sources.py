import importlib.util
import lzma
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from real_sets import data_path
from sklearn.datasets import load_digits

from fedjax_sim.data import digits, load, mnist_by_writer, npz
from fedjax_sim.data.formats.image_sets import _digits

# --- digits --------------------------------------------------------------------------------------------------


def test_digits():
    data = digits(clients=50, alpha=0.3, seed=0)
    assert (data.name, data.classes) == ("digits", 10)
    assert data.train.num_examples + data.test.num_examples == 1797
    assert data.train.ids.tolist() == data.test.ids.tolist() == list(range(50))
    assert data.train.sizes.min() >= 1 and data.test.sizes.min() >= 1
    for part in (data.train, data.test):
        assert part.columns["x"].dtype == np.uint8 and part.columns["x"].shape[1:] == (8, 8, 1)
        assert part.columns["y"].dtype == np.int32
        assert set(np.unique(part.columns["y"])) == set(range(10))
    levels = np.unique(data.train.columns["x"])
    assert len(levels) == 17 and levels[0] == 0 and levels[-1] == 255


def test_digits_say_what_was_repaired():
    assert digits(clients=10, alpha=100.0).notes == ()
    (note,) = digits(clients=500, alpha=0.05).notes
    assert "examples were moved to" in note and "clients below the minimum" in note


def test_digits_with_too_many_clients():
    with pytest.raises(ValueError, match=r"there are 1797 examples.*fewer clients"):
        digits(clients=1000)


def test_import_needs_no_scikit_learn():
    code = "import sys; sys.modules['sklearn'] = None; import fedjax_sim.data"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_digits_are_those_of_scikit_learn_which_is_not_imported(monkeypatch):
    pixels, labels = load_digits(return_X_y=True)
    for found in (
        None,
        importlib.util.find_spec("sklearn"),
    ):  # a version that keeps its file elsewhere, and ours
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, found=found: found)
        read_pixels, read_labels = _digits()
        np.testing.assert_array_equal(read_pixels, pixels)
        np.testing.assert_array_equal(read_labels, labels)
    code = "import sys; from fedjax_sim.data import digits; digits(); print('sklearn' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], capture_output=True
    )
    assert done.stdout.strip() == b"False"


# --- npz -----------------------------------------------------------------------------------------------------


def flat(**changes) -> dict:
    arrays = {
        "x": np.arange(96, dtype=np.uint8).reshape(6, 4, 4),
        "y": np.array([0, 1, 2, 3, 4, 5], np.uint8),
        "client": np.array([2, 0, 2, 0, 0, 2], np.int16),
        "split": np.array([0, 0, 1, 0, 1, 0], np.uint8),
        "client_name": np.array(["ann", "bo", "cy"]),
    }
    return {name: array for name, array in (arrays | changes).items() if array is not None}


@pytest.fixture
def write(tmp_path):
    def write(**changes) -> Path:
        path = tmp_path / "toy.npz"
        np.savez(path, **flat(**changes))
        return path

    return write


def test_npz(write):
    data = npz(write())
    assert (data.name, data.classes) == ("toy", 6)
    assert data.train.ids.tolist() == data.test.ids.tolist() == ["ann", "bo", "cy"]
    assert data.train.sizes.tolist() == [2, 0, 2] and data.test.sizes.tolist() == [1, 0, 1]
    assert data.train.client("ann")["y"].tolist() == [1, 3] and data.test.client("cy")["y"].tolist() == [2]
    assert data.train.columns["x"].dtype == np.uint8 and data.train.columns["x"].shape == (4, 4, 4)
    assert data.train.columns["y"].dtype == np.int32
    assert data.train.columns.keys() == {"x", "y"}


def test_npz_of_another_kind(tmp_path):
    path = tmp_path / "table.npz"
    path.write_text("x,y\n1,2\n")
    with pytest.raises(
        ValueError, match=r"table.npz is no readable .npz file \(truncated, or of another kind\)$"
    ):
        npz(path)


def test_npz_with_names_as_labels(write):
    data = npz(write(y=np.array(list("abcabc"))))
    assert (
        data.notes[-1] == "Arrays of text are left out: 'y'. Labels that are names: labels=[...] numbers 'y'."
    )


def test_npz_without_names_has_the_ids_that_occur(write):
    assert npz(write(client_name=None)).train.ids.tolist() == [0, 2]


def test_npz_with_text_as_client(write):
    path = write(client=np.array(["cy", "ann", "cy", "ann", "ann", "cy"]))
    assert npz(path).train.sizes.tolist() == [2, 0, 2]


def test_npz_without_split_is_all_training(write):
    data = npz(write(split=None))
    assert data.train.num_examples == 6 and data.test.num_examples == 0
    assert data.test.ids.tolist() == data.train.ids.tolist()
    assert npz(write(split=None), test_fraction=0.3).test.sizes.tolist() == [1, 0, 1]


def test_npz_columns_are_chosen_and_renamed(write):
    path = write(extra=np.zeros((6, 2)), text=np.array(list("abcdef")), weights=np.zeros(7))
    data = npz(path)
    assert data.train.columns.keys() == {"x", "y", "extra"}
    assert data.notes == (
        "Arrays without a row for each of the 6 examples are left out: 'weights' [7].",
        "Arrays of text are left out: 'text'.",
    )
    assert npz(path, columns=["x"]).notes == ()
    assert npz(path, columns=["x"]).train.columns.keys() == {"x"}
    renamed = npz(path, columns={"image": "x", "y": "extra"})
    assert renamed.train.columns["image"].dtype == np.uint8 and renamed.train.columns["y"].shape == (4, 2)


@pytest.mark.parametrize("names", ["x", ["x"]])
def test_npz_channel_axis(write, names):
    data = npz(write(), channel_axis=names)
    assert data.train.columns["x"].shape == (4, 4, 4, 1) and data.test.columns["x"].shape == (2, 4, 4, 1)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [([0, 1, 1, 0, 2, 1], 3), ([-1, 1, 1, -1, 1, 1], None), ([0.5] * 6, None), (None, None)],
)
def test_npz_classes(write, labels, classes):
    assert npz(write(y=None if labels is None else np.array(labels))).classes == classes


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        ({"client": None}, {}, "no array is called 'client', the file has x, y, split, client_name"),
        ({}, {"client": "writer"}, "no array is called 'writer'"),
        ({}, {"client_names": "names"}, "no array is called 'names'"),
        ({}, {"split": "fold"}, "no array is called 'fold'"),
        ({}, {"columns": ["x", "z"]}, "no array is called 'z'"),
        ({}, {"columns": []}, "columns is empty"),
        (
            {},
            {"columns": ["client_name"]},
            r"column 'client_name' has shape \[3\], expected 6 rows, one for each owner",
        ),
        ({}, {"columns": {"mask": "x"}}, "'mask' has a reserved name"),
        ({}, {"channel_axis": "z"}, "channel_axis is 'z', but there is no such column, expected one of x, y"),
        ({}, {"channel_axis": "y"}, r"column 'y' has shape \[6\], expected \[examples, height, width\]"),
        ({}, {"test_fraction": 0.2}, r"it has a split of its own \('split'\)"),
        (
            {"x": np.array([{}] * 6)},
            {},
            "array 'x' holds Python objects, which are not read because unpickling",
        ),
        (
            {"split": np.arange(6)},
            {},
            r"array 'split' is int64\[6\] with values \[0, 1, 2, 3, 4\], expected \[6\] of 0",
        ),
        ({"split": np.zeros(5)}, {}, r"array 'split' is float64\[5\]"),
        (
            {"client": np.array([0, 1, 2, 3, 0, 0])},
            {},
            "array 'client' holds 3, expected 0 to 2.*'client_name'",
        ),
        ({"client": np.array([0, 1, 2, -1, 0, 0])}, {}, "array 'client' holds -1"),
        ({"client": np.array(["ann", "bo", "di"] * 2)}, {}, "no client has the id 'di'"),
        ({"client": np.zeros(6)}, {}, r"client is float64\[6\], expected integers or text"),
        ({"client_name": np.array(["a", "b", "a"])}, {}, "'a' more than once"),
        ({"y": np.zeros(5, int)}, {}, r"the labels 'y' are \[5\], expected 6 rows, one for each owner"),
        ({"y": np.full(6, 2**40)}, {}, "label column 'y' holds numbers from 1099511627776"),
    ],
)
def test_npz_refuses_and_names_the_file(write, changes, options, match):
    path = write(**changes)
    with pytest.raises(ValueError, match=match) as caught:
        npz(path, **options)
    assert str(path) in str(caught.value)


def test_npz_with_two_arrays_of_one_name(write):
    path = write()
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("x.npy", archive.read("y.npy"))
    with pytest.raises(ValueError, match=r"toy.npz holds 'x' twice"):
        npz(path)


def test_npz_reads_around_objects_that_are_not_asked_for(write):
    path = write(meta=np.array([{}] * 6))
    assert npz(path, columns=["x", "y"]).train.num_examples == 4


def test_npz_of_a_damaged_file(write, tmp_path):
    path = write()
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:100], whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"toy.npz is no readable .npz file"):
            npz(path)
    path.write_bytes(whole.replace(bytes(range(40, 60)), bytes(20)))
    with pytest.raises(ValueError, match=r"toy.npz: array 'x' cannot be read, the file is damaged"):
        npz(path)
    np.save(tmp_path / "single.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"single.npy holds a single array"):
        npz(tmp_path / "single.npy")


def test_npz_with_a_split_in_words(write):
    assert (
        npz(write(split=np.array(["train", "test", "train", "test", "test", "train"]))).test.num_examples == 3
    )
    with pytest.raises(ValueError, match=r"expected \[6\] of 'train' \(training\) and 'test' \(test\)"):
        npz(write(split=np.array(["train", "dev"] * 3)))


def test_npz_that_is_another_archive(tmp_path):
    path = tmp_path / "toy.npz"
    np.savez(path, x=np.zeros(3), client=np.zeros(3, int))
    whole = path.read_bytes()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("README.txt", "hello")
    with pytest.raises(ValueError, match=r"toy.npz: 'README.txt' is no array"):
        npz(path)
    # Bytes 6 and 8 of a local header are flags and method, 8 and 10 of one in the list at the end.
    for name, value in (("a password", 1), ("a method", 99)):
        at = 6 if name == "a password" else 8
        damaged = bytearray(whole)
        for start, shift in ((b"PK\x03\x04", 0), (b"PK\x01\x02", 2)):
            damaged[whole.index(start) + at + shift] = value
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"toy.npz: array 'x' cannot be read, the file is damaged"):
            npz(path)


def test_npz_of_a_path_that_is_no_file(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"is a folder, expected a file"):
        npz(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"absent.npz does not exist"):
        npz(tmp_path / "absent.npz")


# --- mnist_by_writer -----------------------------------------------------------------------------------------


@pytest.fixture
def mnist_folder(tmp_path) -> Path:
    for part in ("train", "test"):
        with lzma.open(tmp_path / f"{part}_images.npy.xz", "wb") as stream:
            np.save(stream, np.zeros((3, 28, 28), np.uint8))
    labels = {f"{part}_label": np.zeros(3, np.uint8) for part in ("train", "test")}
    writers = {"train_writer": np.array([5, 2, 5]), "test_writer": np.array([7, 7, 7])}
    np.savez(tmp_path / "labels_writers.npz", **labels, **writers)
    return tmp_path


def test_mnist_by_writer_of_a_small_copy(mnist_folder):
    data = mnist_by_writer(mnist_folder)
    assert data.train.ids.tolist() == [2, 5] and data.test.ids.tolist() == [7]


def test_mnist_by_writer_refuses(mnist_folder, tmp_path):
    images = mnist_folder / "train_images.npy.xz"
    whole = images.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        images.write_bytes(content)
        with pytest.raises(ValueError, match=r"train_images.npy.xz is no readable .npy.xz file"):
            mnist_by_writer(mnist_folder)
    with lzma.open(images, "wb") as stream:
        np.save(stream, np.zeros((4, 28, 28), np.uint8))
    with pytest.raises(
        ValueError, match=r"train_images.npy.xz with .*labels_writers.npz: column 'y' has 3 rows"
    ):
        mnist_by_writer(mnist_folder)
    images.unlink()
    with pytest.raises(FileNotFoundError, match=r"train_images.npy.xz does not exist"):
        mnist_by_writer(mnist_folder)
    np.savez(mnist_folder / "labels_writers.npz", train_label=np.zeros(3, int))
    (mnist_folder / "test_images.npy.xz").rename(images)
    with pytest.raises(ValueError, match=r"no array is called 'train_writer'"):
        mnist_by_writer(mnist_folder)


# --- load ----------------------------------------------------------------------------------------------------


def test_load(write, mnist_folder):
    assert load("digits", clients=7).train.num_clients == 7
    assert load(f"npz:{write()}", channel_axis="x").train.columns["x"].ndim == 4
    assert load(f"mnist_by_writer:{mnist_folder}").classes == 10


@pytest.mark.parametrize(
    ("name", "options", "error", "match"),
    [
        (
            "digit",
            {},
            ValueError,
            r"'digit', expected one of digits, glyphs, synthetic, npz:PATH, mnist.*Did you mean 'digits'\?",
        ),
        ("quux", {}, ValueError, "called 'quux', expected one of .*[A-Z]\\.$"),
        (
            "digits",
            {"client": 3},
            TypeError,
            "'digits' takes no option 'client', it takes clients, alpha, seed",
        ),
        ("npz:a", {"path": "b"}, TypeError, "'npz' takes no option 'path'"),
        ("mnist_by_writer:a", {"seed": 3}, TypeError, "takes no option 'seed', it takes none"),
        ("npz", {}, ValueError, "data source is 'npz', expected 'npz:PATH'"),
        ("npz:", {}, ValueError, "data source is 'npz:', expected 'npz:PATH'"),
        ("digits:here", {}, ValueError, "data source is 'digits:here', expected 'digits'"),
        (
            "stackoverflow:a",
            {},
            TypeError,
            "'stackoverflow' needs the option vocabulary, as fs.data.stackoverflow says",
        ),
        (
            "stackoverflow_tags:a",
            {"tags": ["b"]},
            TypeError,
            "'stackoverflow_tags' needs the option vocabulary, as",
        ),
        (None, {}, TypeError, "data source is NoneType, expected text such as 'digits' or 'npz:PATH'"),
    ],
)
def test_load_refuses(name, options, error, match):
    with pytest.raises(error, match=match):
        load(name, **options)


# --- the real sets; numbers from shared/data/README.md -------------------------------------------------------


def test_femnist(shared):
    data = load(f"npz:{data_path(shared, 'femnist_leaf/femnist_leaf_sf05.npz')}", channel_axis="x")
    assert (data.name, data.classes) == ("femnist_leaf_sf05", 62)
    assert data.train.columns.keys() == {"x", "y"}
    assert data.train.columns["x"].dtype == np.uint8 and data.train.columns["x"].shape == (14_708, 28, 28, 1)
    assert data.test.num_examples == 1_685 + 2_403
    assert data.train.num_clients == 184 and data.train.ids.tolist() == data.test.ids.tolist()
    sizes = data.train.sizes
    assert (sizes == 0).sum() == 79 and data.test.sizes.min() >= 1
    trained = sizes[sizes > 0]
    assert (trained.min(), np.median(trained), trained.max()) == (4, 152, 165)
    assert data.test.sizes[sizes == 0].sum() == 2_403
    assert data.train.index("f0014_19") == 0


def test_mnist(shared):
    data = load(f"mnist_by_writer:{data_path(shared, 'mnist_by_writer')}")
    assert (data.name, data.classes) == ("mnist_by_writer", 10)
    assert data.train.num_clients == 539 and data.test.num_clients == 297
    assert not set(data.train.ids.tolist()) & set(data.test.ids.tolist())
    assert data.train.num_examples == 60_000 and data.test.num_examples == 10_000
    for part in (data.train, data.test):
        assert part.columns["x"].dtype == np.uint8 and part.columns["x"].shape[1:] == (28, 28, 1)
        assert part.columns["y"].dtype == np.int32
    sizes = data.train.sizes
    assert (sizes.min(), np.median(sizes), sizes.max()) == (19, 116, 131)
    assert (data.train.ids < 611).sum() == 289 and (data.train.ids >= 2100).sum() == 250


def test_heart_disease(shared):
    path = data_path(shared, "flamby_heart_disease/fed_heart_flamby_split.npz")
    data = npz(path, client="center", columns={"x": "x_center_normalised", "y": "y"})
    assert data.train.ids.tolist() == ["cleveland", "hungarian", "switzerland", "va"]
    assert data.train.sizes.tolist() == [199, 172, 30, 85] and data.test.sizes.tolist() == [104, 89, 16, 45]
    assert data.train.columns["x"].shape == (486, 13) and data.classes == 2


def test_leaf_synthetic(shared):
    data = npz(data_path(shared, "leaf_synthetic/leaf_synthetic_100clients.npz"))
    assert (data.train.num_clients, data.train.num_examples, data.test.num_examples) == (100, 6_187, 4_189)
    assert data.train.columns["x"].dtype == np.float64 and data.classes == 10


def test_vehicle(shared):
    data = npz(data_path(shared, "vehicle/vehicle_23clients_train.npz"), test_fraction=0.2)
    assert (data.train.num_clients, data.train.num_examples + data.test.num_examples) == (23, 1_860)
    assert (data.train.sizes + data.test.sizes).min() == 7
    assert data.test.sizes.min() >= 1 and data.classes is None
