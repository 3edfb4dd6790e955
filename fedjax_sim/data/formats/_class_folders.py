"""Images in one folder for each class, PNG or JPEG for example."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fedjax_sim.data.formats._pictures import Form, pictures

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_TESTS = ("test", "val", "validation")


class ClassFolders(NamedTuple):
    """Images by class.

    Attributes:
      train, test: columns ``x`` and ``y``; ``test`` is ``None`` where the folder names no parts.
      classes: names of the classes, in the order of their numbers.
    """

    train: dict[str, np.ndarray]
    test: dict[str, np.ndarray] | None
    classes: tuple[str, ...]


def has_class_folders(folder: Path) -> bool:
    """Whether a folder holds ``cat/1.png`` or ``train/cat/1.png``."""
    return any(_images(below) for part in (folder, folder / "train") for below in _folders(part))


def read_class_folders(folder: Path, form: Form) -> ClassFolders:
    """All images of a folder, in the order of classes and then of their names.

    Args:
      folder: holds a folder for each class, or the folder ``train``, and ``test`` if there is one, that hold them.
      form: of all images, as ``_pictures.form`` has it.

    Raises:
      ValueError: the test part has a class that training has not, or images differ in shape or are damaged.
    """
    divided = (folder / "train").is_dir()
    train = folder / "train" if divided else folder
    classes = tuple(below.name for below in _folders(train) if _images(below))
    tests = [folder / name for name in _TESTS if divided and (folder / name).is_dir()]
    if not tests:
        return ClassFolders(_part(train, classes, form), None, classes)
    strangers = {below.name for below in _folders(tests[0])} - set(classes)
    if strangers:
        raise ValueError(
            f"{tests[0]} has the class {min(strangers)!r}, expected those of {train}: {', '.join(classes)}."
        )
    return ClassFolders(_part(train, classes, form), _part(tests[0], classes, form), classes)


def _part(folder: Path, classes: Sequence[str], form: Form) -> dict[str, np.ndarray]:
    files = [(path, label) for label, name in enumerate(classes) for path in _images(folder / name)]
    names = [str(path.relative_to(folder)) for path, _ in files]
    images = (path.read_bytes() for path, _ in files)
    x = pictures(images, str(folder), *form, names=names, fix="size=[height, width]")
    return {"x": np.asarray(x), "y": np.asarray([label for _, label in files], np.int32)}


def _folders(folder: Path) -> list[Path]:
    below = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in below if path.is_dir() and not path.name.startswith("."))


def _images(folder: Path) -> list[Path]:
    below = folder.iterdir() if folder.is_dir() else ()
    return sorted(path for path in below if path.suffix.lower() in SUFFIXES and not path.name.startswith("."))
