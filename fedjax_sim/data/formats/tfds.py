"""Sets of TensorFlow Datasets that are prepared on disk, read without TensorFlow."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.data._files import errors_name
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.formats._tables import make_labels
from fedjax_sim.data.formats._tfds_features import Feature, examples_of, feature_called, features_of
from fedjax_sim.data.formats._tfds_files import find_folder, open_builder

_LABEL = "y"

Decoders = Mapping[str, Callable[[Any], Any]]


def tfds(
    dataset: str,
    *,
    data_dir: str | Path | None = None,
    client: str | None = None,
    columns: Iterable[str] | Mapping[str, str] | None = None,
    train: str = "train",
    test: str | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    decode: Decoders | None = None,
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
      decode: column to a function of one example's value, which returns numbers of one shape: for text, and for images of many
        sizes. Text is given as ``str``.

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
        _check_decoded(features, chosen, decode or {})
        if client is not None:
            feature_called(features, client)
    test = "test" if test is None and test_fraction is None and "test" in builder.info.splits else test
    splits = [train] if test is None else [train, test]
    parts = [_read(builder, folder, part, features, chosen, client, decode or {}) for part in splits]
    with errors_name(folder):
        classes = _make_labels([part for part, _ in parts], features, chosen, decode or {})
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
    read = {name for part in splits for name in re.findall(r"(?:^|\+)([\w.-]+)", part)}
    others = [name for name in builder.info.splits if name not in read]
    notes = (f"Splits that were not read: {', '.join(others)}.",) if others else ()
    name = dataset.partition(":")[0].replace("/", "_")
    return Federated(*data, name=name, classes=classes, notes=notes)


def _chosen(
    features: Mapping[str, Feature], supervised: Any, columns: Iterable[str] | Mapping[str, str] | None
) -> dict[str, str]:
    """Column to feature."""
    if columns is None:
        for pair in (supervised, ("image", "label")):
            if isinstance(pair, tuple) and len(pair) == 2 and all(one in features for one in pair):
                return dict(zip(("x", _LABEL), pair, strict=True))
        raise ValueError(
            f"the set names no pair of input and label, its features are {', '.join(features)}. Say which to keep: "
            "columns={'x': ..., 'y': ...}."
        )
    if not isinstance(columns, Mapping):
        names = [columns] if isinstance(columns, str) else list(columns)
        columns = dict(zip(names, names, strict=True))
    if not columns:
        raise ValueError("columns is empty, expected at least one feature.")
    for name in columns.values():
        feature_called(features, name)
    return dict(columns)


def _check_decoded(features: Mapping[str, Feature], chosen: Mapping[str, str], decode: Decoders) -> None:
    for column in decode:
        if column not in chosen:
            raise ValueError(f"decode names {column!r}, expected one of the columns {', '.join(chosen)}.")
    for column, name in chosen.items():
        if features[name].dtype.kind not in "biufc" and column not in decode:
            raise ValueError(
                f"feature {name!r} is text, and no device holds text. Give decode={{{column!r}: function}}, which makes numbers "
                "of one example's text, as many for each; or leave the feature out by columns=."
            )


def _read(
    builder: Any,
    folder: Path,
    part: str,
    features: Mapping[str, Feature],
    chosen: Mapping[str, str],
    client: str | None,
    decode: Decoders,
) -> tuple[dict[str, np.ndarray], list[Any]]:
    """Columns of a split, and the owner of each example."""
    wanted = {*chosen.values(), *([] if client is None else [client])}
    values: dict[str, list[np.ndarray]] = {column: [] for column in chosen}
    owners: list[Any] = []
    for path, place, example in examples_of(builder, folder, part, wanted):
        for column, name in chosen.items():
            value = example[name]
            if column in decode:
                value = decode[column](_text(path, place, name, value) if features[name].text else value)
            found = np.asarray(value)
            if values[column] and found.shape != values[column][0].shape:
                raise ValueError(
                    f"{path}: record {place} has {name!r} of shape {list(found.shape)}, the first of split {part!r} has "
                    f"{list(values[column][0].shape)}; expected one shape. Give decode={{{column!r}: function}}, which resizes, pads "
                    "or cuts."
                )
            values[column].append(found)
        owners.append(0 if client is None else _owner(path, place, client, example[client]))
    if not owners:
        raise ValueError(f"{folder}: split {part!r} has no example, expected at least one.")
    return {column: np.stack(rows) for column, rows in values.items()}, owners


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
    decode: Decoders,
) -> int | None:
    """Makes columns of class labels int32, and that of the labels; returns the number of classes."""
    classes = None
    for column, name in chosen.items():
        declared = None if column in decode else features[name].classes
        if declared is None and column != _LABEL:
            continue
        found = [make_labels(part, column) for part in parts]
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
