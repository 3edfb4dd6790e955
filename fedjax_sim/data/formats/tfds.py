"""Sets of TensorFlow Datasets that are prepared on disk, read without TensorFlow."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import errors_name
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.decoders import Decode, Decoder
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.formats import _placed, _tables
from fedjax_sim.data.formats._tables import Columns
from fedjax_sim.data.formats._tfds_features import Feature, examples_of, feature_called, features_of
from fedjax_sim.data.formats._tfds_files import find_folder, open_builder

_LABEL = "y"

_PIECE = 1024  # examples that a function gets at a time

Rows = tuple[dict[str, np.ndarray], list[int | str]]
"""Columns ``[rows, ...]``, and the owner of each row."""


def tfds(
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    client: str | None = None,
    columns: Columns | None = None,
    train: str = "train",
    test: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    decode: Decode | None = None,
    store: str | Path | None = None,
) -> Federated:
    """Reads a set that TensorFlow Datasets has prepared, from ArrayRecord or TFRecord files. Needs no TensorFlow.

    Nothing downloads, and neither code of the set nor of the library's catalogue runs: features come from the files that
    ``download_and_prepare`` wrote. Columns keep the type that the feature declares; one of class labels becomes int32, as does an
    integer column ``y``, which also gives ``classes``. Every record's checksum is compared, and every file's number of records with
    ``dataset_info.json``.

    Args:
      dataset: ``"mnist"``, ``"emnist/byclass"``, ``"emnist/byclass:3.1.0"``; without a version the newest that is there.
      data_dir: where sets are prepared; by default the environment's ``TFDS_DATA_DIR``, else ``~/tensorflow_datasets``.
      client: the feature that says who owns an example, integers or text. Without it one client holds all, until
        ``fedjax_sim.data.repartition`` deals them out.
      columns: what to keep: features, or new name to feature; what lies in a nested feature is ``"outer/inner"``. By default
        the set's supervised pair as ``x`` and ``y``, else ``image`` and ``label`` as such.
      train: the split to train on; slices and sums as the library writes them, ``"train[:10%]"``, ``"train+test"``.
      test: the split to test on; by default ``"test"`` where the set has one. Both parts have the same clients if ``client`` is
        given. Without a test split the test part is empty.
      test_fraction: divides the examples of ``train`` inside each client instead, by ``fedjax_sim.data.split``.
      seed: for ``test_fraction``.
      decode: by feature, a function for text, and for images of many sizes: it gets a list of values, text as ``str``, and returns
        an array with a row for each, or several by new name; see ``fedjax_sim.data.decoders``.
      store: a folder to write the set to, as ``fedjax_sim.data.write`` does, and to read it from, memory-mapped: for sets larger
        than memory. Records are read twice, some at a time. A folder that was made of the same files and settings is used as it is.

    Raises:
      FileNotFoundError: the set is not prepared there, or a file is missing; says what to do.
      ValueError: a file is damaged, a feature is missing, text or of many shapes, a client has no name; names the file. Also for
        options that exclude each other.

    Source: TensorFlow Datasets (https://www.tensorflow.org/datasets).

    Example:
      >>> import tempfile, fedjax_sim as fs
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     fs.data.tfds("mnist", data_dir=folder)
      Traceback (most recent call last):
      FileNotFoundError: ... holds no prepared data set 'mnist' ...
    """
    if test is not None and test_fraction is not None:
        raise ValueError(
            f"test is {test!r} and test_fraction is {test_fraction}, expected one of them at most."
        )
    folder = find_folder(dataset, data_dir)
    builder = open_builder(folder)
    with errors_name(folder):
        features = features_of(builder)
        chosen = _chosen(features, builder.info.supervised_keys, columns)
        functions = _tables.functions_by_new_name(decode, chosen)
        _check_decoded(features, chosen, functions)
        if client is not None:
            feature_called(features, client)
    test = "test" if test is None and test_fraction is None and "test" in builder.info.splits else test
    splits = [train] if test is None else [train, test]
    read = {name for part in splits for name in re.findall(r"(?:^|\+)([\w.-]+)", part)}
    others = [name for name in builder.info.splits if name not in read]
    notes = (f"Splits that were not read: {', '.join(others)}.",) if others else ()
    name = dataset.partition(":")[0].replace("/", "_")
    if store is not None:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        made_of = _placed.made_of(
            files,
            {
                "splits": splits,
                "columns": chosen,
                "client": client,
                "test_fraction": test_fraction,
                "seed": seed,
                "decode": decode,
            },
        )
        before = _placed.made_before(store, made_of)
        if before is not None:
            return before
        owned = _owned(builder, folder, splits, features, chosen, client)
        if test_fraction is not None:
            owned = owned.split(test_fraction, seed)
        found = _placed.Classes()
        pieces = _placeable(builder, folder, splits, features, chosen, functions, found)
        return _placed.place(
            store,
            owned,
            pieces,
            source=folder,
            name=name,
            classes=lambda: found.count,
            notes=notes,
            made_of=made_of,
        )
    parts = [
        _whole(folder, part, _pieces(builder, folder, part, features, chosen, client, functions))
        for part in splits
    ]
    with errors_name(folder):
        classes = _make_labels([part for part, _ in parts], features, chosen, functions)
        owners = [as_ids(f"feature {client!r}", owner) for _, owner in parts]
        ids = np.unique(np.concatenate(owners))
        data = [
            ClientData.from_arrays(part, owner, ids=ids)
            for (part, _), owner in zip(parts, owners, strict=True)
        ]
        if test is None:
            data.append(data[0].filter(np.zeros(data[0].num_examples, bool)))
    if test_fraction is not None:
        data = split(data[0], test_fraction, seed)
    return Federated(*data, name=name, classes=classes, notes=notes)


def _chosen(features: Mapping[str, Feature], supervised: Any, columns: Columns | None) -> dict[str, str]:
    """Column to feature."""
    if columns is None:
        for pair in (supervised, ("image", "label")):
            if isinstance(pair, tuple) and len(pair) == 2 and all(one in features for one in pair):
                return dict(zip(("x", _LABEL), pair, strict=True))
        raise ValueError(
            f"the set names no pair of input and label, its features are {', '.join(features)}. Say which to keep: "
            "columns={'x': ..., 'y': ...}."
        )
    chosen = _tables.renamed(columns)
    if not chosen:
        raise ValueError("columns is empty, expected at least one feature.")
    for name in chosen.values():
        feature_called(features, name)
    return chosen


def _check_decoded(
    features: Mapping[str, Feature], chosen: Mapping[str, str], functions: Mapping[str, Decoder]
) -> None:
    for column, name in chosen.items():
        if features[name].dtype.kind not in "biufc" and column not in functions:
            raise ValueError(
                f"feature {name!r} is text, and no device holds text. Give decode={{{name!r}: function}}, which makes an array of "
                "a list of texts, a row for each (fs.data.decoders); or leave the feature out by columns=."
            )


def _pieces(
    builder: Any,
    folder: Path,
    part: str,
    features: Mapping[str, Feature],
    chosen: Mapping[str, str],
    client: str | None,
    functions: Mapping[str, Decoder],
) -> Iterator[Rows]:
    """Columns of a split and the owner of each example, some examples at a time."""
    wanted = {*chosen.values(), *([] if client is None else [client])}
    examples = examples_of(builder, folder, part, wanted)
    shapes: dict[str, tuple[int, ...]] = {}
    while piece := list(itertools.islice(examples, _PIECE)):
        found: dict[str, Any] = {}
        for column, name in chosen.items():
            if column in functions:
                found[column] = [
                    _text(path, place, name, example[name]) if features[name].text else example[name]
                    for path, place, example in piece
                ]
                continue
            for path, place, example in piece:
                shape = np.shape(example[name])
                if shape != shapes.setdefault(column, shape):
                    raise ValueError(
                        f"{path}: record {place} has {name!r} of shape {list(shape)}, the first of split {part!r} has "
                        f"{list(shapes[column])}; expected one shape. Give decode={{{name!r}: function}}, which resizes, pads or "
                        "cuts."
                    )
            found[column] = np.stack([example[name] for _, _, example in piece])
        with errors_name(folder):
            columns = _tables.decoded(found, functions)
            _tables.check_rows(columns, len(piece))
        owners = [
            0 if client is None else _owner(path, place, client, example[client])
            for path, place, example in piece
        ]
        yield columns, owners


def _whole(folder: Path, part: str, pieces: Iterable[Rows]) -> Rows:
    """A split of one piece."""
    found = list(pieces)
    if not found:
        raise ValueError(_no_example(folder, part))
    names = [f"{folder}: piece {place} of split {part!r}" for place in range(len(found))]
    columns = _tables.joined([columns for columns, _ in found], names)
    return columns, [owner for _, owners in found for owner in owners]


def _no_example(folder: Path, part: str) -> str:
    return f"{folder}: split {part!r} has no example, expected at least one."


def _owned(
    builder: Any,
    folder: Path,
    splits: list[str],
    features: Mapping[str, Feature],
    chosen: Mapping[str, str],
    client: str | None,
) -> _placed.Owned:
    """Who has which example of the splits, one after the other: the training part, then the test part."""
    owners, sizes = _placed.Codes(f"feature {client!r}"), []
    # Without a client, some column is read to count the examples, whatever is in it.
    few = dict(itertools.islice(chosen.items(), 0 if client is not None else 1))
    any_: dict[str, Decoder] = {name: lambda values: np.zeros(len(values)) for name in few}
    for part in splits:
        sizes.append(0)
        for _, owner in _pieces(builder, folder, part, features, few, client, any_):
            owners.add(as_ids(f"feature {client!r}", owner))
            sizes[-1] += len(owner)
        if not sizes[-1]:
            raise ValueError(_no_example(folder, part))
    parts = np.asarray([_placed.TRAIN, _placed.TEST][: len(splits)], np.int8)
    return _placed.owned_of(owners, np.repeat(parts, sizes))


def _placeable(
    builder: Any,
    folder: Path,
    splits: list[str],
    features: Mapping[str, Feature],
    chosen: Mapping[str, str],
    functions: Mapping[str, Decoder],
    found: _placed.Classes,
) -> Iterator[dict[str, np.ndarray]]:
    """Columns of the splits, some examples at a time."""
    for part in splits:
        for columns, _ in _pieces(builder, folder, part, features, chosen, None, functions):
            with errors_name(folder):
                found.see(_make_labels([columns], features, chosen, functions))
            yield columns


def _text(path: Path, place: int, name: str, value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: record {place} has {name!r} that is no text in UTF-8: {error}. Read it another way, or leave it out."
        ) from error


def _owner(path: Path, place: int, client: str, value: Any) -> int | str:
    if isinstance(value, bytes):
        owner = _text(path, place, client, value)
    elif np.size(value) == 1:
        owner = np.asarray(value).item()
    else:
        raise ValueError(f"{path}: record {place} has {np.size(value)} values of {client!r}, expected one.")
    if owner == "":
        raise ValueError(f"{path}: record {place} has an empty {client!r}, expected the id of a client.")
    return owner


def _make_labels(
    parts: list[dict[str, np.ndarray]],
    features: Mapping[str, Feature],
    chosen: Mapping[str, str],
    functions: Mapping[str, Decoder],
) -> int | None:
    """Makes columns of class labels int32, and that of the labels; returns the number of classes."""
    classes = None
    for column in list(parts[0]):
        name = chosen.get(column)
        declared = None if name is None or column in functions else features[name].classes
        if declared is None and column != _LABEL:
            continue
        found = [_tables.make_labels(part, column) for part in parts]
        if declared is not None:
            wrong = [part[column][(part[column] < 0) | (part[column] >= declared)] for part in parts]
            for values in wrong:
                if values.size:
                    raise ValueError(
                        f"feature {name!r} holds {values[0]}, expected 0 to {declared - 1}. Where a split's labels are "
                        "withheld (-1), read another split."
                    )
        if column == _LABEL:
            known = [one for one in found if one is not None]
            classes = declared or (max(known) if len(known) == len(found) else None)
    return classes
