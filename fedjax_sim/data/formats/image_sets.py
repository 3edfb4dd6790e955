"""Sets of labelled images: handwritten digits that need no download, and folders of arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data import partitions
from fedjax_sim.data._files import Npz, errors_name, read_npy
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split


def digits(
    clients: int = 50,
    alpha: float = 0.3,
    seed: int = 0,
    test_fraction: float = 0.2,
    min_examples: int = 2,
    image_size: int = 8,
) -> Federated:
    """The handwritten digits that come with scikit-learn: 1,797 images, 10 classes, no download.

    Columns: ``x`` is ``uint8[examples, image_size, image_size, 1]``, the original levels 0..16 stretched to 0..255
    (ink is bright); ``y`` is ``int32[examples]``. A label-Dirichlet partition makes the clients, then each client's
    examples are divided into training and test.

    Args:
      clients: how many.
      alpha: of ``dirichlet``; small gives each label to few clients.
      seed: of the partition and of ``split``.
      test_fraction: share of each client's examples that is its test part, as in ``split``.
      min_examples: what every client holds at least; with 2 or more, each has both training and test examples.
      image_size: height and width. Above 8 the images are enlarged by bilinear interpolation, for models that expect
        MNIST's 28 x 28 pixels; they hold no more detail than before.

    Raises:
      ValueError: as ``dirichlet`` and ``split``; ``image_size`` is below 8.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits, UCI; its test part.

    Example:
      >>> import fedjax_sim as fs
      >>> data = fs.data.digits(clients=10, alpha=1.0)
      >>> data.train
      ClientData(10 clients with 97 to 200 of 1439 examples, x: uint8[8, 8, 1], y: int32[], 97.9 kB)
    """
    checks.positive_int("image_size", image_size)
    if image_size < 8:
        raise ValueError(f"image_size is {image_size}, expected at least 8, the size of the originals.")
    from sklearn.datasets import load_digits  # slow to import, and absent from accelerator images

    pixels, labels = load_digits(return_X_y=True)
    levels = _enlarged(pixels.reshape(-1, 8, 8), image_size) * (255 / 16)
    columns = {
        "x": np.rint(levels).astype(np.uint8)[..., None],
        "y": labels.astype(np.int32),
    }
    partition = partitions.dirichlet(clients, alpha, min_examples=min_examples)(columns, seed)
    parts = split(partition.deal(columns), test_fraction, seed)
    return Federated(*parts, name="digits", classes=10, notes=partition.remarks())


def mnist_by_writer(folder: str | Path) -> Federated:
    """MNIST with the people who wrote it as clients: 539 writers to train on, 297 others to test on.

    Columns: ``x`` is ``uint8[examples, 28, 28, 1]`` (ink is bright), ``y`` is ``int32[examples]``; ids are NIST's
    writer numbers, below 611 for census employees and from 2100 for high-school students.

    Args:
      folder: holds ``train_images.npy.xz``, ``test_images.npy.xz`` (``uint8[examples, 28, 28]``, MNIST's order) and
        ``labels_writers.npz`` (``{train,test}_{label,writer}``).

    Raises:
      FileNotFoundError, IsADirectoryError: one of the files is not there.
      ValueError: one is damaged, or they do not fit together.

    Source: LeCun et al. 1998; writers from Yadav and Bottou 2019 (arXiv 1905.10498), QMNIST.
    """
    folder = Path(folder)
    labels = folder / "labels_writers.npz"
    file = Npz(labels)
    parts = []
    for part in ("train", "test"):
        path = folder / f"{part}_images.npy.xz"
        x = read_npy(path)
        with errors_name(path, labels):
            columns = {"x": _with_channels(x), "y": _labels(file, part)}
            parts.append(ClientData.from_arrays(columns, file.read(f"{part}_writer")))
    with errors_name(folder):
        return Federated(*parts, name="mnist_by_writer", classes=10)


def images(folder: str | Path) -> Federated:
    """A folder of labelled images without clients: one client holds all, until ``repartition`` deals them out.

    Columns: ``x`` is ``[examples, height, width, channels]`` in its storage type; images of one channel may lack the
    last axis in the file. ``y`` is ``int32[examples]``; ``classes`` is the largest label plus one.

    Args:
      folder: holds one file ``train_images*.npy.xz``, one ``test_images*.npy.xz``, and ``labels.npz`` with
        ``train_label`` and ``test_label``, ``[examples]``.

    Raises:
      FileNotFoundError: one of the files is not there.
      ValueError: there are several for one part, one is damaged, or they do not fit together.

    Example:
      >>> import lzma, tempfile, numpy as np, fedjax_sim as fs
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for part in ("train", "test"):
      ...         with lzma.open(f"{folder}/{part}_images.npy.xz", "wb") as stream:
      ...             np.save(stream, np.zeros((6, 28, 28), np.uint8))
      ...     np.savez(folder + "/labels.npz", train_label=np.arange(6), test_label=np.arange(6))
      ...     data = fs.data.images(folder)
      >>> fs.data.repartition(data, fs.partitions.shards(3, 1)).train
      ClientData(3 clients with 2 to 2 of 6 examples, x: uint8[28, 28, 1], y: int32[], 4.73 kB)
    """
    folder = Path(folder)
    labels = folder / "labels.npz"
    file = Npz(labels)
    parts = []
    for part in ("train", "test"):
        path = _only(folder, f"{part}_images*.npy.xz")
        x = read_npy(path)
        with errors_name(path, labels):
            columns = {"x": _with_channels(x), "y": _labels(file, part)}
            parts.append(ClientData.from_arrays(columns, np.zeros(len(x), np.int64), ids=[0]))
    classes = max((int(part.columns["y"].max(initial=-1)) for part in parts), default=-1) + 1
    with errors_name(folder):
        return Federated(*parts, name=folder.resolve().name, classes=classes or None)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise FileNotFoundError(f"{folder} holds no file {pattern}, expected one.")
    if len(found) > 1:
        raise ValueError(
            f"{folder} holds {', '.join(path.name for path in found)}, expected one file {pattern}."
        )
    return found[0]


def _labels(file: Npz, part: str) -> np.ndarray:
    labels = file.read(f"{part}_label")
    if (
        labels.ndim != 1
        or labels.dtype.kind not in "iu"
        or labels.min(initial=0) < 0
        or labels.max(initial=0) >= 2**31
    ):
        raise ValueError(
            f"array '{part}_label' is {labels.dtype}{list(labels.shape)}, expected integers [examples] from 0."
        )
    return labels.astype(np.int32)


def _with_channels(x: np.ndarray) -> np.ndarray:
    if x.ndim not in (3, 4):
        raise ValueError(
            f"the images have shape {list(x.shape)}, expected [examples, height, width(, channels)]."
        )
    return x[..., None] if x.ndim == 3 else x


def _enlarged(images: np.ndarray, size: int) -> np.ndarray:
    """Bilinear interpolation of ``[examples, old, old]`` to ``[examples, size, size]``.

    A pixel is a square whose value sits in its middle. Beyond the outermost middles the image goes on as it ends.
    """
    old = images.shape[1]
    places = np.clip((np.arange(size) + 0.5) * (old / size) - 0.5, 0, old - 1)
    # Row i holds the weights of the old pixels in new pixel i: a triangle of width 1 to either side.
    weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(old)))
    return weights @ images @ weights.T
