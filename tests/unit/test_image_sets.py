import lzma

import numpy as np
import pytest
from PIL import Image

from fedjax_sim import partitions
from fedjax_sim.data import digits, images, load, repartition
from fedjax_sim.data.formats.image_sets import _enlarged


def test_enlarged_digits():
    small, large = (digits(clients=5, alpha=1.0, image_size=size).train for size in (8, 28))
    assert large.columns["x"].shape[1:] == (28, 28, 1) and large.columns["x"].dtype == np.uint8
    np.testing.assert_array_equal(large.columns["y"], small.columns["y"])
    assert large.columns["x"].max() <= 255 and large.columns["x"].mean() == pytest.approx(
        small.columns["x"].mean(), rel=0.02
    )
    with pytest.raises(ValueError, match="image_size is 7, expected at least 8"):
        digits(image_size=7)


def test_enlarging_is_bilinear():
    image = np.random.default_rng(0).uniform(size=(1, 3, 3))
    np.testing.assert_array_equal(_enlarged(image, 3), image)
    np.testing.assert_allclose(_enlarged(np.ones((2, 8, 8)), 28), 1)
    # Three times as large: the middle of an old pixel is the middle of the new pixel in its middle.
    np.testing.assert_allclose(_enlarged(image, 9)[:, 1::3, 1::3], image)
    # One third of the way from one middle to the next, along both axes.
    row = image[0, 0] * 2 / 3 + image[0, 1] / 3
    assert _enlarged(image, 9)[0, 2, 2] == pytest.approx(row[0] * 2 / 3 + row[1] / 3)
    # Outside the outermost middles the image goes on.
    assert _enlarged(image, 9)[0, 0, 0] == image[0, 0, 0]


@pytest.fixture
def folder(tmp_path):
    def write(shape=(6, 4, 4), name="train_images_first6.npy.xz", **labels):
        for file, size in ((name, shape), ("test_images.npy.xz", (2, *shape[1:]))):
            with lzma.open(tmp_path / file, "wb") as stream:
                np.save(stream, np.arange(np.prod(size), dtype=np.uint8).reshape(size))
        np.savez(
            tmp_path / "labels.npz",
            **{"train_label": np.arange(6, dtype=np.uint8), "test_label": np.array([7, 0])} | labels,
        )
        return tmp_path

    return write


@pytest.mark.parametrize("shape", [(6, 4, 4), (6, 4, 4, 1), (6, 4, 4, 3)])
def test_images_are_one_client_until_partitioned(folder, shape):
    data = load(f"images:{folder(shape)}")
    assert data.classes == 8 and data.name == folder(shape).name
    assert data.train.sizes.tolist() == [6] and data.test.sizes.tolist() == [2]
    assert data.train.columns["x"].shape == (*shape, 1)[:4] and data.train.columns["x"].dtype == np.uint8
    assert data.train.columns["y"].dtype == np.int32
    assert repartition(data, partitions.iid(3)).train.sizes.tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"shape": (5, 4, 4)}, r"train_images_first6.npy.xz with .*labels.npz: column 'y' has 6 rows"),
        ({"shape": (6, 4)}, r"the images have shape \[6, 4\], expected \[examples, height, width"),
        ({"train_label": np.zeros(6)}, r"array 'train_label' is float64\[6\], expected integers"),
        ({"test_label": np.array([-1, 0])}, r"array 'test_label' is int64\[2\], expected integers.*from 0"),
    ],
)
def test_images_refuse(folder, options, match):
    with pytest.raises(ValueError, match=match):
        images(folder(**options))


def test_images_of_several_sizes_go_by_their_names(tmp_path):
    for name, height in (("cat/1", 8), ("cat/2", 8), ("dog/odd", 9)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.zeros((height, 8), np.uint8)).save(tmp_path / f"{name}.png")
    with pytest.raises(
        ValueError, match=r"\[9, 8\] \(dog/odd.png\) and \[8, 8\] \(cat/1.png\), .* by size=\[height, width\]"
    ):
        images(tmp_path)
    assert images(tmp_path, size=[8, 8]).train.columns["x"].shape == (3, 8, 8, 1)


def test_images_need_one_file_of_each(folder):
    path = folder()
    (path / "train_images_more.npy.xz").touch()
    with pytest.raises(ValueError, match=r"holds train_images_first6.npy.xz, train_images_more.npy.xz, exp"):
        images(path)
    for file in path.glob("train*"):
        file.unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no file train_images\*.npy.xz"):
        images(path)
    (path / "labels.npz").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels.npz does not exist"):
        images(path)


# --- the real sets; numbers from shared/data/README.md -------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "train", "test"),
    [
        ("fashion_mnist", (60_000, 28, 28, 1), (10_000, 28, 28, 1)),
        ("cifar10_subset", (10_000, 32, 32, 3), (1_000, 32, 32, 3)),
    ],
)
def test_real_images(shared, name, train, test):
    path = shared / "data" / name
    if not path.exists():
        pytest.skip(f"the real data set {name} is not here")
    data = images(path)
    assert (data.name, data.classes) == (name, 10)
    assert data.train.columns["x"].shape == train and data.test.columns["x"].shape == test
    if name == "cifar10_subset":
        assert np.bincount(data.train.columns["y"])[:3].tolist() == [1005, 974, 1032]
    dealt = repartition(data, partitions.shards(100, 2))
    labels = [len(np.unique(dealt.train.client(client)["y"])) for client in range(100)]
    assert max(labels) <= 4 and np.median(labels) == 2
