"""Presets of images: CIFAR and EMNIST, on files of the true format."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from real_sets import data_path

from fedjax_sim import partitions
from fedjax_sim.data import cifar10, cifar100, emnist, images, load, repartition
from fedjax_sim.data.presets import cifar

# --- CIFAR ---------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """Files of a few images instead of 10,000."""
    for name, count in (("_BATCH", 4), ("_TRAIN", 6), ("_TEST", 3)):
        monkeypatch.setattr(cifar, name, count)


def photographs(count: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(count, 32, 32, 3), dtype=np.uint8)


def records(images: np.ndarray, *labels) -> bytes:
    """Labels, then the red, the green and the blue pixels of each image, row by row."""
    return b"".join(
        bytes(each) + image[..., 0].tobytes() + image[..., 1].tobytes() + image[..., 2].tobytes()
        for image, *each in zip(images, *labels, strict=True)
    )


@pytest.fixture
def ten(tmp_path, small) -> Path:
    for number in range(1, 6):
        (tmp_path / f"data_batch_{number}.bin").write_bytes(
            records(photographs(4, number), [number, 9, 0, 1])
        )
    (tmp_path / "test_batch.bin").write_bytes(records(photographs(4, 9), [5, 6, 7, 8]))
    return tmp_path


@pytest.fixture
def hundred(tmp_path, small) -> Path:
    for part, count in (("train", 6), ("test", 3)):
        fine = np.arange(count) * 16
        (tmp_path / f"{part}.bin").write_bytes(records(photographs(count, count), fine // 8, fine))
    return tmp_path


def test_cifar10(ten):
    data = load(f"cifar10:{ten}")
    assert (data.name, data.classes) == ("cifar10", 10)
    assert data.train.sizes.tolist() == [20] and data.test.sizes.tolist() == [4]
    assert data.train.columns["y"].dtype == np.int32
    assert data.train.columns["y"][:8].tolist() == [1, 9, 0, 1, 2, 9, 0, 1]
    np.testing.assert_array_equal(data.train.columns["x"][4:8], photographs(4, 2))
    np.testing.assert_array_equal(data.test.columns["x"], photographs(4, 9))
    assert repartition(data, partitions.iid(5)).train.sizes.tolist() == [4] * 5


def test_cifar10_normalised(ten):
    x = cifar10(ten, normalise=True).test.columns["x"]
    expected = (photographs(4, 9) / 255 - (0.4914, 0.4822, 0.4465)) / (0.2470, 0.2435, 0.2616)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("labels", "classes", "step"), [("fine", 100, 16), ("coarse", 20, 2)])
def test_cifar100(hundred, labels, classes, step):
    data = load(f"cifar100:{hundred}", labels=labels)
    assert data.classes == classes and data.train.columns["y"].tolist() == [step * k for k in range(6)]
    np.testing.assert_array_equal(data.train.columns["x"], photographs(6, 6))
    with pytest.raises(ValueError, match="labels is 'all', expected one of 'fine', 'coarse'"):
        cifar100(hundred, labels="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda content: b"", "there are 0 images, expected 4, as published"),
        (lambda content: content[:3073], "there are 1 images, expected 4"),
        (
            lambda content: content[:-1],
            "the file has 12291 bytes, expected a multiple of 3073: it was cut off",
        ),
        (
            lambda content: b"\x0a" + content[1:],
            "a label is 10, expected 0 to 9: the file is of another kind",
        ),
    ],
)
def test_cifar_refuses(ten, change, match):
    path = ten / "data_batch_3.bin"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=f"data_batch_3.bin: {match}"):
        cifar10(ten)


def test_cifar_never_unpickles(ten, tmp_path):
    class Evil:
        def __reduce__(self):
            return (exec, ("raise SystemExit('code of a data set ran')",))

    (ten / "data_batch_1.bin").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"data_batch_1.bin does not exist.*Get it from .*binary version"
    ):
        cifar10(ten)
    (ten / "data_batch_1").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(
        ValueError, match=r"holds the Python version \(data_batch_1\), whose files are pickles"
    ):
        cifar10(ten)
    (tmp_path / "train").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"holds the Python version \(train\)"):
        cifar100(tmp_path)


def test_cifar10_of_true_photographs(shared, tmp_path, monkeypatch):
    """True images, written in the format of the files; their statistics are nearly those of the whole set."""
    monkeypatch.setattr(cifar, "_BATCH", 1000)
    subset = images(data_path(shared, "cifar10_subset"))
    x, y = subset.test.columns["x"], subset.test.columns["y"]
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (tmp_path / f"{name}.bin").write_bytes(records(x, y))
    data = cifar10(tmp_path, normalise=True)
    assert data.train.columns["y"][:1000].tolist() == y.tolist()
    x = data.test.columns["x"]
    np.testing.assert_allclose(x.mean((0, 1, 2)), 0, atol=0.05)
    np.testing.assert_allclose(x.std((0, 1, 2)), 1, atol=0.05)


# --- EMNIST --------------------------------------------------------------------------------------------------


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    array = array.astype(np.uint8)
    return struct.pack(f">HBB{array.ndim}I", 0, kind, array.ndim, *array.shape) + array.tobytes()


def characters(count: int) -> np.ndarray:
    """Upright: a bar along the upper edge, its brightness the place in the file."""
    x = np.zeros((count, 28, 28), np.uint8)
    x[:, 2, 4:24] = np.arange(1, count + 1)[:, None]
    return x


def write_emnist(folder: Path, division: str = "byclass", compress: bool = True, **labels) -> Path:
    for part, count in (("train", 5), ("test", 3)):
        y = np.asarray(labels.get(part, np.arange(count) + (division == "letters")))
        for name, content in (("images-idx3", characters(count).transpose(0, 2, 1)), ("labels-idx1", y)):
            path = folder / f"emnist-{division}-{part}-{name}-ubyte"
            if compress:
                path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(idx(content)))
            else:
                path.write_bytes(idx(content))
    return folder


@pytest.mark.parametrize("compress", [True, False])
@pytest.mark.parametrize(
    ("division", "classes"),
    [("byclass", 62), ("bymerge", 47), ("balanced", 47), ("letters", 26), ("digits", 10), ("mnist", 10)],
)
def test_emnist(tmp_path, division, classes, compress):
    data = load(f"emnist:{write_emnist(tmp_path, division, compress)}", division=division)
    assert (data.name, data.classes) == (f"emnist_{division}", classes)
    assert data.train.sizes.tolist() == [5] and data.test.sizes.tolist() == [3]
    np.testing.assert_array_equal(data.train.columns["x"][..., 0], characters(5))
    assert data.train.columns["x"].shape == (5, 28, 28, 1) and data.train.columns["x"].dtype == np.uint8
    assert data.train.columns["y"].dtype == np.int32 and data.train.columns["y"].tolist() == [0, 1, 2, 3, 4]
    assert repartition(data, partitions.shards(5, 1)).train.num_clients == 5


@pytest.mark.parametrize(
    ("labels", "match"),
    [
        ([0, 1, 2, 3, 62], "train-labels.*: there is no label, or one outside of the 62 classes of byclass"),
        (
            [0, 1, 2, 3],
            r"train-images.* with .*train-labels.*: column 'y' has 4 rows, column 'x' has 5|client has",
        ),
        ([], "there is no label"),
    ],
)
def test_emnist_refuses_labels(tmp_path, labels, match):
    with pytest.raises(ValueError, match=match):
        emnist(write_emnist(tmp_path, train=labels))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"", "the file was cut off in its header"),
        (idx(characters(5))[:10], "the file was cut off in its header"),
        (idx(characters(5))[:-1], "the header says 3920 bytes, the file has 3919: it was cut off or changed"),
        (idx(characters(5)) + b"0", "the header says 3920 bytes, the file has more"),
        (idx(characters(5), kind=13), "no IDX file of bytes with 3 axes: it begins with 00000d03"),
        (idx(np.arange(5)), "was cut off in its header|no IDX file"),
        (struct.pack(">HBB3I", 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**32 - 1), "the file has 0: it was cut off"),
        (idx(np.zeros((5, 20, 20))), r"the images have shape \[20, 20\], expected \[28, 28\]"),
    ],
)
def test_emnist_refuses_files(tmp_path, content, match):
    write_emnist(tmp_path)
    path = tmp_path / "emnist-byclass-train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content))
    with pytest.raises(ValueError, match=f"{path.name}: .*({match})"):
        emnist(tmp_path)
    path.unlink()
    path.with_suffix("").write_bytes(content)
    with pytest.raises(ValueError, match=f"{path.stem}: .*({match})"):
        emnist(tmp_path)


def test_emnist_that_is_missing(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"emnist-digits-train-images-idx3-ubyte.gz does not exist.*nist.gov"
    ):
        emnist(tmp_path, division="digits")
    with pytest.raises(ValueError, match="division is 'upper', expected one of 'byclass', "):
        emnist(tmp_path, division="upper")  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_emnist_is_read_whole_or_refused(tmp_path_factory, data):
    folder = tmp_path_factory.getbasetemp() / "emnist"
    folder.mkdir(exist_ok=True)
    write_emnist(folder)
    name = data.draw(st.sampled_from(["images-idx3", "labels-idx1"]))
    path = folder / f"emnist-byclass-train-{name}-ubyte.gz"
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))])
    try:
        found = emnist(folder)
    except ValueError as error:
        assert path.name in str(error)
    else:
        assert found.train.num_examples == 5  # gzip's own checksum covers the data
        np.testing.assert_array_equal(found.train.columns["x"][..., 0], characters(5))
