"""CIFAR-10 and CIFAR-100, from the binary version of the published files."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._files import errors_name, needed
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.presets._tables import check_count

_PIXELS = 3 * 32 * 32
_BATCH, _TRAIN, _TEST = 10_000, 50_000, 10_000
"""Images in a file of CIFAR-10, and in the two files of CIFAR-100."""
_PAGE = "https://www.cs.toronto.edu/~kriz/cifar.html, the binary version"

_CIFAR10 = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
_CIFAR100 = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
"""Mean and standard deviation of the training images, by channel, of pixels from 0 to 1."""


def cifar10(folder: str | Path, *, normalise: bool = False) -> Federated:
    """CIFAR-10: 60,000 photographs of 10 classes. One client holds all, until ``repartition`` deals them out.

    Columns: ``x`` is ``uint8[examples, 32, 32, 3]``, red, green and blue, which tasks scale to 0..1; ``y`` is ``int32[examples]``.
    50,000 images to train on, 10,000 to test on, in the files' order.

    Args:
      folder: holds ``data_batch_1.bin`` to ``data_batch_5.bin`` and ``test_batch.bin``.
      normalise: makes ``x`` ``float32``, scaled to 0..1, then less the mean (0.4914, 0.4822, 0.4465) and divided by the standard
        deviation (0.2470, 0.2435, 0.2616) of the training images' channels. It takes four times the memory.

    Raises:
      FileNotFoundError, IsADirectoryError: a file is not there; says where to get it.
      NotADirectoryError: the folder is a file.
      ValueError: a file is damaged or not as published; the folder holds the Python version, which only unpickling reads.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    batches = [_read(Path(folder), name, _BATCH, ("label",), 10, "label") for name in names]
    train = {column: np.concatenate([batch[column] for batch in batches[:-1]]) for column in ("x", "y")}
    return _federated("cifar10", train, batches[-1], 10, _CIFAR10 if normalise else None)


def cifar100(
    folder: str | Path, *, labels: Literal["fine", "coarse"] = "fine", normalise: bool = False
) -> Federated:
    """CIFAR-100: 60,000 photographs of 100 classes, or of 20. One client holds all, until ``repartition`` deals them out.

    Columns: ``x`` is ``uint8[examples, 32, 32, 3]``, red, green and blue, which tasks scale to 0..1; ``y`` is ``int32[examples]``.
    50,000 images to train on, 10,000 to test on, in the files' order. TensorFlow Federated's division into 500 clients is in
    a file of its own.

    Args:
      folder: holds ``train.bin`` and ``test.bin``.
      labels: ``"fine"`` for 100 classes, ``"coarse"`` for their 20 groups.
      normalise: makes ``x`` ``float32``, scaled to 0..1, then less the mean (0.5071, 0.4865, 0.4409) and divided by the standard
        deviation (0.2673, 0.2564, 0.2762) of the training images' channels. It takes four times the memory.

    Raises:
      FileNotFoundError, IsADirectoryError: a file is not there; says where to get it.
      NotADirectoryError: the folder is a file.
      ValueError: a file is damaged or not as published; the folder holds the Python version, which only unpickling reads.

    Source: Krizhevsky 2009, Learning Multiple Layers of Features from Tiny Images.
    """
    checks.one_of("labels", labels, ("fine", "coarse"))
    classes = 100 if labels == "fine" else 20
    train, test = (
        _read(Path(folder), f"{part}.bin", count, ("coarse", "fine"), classes, labels)
        for part, count in (("train", _TRAIN), ("test", _TEST))
    )
    return _federated("cifar100", train, test, classes, _CIFAR100 if normalise else None)


def _read(
    folder: Path, name: str, count: int, kinds: tuple[str, ...], classes: int, wanted: str
) -> dict[str, np.ndarray]:
    """Images and labels of one file: for each image its labels, then its red, green and blue pixels, a byte each."""
    pickled = folder / name.removesuffix(".bin")
    if pickled.is_file() and not (folder / name).exists():
        raise ValueError(
            f"{folder} holds the Python version ({pickled.name}), whose files are pickles: reading them would run whatever code "
            f"they name. Get the binary version instead: {_PAGE}."
        )
    path = needed(folder, name, _PAGE)
    content = np.fromfile(path, np.uint8)
    size = len(kinds) + _PIXELS
    with errors_name(path):
        if len(content) % size:
            raise ValueError(
                f"the file has {len(content)} bytes, expected a multiple of {size}: it was cut off."
            )
        check_count(len(content) // size, count, "images")
        rows = content.reshape(-1, size)
        y = rows[:, kinds.index(wanted)].astype(np.int32)
        if y.max(initial=0) >= classes:
            raise ValueError(
                f"a label is {y.max()}, expected 0 to {classes - 1}: the file is of another kind."
            )
    # Channel by channel in the file, row by row in each.
    x = np.ascontiguousarray(rows[:, len(kinds) :].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return {"x": x, "y": y}


def _federated(
    name: str,
    train: dict[str, np.ndarray],
    test: dict[str, np.ndarray],
    classes: int,
    statistics: tuple[tuple[float, ...], tuple[float, ...]] | None,
) -> Federated:
    parts = []
    for part in (train, test):
        if statistics is not None:
            mean, deviation = (np.asarray(values, np.float32) for values in statistics)
            part = {**part, "x": (part["x"] / np.float32(255) - mean) / deviation}
        parts.append(ClientData.from_arrays(part, np.zeros(len(part["y"]), np.int64), ids=[0]))
    return Federated(*parts, name=name, classes=classes)
