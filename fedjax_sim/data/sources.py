"""A data set by its name, and the source for flat ``.npz`` files. Nothing downloads."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._columns import column_of, make_labels
from fedjax_sim.data._files import Npz, errors_name
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.federated import split as split_examples  # `npz` has an argument called split
from fedjax_sim.data.glyphs import glyphs
from fedjax_sim.data.image_sets import digits, images, mnist_by_writer
from fedjax_sim.data.leaf import leaf
from fedjax_sim.data.presets.cifar import cifar10, cifar100
from fedjax_sim.data.presets.emnist import emnist
from fedjax_sim.data.presets.flamby import heart_disease, tcga_brca
from fedjax_sim.data.presets.leaf_sets import celeba, sent140
from fedjax_sim.data.presets.school import school
from fedjax_sim.data.presets.shakespeare import shakespeare
from fedjax_sim.data.stored import stored
from fedjax_sim.data.synthetic_sets import synthetic
from fedjax_sim.data.tfds import tfds


def npz(
    path: str | Path,
    *,
    client: str = "client",
    client_names: str | None = None,
    split: str = "split",
    columns: Iterable[str] | Mapping[str, str] | None = None,
    label: str = "y",
    channel_axis: str | Iterable[str] = (),
    test_fraction: float | None = None,
    seed: int = 0,
) -> Federated:
    """Reads a flat ``.npz`` file: arrays ``[examples, ...]``, one of which says who owns each row.

    Training and test part have the same clients in the same order; a client may be empty in either. Arrays keep
    their storage type, except an integer label column, which becomes int32; it also gives ``classes`` (largest label
    plus one) unless there are negative labels.

    Args:
      path: the file.
      client: array ``[examples]``: ids, or, where the file has ``client_names``, positions in it.
      client_names: array ``[clients]`` of all ids, in the order wanted. By default ``<client>_name`` if the file has
        one. Without names, the ids are those that occur, sorted.
      split: array ``[examples]``, 0 for training and 1 for test. A file without ``"split"`` is all training data, its
        test part is empty.
      columns: what to keep: names, or new name to name in the file. By default every array of numbers with as many
        rows as ``client``, other than ``client`` and ``split``; arrays of other lengths and text are left out.
      label: the label column (its new name), if there is one.
      channel_axis: columns ``[examples, height, width]`` that get a trailing axis of length 1, as convolutions expect.
      test_fraction: divides a file without split inside each client, by ``fedjax_sim.data.split``.
      seed: for ``test_fraction``.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: the file is damaged, holds Python objects, lacks an array, or arrays do not fit together.

    Example:
      >>> import tempfile, numpy as np, fedjax_sim as fs
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(folder + "/toy.npz", x=np.zeros((3, 2)), y=[0, 1, 1], split=[0, 1, 0],
      ...              client=[1, 1, 0], client_name=["ann", "bo"])
      ...     data = fs.data.npz(folder + "/toy.npz")
      >>> data.train.ids, data.train.sizes, data.test.sizes, data.classes
      (array(['ann', 'bo'], dtype='<U3'), array([1, 1]), array([0, 1]), 2)
    """
    path = Path(path)
    file = Npz(path)
    has_split = split in file.names or split != "split"  # a name that the caller chose must be there
    if has_split and test_fraction is not None:
        raise ValueError(
            f"{path} has a split of its own ({split!r}), expected no test_fraction. Leave it out."
        )
    if client_names is None and f"{client}_name" in file.names:
        client_names = f"{client}_name"

    with errors_name(path):
        owner, ids = _owners(file, client, client_names)
        kept = _chosen(file, columns, len(owner), {client, client_names, split})
        classes = make_labels(kept, label)
        for name in [channel_axis] if isinstance(channel_axis, str) else channel_axis:
            _add_channel_axis(kept, name)
        is_test = _is_test(file.read(split), split, len(owner)) if has_split else np.zeros(len(owner), bool)
        for name, array in kept.items():
            if array.shape[:1] != owner.shape:
                raise ValueError(
                    f"column {name!r} has shape {list(array.shape)}, expected {len(owner)} rows, as {client!r}."
                )
        train, test = (
            ClientData.from_arrays({name: array[rows] for name, array in kept.items()}, owner[rows], ids=ids)
            for rows in (~is_test, is_test)
        )
    if test_fraction is not None:
        train, test = split_examples(train, test_fraction, seed)
    return Federated(train, test, name=path.stem, classes=classes)


SOURCES: dict[str, Callable[..., Federated]] = {
    "digits": digits,
    "glyphs": glyphs,
    "synthetic": synthetic,
    "npz": npz,
    "mnist_by_writer": mnist_by_writer,
    "leaf": leaf,
    "images": images,
    "stored": stored,
    "heart_disease": heart_disease,
    "tcga_brca": tcga_brca,
    "school": school,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "emnist": emnist,
    "tfds": tfds,
    "shakespeare": shakespeare,
    "sent140": sent140,
    "celeba": celeba,
}
"""Every source by its name."""


def load(name: str, **options: Any) -> Federated:
    """A data set by name, such as ``"digits"`` or ``"leaf:PATH"``.

    Args:
      name: ``digits``, ``glyphs`` or ``synthetic``; or another source, a colon, and the file, folder or set that it reads. What
        sources there are stands in ``SOURCES`` and in the error for an unknown one.
      **options: arguments of the function of that name in ``fedjax_sim.data``.

    Raises:
      TypeError: the source does not take such an option.
      ValueError: there is no such source, a path is missing or there is one too many; also as the source itself.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.load("digits", clients=5, seed=1).train.num_clients
      5
    """
    source, colon, path = name.partition(":")
    if source not in SOURCES:
        known = ", ".join(_usage(known) for known in SOURCES)
        close = difflib.get_close_matches(source, SOURCES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no data source is called {source!r}, expected one of {known}.{hint}")
    function, path_name, accepted = SOURCES[source], *_arguments(source)
    for option in options:
        if option not in accepted:
            raise TypeError(
                f"data source {source!r} takes no option {option!r}, it takes {', '.join(accepted) or 'none'}."
            )
    if (path_name is None and colon) or (path_name is not None and not path):
        raise ValueError(f"data source is {name!r}, expected {_usage(source)!r}.")
    return function(path, **options) if path_name else function(**options)


def _arguments(source: str) -> tuple[str | None, list[str]]:
    """The name of the path that a source reads, if it reads one, and its options."""
    parameters = inspect.signature(SOURCES[source]).parameters.values()
    path = next((p.name for p in parameters if p.default is p.empty), None)
    return path, [p.name for p in parameters if p.name != path]


def _usage(source: str) -> str:
    path, _ = _arguments(source)
    return f"{source}:{path.upper()}" if path else source


def _owners(file: Npz, client: str, client_names: str | None) -> tuple[np.ndarray, np.ndarray]:
    """The id that owns each row, and all ids."""
    owner = as_ids(client, file.read(client))
    if client_names is None:
        return owner, np.unique(owner)
    ids = as_ids(client_names, file.read(client_names))
    if owner.dtype.kind == "U":
        return owner, ids
    outside = owner[(owner < 0) | (owner >= len(ids))]
    if outside.size:
        raise ValueError(
            f"array {client!r} holds {outside[0]}, expected 0 to {len(ids) - 1}: positions in {client_names!r}."
        )
    return ids[owner], ids


def _chosen(
    file: Npz,
    columns: Iterable[str] | Mapping[str, str] | None,
    num_examples: int,
    not_columns: set[str | None],
) -> dict[str, np.ndarray]:
    if columns is None:
        arrays = {name: file.read(name) for name in file.names if name not in not_columns}
        return {
            name: array
            for name, array in arrays.items()
            if array.shape[:1] == (num_examples,) and array.dtype.kind not in "SU"
        }
    if not isinstance(columns, Mapping):
        names = [columns] if isinstance(columns, str) else list(columns)
        columns = dict(zip(names, names, strict=True))
    return {new: file.read(name) for new, name in columns.items()}


def _add_channel_axis(columns: dict[str, np.ndarray], name: str) -> None:
    images = column_of(columns, name, "channel_axis")
    if images.ndim != 3:
        raise ValueError(
            f"column {name!r} has shape {list(images.shape)}, expected [examples, height, width]."
        )
    columns[name] = images[..., None]


def _is_test(array: np.ndarray, name: str, num_examples: int) -> np.ndarray:
    if array.shape != (num_examples,) or not np.isin(array, (0, 1)).all():
        raise ValueError(
            f"array {name!r} is {array.dtype}{list(array.shape)} with values {np.unique(array)[:5].tolist()}, "
            f"expected [{num_examples}] of 0 (training) and 1 (test)."
        )
    return array.astype(bool)
