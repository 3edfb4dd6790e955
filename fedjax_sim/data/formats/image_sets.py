"""Sets of labelled images: handwritten digits that need no download, and folders of arrays or of images by class."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data import partitions
from fedjax_sim.data._files import Npz, check_is_folder, errors_name, needed, read_npy
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.formats import _pictures
from fedjax_sim.data.formats._class_folders import has_class_folders, read_class_folders


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
    pixels, labels = _digits()
    levels = _enlarged(pixels.reshape(-1, 8, 8), image_size) * (255 / 16)
    columns = {
        "x": np.rint(levels).astype(np.uint8)[..., None],
        "y": labels.astype(np.int32),
    }
    partition = partitions.dirichlet(clients, alpha, min_examples=min_examples)(columns, seed)
    parts = split(partition.deal(columns), test_fraction, seed)
    return Federated(*parts, name="digits", classes=10, notes=partition.remarks())


def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels ``f64[examples, 64]`` and labels ``i64[examples]`` of scikit-learn, without a second of importing it."""
    package = importlib.util.find_spec("sklearn")
    for folder in (package and package.submodule_search_locations) or ():
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.exists():
            numbers = np.loadtxt(file, delimiter=",")
            return numbers[:, :-1], numbers[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits  # another version may keep them elsewhere

    pixels, labels = load_digits(return_X_y=True)
    return np.asarray(pixels), np.asarray(labels)


_WRITERS = (
    "MNIST's images and the labels of the repository facebookresearch/qmnist, of which it is made: see "
    "fs.data.mnist_by_writer"
)


def mnist_by_writer(folder: str | Path) -> Federated:
    """MNIST with the people who wrote it as clients: 539 writers to train on, 297 others to test on.

    Columns: ``x`` is ``uint8[examples, 28, 28, 1]`` (ink is bright), ``y`` is ``int32[examples]``; ids are NIST's
    writer numbers, below 611 for census employees and from 2100 for high-school students.

    Args:
      folder: holds ``train_images.npy.xz``, ``test_images.npy.xz`` (``uint8[examples, 28, 28]``, MNIST's order) and
        ``labels_writers.npz`` (``{train,test}_{label,writer}``). Nobody publishes these: they are made once, of MNIST's
        images and of QMNIST's labels, in which column 0 is the digit and column 2 the writer.

    Raises:
      FileNotFoundError, IsADirectoryError: one of the files is not there; says where to get what it is made of.
      NotADirectoryError: the folder is a file.
      ValueError: one is damaged, or they do not fit together.

    Source: LeCun et al. 1998; writers from Yadav and Bottou 2019 (arXiv 1905.10498), QMNIST.
    """
    folder = Path(folder)
    labels = needed(folder, "labels_writers.npz", _WRITERS)
    file = Npz(labels)
    parts = []
    for part in ("train", "test"):
        path = needed(folder, f"{part}_images.npy.xz", _WRITERS)
        x = read_npy(path)
        with errors_name(path, labels):
            columns = {"x": _with_channels(x), "y": _labels(file, part)}
            parts.append(ClientData.from_arrays(columns, file.read(f"{part}_writer")))
    with errors_name(folder):
        return Federated(*parts, name="mnist_by_writer", classes=10)


def images(
    folder: str | Path,
    *,
    size: Sequence[int] | None = None,
    colours: Literal["as stored", "grey", "rgb"] = "as stored",
    test_fraction: float | None = None,
    seed: int = 0,
) -> Federated:
    """A folder of labelled images without clients: one client holds all, until ``repartition`` deals them out.

    The folder holds a folder for each class, ``cat/1.png``, or such folders for each part, ``train/cat/1.png`` and
    ``test/cat/2.png``; PNG, JPEG and what else Pillow reads. Classes are numbered in the order of their names, which
    ``notes`` gives. Or it holds arrays: one file ``train_images*.npy.xz``, one ``test_images*.npy.xz``, and
    ``labels.npz`` with ``train_label`` and ``test_label``, ``[examples]``; ``classes`` is then the largest label plus one.

    Columns: ``x`` is ``[examples, height, width, channels]`` in its storage type; images of one channel may lack the
    last axis in the file. ``y`` is ``int32[examples]``.

    Args:
      folder: either of the two.
      size: of images in folders by class: height and width, to which each is resized; by default all have one size.
      colours: likewise; as for ``fedjax_sim.data.decoders.pictures``.
      test_fraction: divides images in folders by class that are not divided already, by ``fedjax_sim.data.split``.
      seed: for ``test_fraction``.

    Raises:
      FileNotFoundError: the folder is not there, or holds neither of the two.
      NotADirectoryError: it is a file.
      ValueError: there are several files for one part, one is damaged, or they do not fit together; also for an argument
        that does not apply.

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
    folder = check_is_folder(Path(folder))
    labels = folder / "labels.npz"
    if not labels.exists() and not any(folder.glob("*_images*.npy.xz")):
        return _by_class(folder, _pictures.form(size, colours), test_fraction, seed)
    if size is not None or colours != "as stored" or test_fraction is not None:
        raise ValueError(
            f"{folder} holds arrays, divided already: expected no size, colours or test_fraction. Leave them out."
        )
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


def _by_class(folder: Path, form: _pictures.Form, test_fraction: float | None, seed: int) -> Federated:
    if not has_class_folders(folder):
        raise FileNotFoundError(
            f"{folder} holds no labelled images, expected a folder of images for each class (cat/1.png, or train/cat/1.png "
            "and test/cat/2.png), or arrays: labels.npz with train_images.npy.xz and test_images.npy.xz."
        )
    found = read_class_folders(folder, form)
    with errors_name(folder):
        if found.test is not None and test_fraction is not None:
            raise ValueError("it has a test part, expected no test_fraction. Leave it out.")
        none = {name: column[:0] for name, column in found.train.items()}
        train, test = (
            ClientData.from_arrays(
                {"x": _with_channels(columns["x"]), "y": columns["y"]},
                np.zeros(len(columns["y"]), np.int64),
                ids=[0],
            )
            for columns in (found.train, none if found.test is None else found.test)
        )
        if test_fraction is not None:
            train, test = split(train, test_fraction, seed)
        names = ", ".join(found.classes[:20]) + (", ..." if len(found.classes) > 20 else "")
        note = f"classes from 0 are the folders {names}"
        return Federated(train, test, name=folder.resolve().name, classes=len(found.classes), notes=(note,))


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
