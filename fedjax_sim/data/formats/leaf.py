"""Data sets in LEAF's JSON: who the users are, and each user's examples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._files import errors_name
from fedjax_sim.data._label_values import numbered_from_0
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.formats._leaf_file import numbers
from fedjax_sim.data.formats._leaf_folder import join_users, read_users


def leaf(
    path: str | Path,
    *,
    test: str | Path | None = None,
    shape: Sequence[int] | None = None,
    labels: Sequence[float] | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
) -> Federated:
    """Reads LEAF's JSON, plain or compressed with gzip.

    A file is ``{"users": [...], "num_samples": [...], "user_data": {user: {"x": [...], "y": [...]}}}``. A folder is
    all its ``.json`` and ``.json.gz`` files in the order of their names; other files in it are left alone. A folder
    with the folders ``train`` and ``test``, LEAF's own layout, gives both parts; anything else is training data, and
    its test part is empty unless ``test`` or ``test_fraction`` is given. Both parts have the same clients in the same
    order: users as the training files name them, then those of the test files alone. A client may be empty in either.

    Columns: ``x`` is ``float32[examples, ...]``, or ``int32`` where no file holds a number with a fraction or an
    exponent; ``y`` is ``int32[examples, ...]``, and its largest value plus one is ``classes``, unless there are
    negative labels. Whatever else a file holds is not read. Text is refused: LEAF's texts and images
    are read by ``shakespeare``, ``sent140`` and ``celeba``.

    Args:
      path: a file or a folder.
      test: a file or a folder of the test part, for a ``path`` that has none.
      shape: of one example of ``x``, to make images of LEAF's flat lists: ``(28, 28, 1)``.
      labels: values of ``y`` where they are not numbered from 0, such as ``[-1, 1]``: the first becomes 0, the next 1, and so
        on.
      test_fraction: divides the examples of each client, by ``fedjax_sim.data.split``, where there is no test part.
      seed: for ``test_fraction``.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: a file is damaged, is no JSON, lacks a key, or its parts do not fit together; it begins with the
        file's name. Also for options that exclude each other.

    Source: Caldas et al. 2018, LEAF: a benchmark for federated settings (arXiv 1812.01097).

    Example:
      >>> import json, tempfile, pathlib, fedjax_sim as fs
      >>> toy = {"users": ["ann", "bo"], "num_samples": [1, 2],
      ...        "user_data": {"ann": {"x": [[0.5, 1]], "y": [2]}, "bo": {"x": [[0, 0], [3, 4]], "y": [0, 1]}}}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = pathlib.Path(folder, "toy.json").write_text(json.dumps(toy))
      ...     data = fs.data.leaf(folder + "/toy.json", test_fraction=0.5)
      >>> data.train.ids, data.train.sizes, data.test.sizes, data.classes
      (array(['ann', 'bo'], dtype='<U3'), array([1, 1]), array([0, 1]), 3)
    """
    users = read_users(path, test, test_fraction, numbers)
    data, test_data = join_users(users)
    if shape is not None:
        data, test_data = (_reshaped(part, tuple(shape), Path(path)) for part in (data, test_data))
    if labels is not None:
        data, test_data = (_numbered(part, labels, Path(path)) for part in (data, test_data))
    if test_fraction is not None:
        data, test_data = split(data, test_fraction, seed)
    y = np.concatenate([np.asarray(part.columns["y"]).ravel() for part in (data, test_data)])
    found = int(y.max()) + 1 if y.size and y.min() >= 0 else None
    classes = found if labels is None else len(labels)
    return Federated(data, test_data, name=users.name, classes=classes)


def _numbered(data: ClientData, labels: Sequence[float], path: Path) -> ClientData:
    with errors_name(path):
        y = numbered_from_0(data.columns["y"], labels, "label column 'y'")
    return ClientData({**data.columns, "y": y}, data.offsets, data.ids)


def _reshaped(data: ClientData, shape: tuple[int, ...], path: Path) -> ClientData:
    for size in shape:
        checks.positive_int("shape", size)
    x = data.columns["x"]
    row = x.shape[1:]
    if math.prod(row) != math.prod(shape):
        raise ValueError(
            f"{path}: shape is {list(shape)}, {math.prod(shape)} numbers, but a row of x has {math.prod(row)} "
            f"(shape {list(row)}); expected as many."
        )
    return ClientData({**data.columns, "x": x.reshape(len(x), *shape)}, data.offsets, data.ids)
