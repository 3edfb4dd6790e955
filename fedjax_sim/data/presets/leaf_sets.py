"""LEAF's Sent140 and CelebA: texts and images that its JSON holds or names."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data import text
from fedjax_sim.data._files import where_from
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.formats._leaf_file import User, as_list, numbers
from fedjax_sim.data.formats._leaf_folder import Users, join_users, read_users
from fedjax_sim.data.presets._local import present

_TEXT = 4
"""Place of the text in Sent140's fields, without the label: id, date, query, user, text."""

_MOST_PIXELS = 1 << 24
"""Of one image file: far more than CelebA's, and little enough for memory."""


def _origin(name: str) -> str:
    return f"LEAF: the repository TalwalkarLab/leaf, data/{name}, preprocess.sh"


def sent140(
    path: str | Path,
    *,
    test: str | Path | None = None,
    vocabulary: int | Sequence[str] = 10_000,
    length: int = 25,
    lower: bool = True,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Federated:
    """LEAF's Sent140: tweets by who wrote them, to tell whether their mood is bad (0) or good (1).

    Each example of the JSON is a list of fields, id, date, query, user and text, of which the text alone is read.
    Files and parts are those of ``leaf``.

    Columns: ``x`` is ``int32[examples, length]``, the first words of the text, padded with 0; ``y`` is
    ``int32[examples]``. Ids are those of ``text.words``: 0 is padding, the words of the vocabulary begin at 3, and the
    id after the last one stands for all others, so there are ``words + 4``; ``notes`` says how many. Runs of letters,
    digits and apostrophes are words, and so is each of ``.,!?;``.

    Args:
      path: a file or a folder.
      test: a file or a folder of the test part, for a ``path`` that has none.
      vocabulary: the words themselves, or how many of the most frequent words of the training part; these are
        counted over all clients, a query on their data. LEAF takes those of GloVe.
      length: words of an example; what is longer is cut off.
      lower: capitals are made small first, as the words of GloVe are.
      test_fraction: divides the examples of each client, by ``fedjax_sim.data.split``, where there is no test part.
      seed: for ``test_fraction``.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: as ``leaf``; also for an example that is no list of five texts and a label other than 0 and 1.

    Source: Go et al. 2009; Caldas et al. 2018, LEAF (arXiv 1812.01097).

    Example:
      >>> import json, pathlib, tempfile, fedjax_sim as fs
      >>> tweets = [["1", "Mon", "NO_QUERY", "ann", "What a day!"], ["2", "Tue", "NO_QUERY", "ann", "A sad day."]]
      >>> toy = {"users": ["ann"], "num_samples": [2], "user_data": {"ann": {"x": tweets, "y": [1, 0]}}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "toy.json").write_text(json.dumps(toy))
      ...     data = fs.data.sent140(folder + "/toy.json", vocabulary=["a", "day"], length=5)
      >>> data.train.columns["x"].tolist(), data.notes
      ([[5, 3, 4, 5, 0], [3, 5, 4, 5, 0]], ('2 words, 6 ids',))
    """
    checks.positive_int("length", length)
    users = read_users(present(path, _origin("sent140")), test, test_fraction, _tweets)
    if isinstance(vocabulary, int):
        said = [tweet for user in users.train.values() for tweet in user.columns["x"]]
        vocabulary = text.most_frequent(said, vocabulary, split="punctuation", lower=lower)
    encoder = text.words(vocabulary, split="punctuation", lower=lower)

    def encoded(part: dict[str, User]) -> dict[str, User]:
        return {
            name: user._replace(
                columns={**user.columns, "x": text.padded(user.columns["x"], encoder, length)}
            )
            for name, user in part.items()
        }

    users = users._replace(
        train=encoded(users.train), test=None if users.test is None else encoded(users.test)
    )
    notes = (f"{len(encoder.symbols)} words, {encoder.size} ids",)
    return _two_classes(users, test_fraction, seed, notes)


def celeba(
    path: str | Path,
    *,
    images: str | Path | None = None,
    image_size: int = 84,
    test: str | Path | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Federated:
    """LEAF's CelebA: photographs by who is on them, to tell whether they smile (1) or not (0).

    The JSON names the image of each example, and a folder has them. Files and parts are those of ``leaf``. All images
    are read into memory, 21 kB each at 84 pixels; what does not fit is written once with ``fs.data.write``, a client at
    a time.

    Columns: ``x`` is ``uint8[examples, image_size, image_size, 3]``, in RGB, resized by Pillow's bicubic filter; ``y``
    is ``int32[examples]``.

    Args:
      path: a file or a folder.
      images: the folder of images, JPEG or PNG; by default LEAF's ``raw/img_align_celeba`` inside ``path``.
      image_size: height and width that images are resized to, whatever their shape.
      test: a file or a folder of the test part, for a ``path`` that has none.
      test_fraction: divides the examples of each client, by ``fedjax_sim.data.split``, where there is no test part.
      seed: for ``test_fraction``.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: as ``leaf``; also for a name with a folder in it, an image that is missing, damaged, of another kind
        or of more than 16.8 million pixels, and a label other than 0 and 1.

    Source: Liu et al. 2015 (arXiv 1411.7766); Caldas et al. 2018, LEAF (arXiv 1812.01097).

    Example:
      >>> import json, pathlib, tempfile, fedjax_sim as fs
      >>> from PIL import Image
      >>> toy = {"users": ["7"], "num_samples": [1], "user_data": {"7": {"x": ["000001.jpg"], "y": [1.0]}}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "toy.json").write_text(json.dumps(toy))
      ...     Image.new("RGB", (178, 218), "red").save(folder + "/000001.jpg")
      ...     data = fs.data.celeba(folder + "/toy.json", images=folder)
      >>> data.train
      ClientData(1 clients with 1 to 1 of 1 examples, x: uint8[84, 84, 3], y: int32[], 21.2 kB)
    """
    checks.positive_int("image_size", image_size)
    path = present(path, _origin("celeba"))
    folder = path / "raw" / "img_align_celeba" if images is None else Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder, expected the one with the images. Give images=. {where_from(_origin('celeba'))}"
        )

    def convert(user: str, name: str, values: Any) -> np.ndarray:
        if name == "y":
            return _labels(user, values)
        found = np.zeros((len(as_list(user, name, values)), image_size, image_size, 3), np.uint8)
        for row, file in enumerate(values):
            try:
                found[row] = _image(folder, file, image_size)
            except ValueError as error:
                raise ValueError(f"user {user!r}: x[{row}] is {file!r}: {error}") from error
        return found

    return _two_classes(read_users(path, test, test_fraction, convert), test_fraction, seed)


def _two_classes(
    users: Users, test_fraction: float | None, seed: int, notes: tuple[str, ...] = ()
) -> Federated:
    train, test = join_users(users)
    if test_fraction is not None:
        train, test = split(train, test_fraction, seed)
    return Federated(train, test, name=users.name, classes=2, notes=notes)


def _labels(user: str, values: Any) -> np.ndarray:
    labels = numbers(user, "y", values)
    wrong = labels[(labels != 0) & (labels != 1)]
    if labels.ndim != 1 or wrong.size:
        found = wrong.flat[0] if wrong.size else f"lists of shape {list(labels.shape)}"
        raise ValueError(f"user {user!r}: y holds {found}, expected labels 0 and 1.")
    return labels


def _tweets(user: str, name: str, values: Any) -> Any:
    if name == "y":
        return _labels(user, values)
    texts = []
    for row, fields in enumerate(as_list(user, name, values)):
        if not isinstance(fields, list) or len(fields) != _TEXT + 1 or not isinstance(fields[_TEXT], str):
            found = f"a list of {len(fields)}" if isinstance(fields, list) else type(fields).__name__
            raise ValueError(
                f"user {user!r}: x[{row}] is {found}, expected the fields id, date, query, user and text, the last as text."
            )
        texts.append(fields[_TEXT])
    return texts


def _image(folder: Path, name: Any, size: int) -> np.ndarray:
    """An image as ``uint8[size, size, 3]``."""
    from PIL import Image  # slow to import

    # A name with a folder in it would read files that the caller did not name.
    if (
        not isinstance(name, str)
        or name in ("", ".", "..")
        or Path(name).name != name
        or "\\" in name
        or "\0" in name
    ):
        raise ValueError("expected the name of a file, such as '000001.jpg'.")
    file = folder / name
    if not file.is_file():
        raise ValueError(f"{folder} holds no such file.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd metadata, which is not read
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=("JPEG", "PNG")) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise ValueError(
                        f"{image.width} x {image.height} pixels, expected at most {_MOST_PIXELS}"
                    )
                resized = image.convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    except (OSError, SyntaxError, ValueError, EOFError, Warning, Image.DecompressionBombError) as error:
        raise ValueError(f"it is no readable image, JPEG or PNG: {error}") from error
    return np.asarray(resized)
