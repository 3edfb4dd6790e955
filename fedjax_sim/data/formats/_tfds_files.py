"""Prepared sets of TensorFlow Datasets on disk: where they are, what they declare, and their raw records."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fedjax_sim.data._files import check_is_file, errors_name
from fedjax_sim.data.formats._tfrecord import read_tfrecord

_INFO, _FEATURES = "dataset_info.json", "features.json"
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"\w[\w.+-]*(/\w[\w.+-]*)*(:\d+\.\d+\.\d+)?")
_LIBRARY = "tensorflow_datasets.core.features."


def find_folder(dataset: str, data_dir: str | Path | None) -> Path:
    """The folder of a prepared set's version.

    Raises:
      FileNotFoundError: it is not there; says how it gets there.
      ValueError: the name is none, or there are several configurations.
    """
    if not _NAME.fullmatch(dataset):
        raise ValueError(
            f"dataset is {dataset!r}, expected a name such as 'emnist/byclass' or 'mnist:3.0.1'."
        )
    if data_dir is None:
        data_dir = os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")
    root = Path(data_dir).expanduser()
    name, _, wanted = dataset.partition(":")
    versions = _versions(root / name, wanted)
    if not versions:
        found = sorted(path for path in (root / name).glob("*") if path.is_dir() and _versions(path, wanted))
        if len(found) > 1:
            configurations = ", ".join(f"{name}/{path.name}" for path in found)
            raise ValueError(
                f"dataset is {dataset!r}, of which {root} has {configurations}; name one of them."
            )
        versions = _versions(found[0], wanted) if found else []
    if not versions:
        raise FileNotFoundError(
            f"{root} holds no prepared data set {dataset!r} (no {root / name}/.../{_INFO}). Nothing downloads by itself. "
            "Prepare it where there is a network: import tensorflow_datasets as tfds; "
            f"tfds.builder({dataset!r}, data_dir='DATA_DIR', file_format='array_record').download_and_prepare(); "
            "then give data_dir=, or set TFDS_DATA_DIR."
        )
    return versions[-1]


def _versions(folder: Path, wanted: str) -> list[Path]:
    """Folders of prepared versions, oldest first."""
    found = [path for path in folder.glob("*") if _VERSION.fullmatch(path.name) and (path / _INFO).is_file()]
    found.sort(key=lambda path: tuple(map(int, path.name.split("."))))
    return [path for path in found if wanted in ("", path.name)]


def open_builder(folder: Path) -> Any:
    """TensorFlow Datasets' read-only builder of the folder; no code of the set is imported.

    Raises:
      FileNotFoundError: ``features.json`` is missing.
      ValueError: the folder's metadata are damaged, or name somebody else's classes.
    """
    check_is_file(folder / _FEATURES)
    with errors_name(folder / _FEATURES):
        _check_classes(_parsed(folder / _FEATURES))
    import tensorflow_datasets as library  # slow to import

    try:
        return library.builder_from_directory(str(folder))
    # Its parsers raise what comes: of protobuf, assertions, keys, attributes.
    except Exception as error:
        raise ValueError(
            f"{folder}: TensorFlow Datasets cannot restore the set from {_INFO} and {_FEATURES}: {error}"
        ) from error


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the file is no JSON, or damaged: {error}") from error


def _check_classes(content: Any) -> None:
    """Refuses classes of features that are not the library's own: it would import the modules that the file names."""
    waiting = [("", content)]
    while waiting:
        key, value = waiting.pop()
        if isinstance(value, dict):
            waiting += value.items()
        elif isinstance(value, list):
            waiting += [("", item) for item in value]
        elif not isinstance(value, str):
            continue
        elif key in ("pythonClassName", "python_class_name", "type"):
            if not value.startswith(_LIBRARY):
                raise ValueError(
                    f"a feature is of the class {value[:60]!r}, expected one of TensorFlow Datasets' own ({_LIBRARY}...): "
                    "others are not read, because their modules would be imported and run."
                )
        elif value.lstrip()[:1] in ("{", "["):  # older versions keep JSON inside of text
            try:
                waiting.append(("", json.loads(value)))
            except (ValueError, RecursionError):
                continue


class Shard(NamedTuple):
    """A file, and which of its records a split reads.

    Attributes:
      path: of the file.
      start, stop: of the records.
      total: records that the metadata say the file holds.
    """

    path: Path
    start: int
    stop: int
    total: int


def _shards_of(builder: Any, folder: Path, split: str) -> list[Shard]:
    """The files of a split, in its order.

    Raises:
      ValueError: there is no such split, or it names a file elsewhere.
    """
    try:
        instructions = builder.info.splits[split].file_instructions
    except Exception as error:  # a KeyError, a ValueError, an AssertionError
        known = ", ".join(map(repr, builder.info.splits)) or "none"
        raise ValueError(f"{folder}: split {split!r} cannot be read, the set has {known}: {error}") from error
    shards = []
    for one in instructions:
        path = Path(one.filename)
        if path.parent != folder:
            raise ValueError(f"{folder}: split {split!r} names {path}, expected files of the folder itself.")
        check_is_file(path)
        shards.append(Shard(path, one.skip, one.skip + one.take, one.examples_in_shard))
    return shards


def records_of(builder: Any, folder: Path, split: str) -> Iterator[tuple[Path, int, bytes]]:
    """File, place in it and bytes of each record of a split.

    Raises:
      ValueError: there is no such split, a file is damaged, or holds another number of records than the metadata say.
    """
    kind = builder.info.file_format.value
    if kind not in _READERS:
        raise ValueError(
            f"{builder.data_dir}: the set's files are of the format {kind!r}, expected one of {', '.join(_READERS)}. Prepare it "
            "again with file_format='array_record'."
        )
    for shard in _shards_of(builder, folder, split):
        with errors_name(shard.path):
            records = _READERS[kind](shard)
        for place, record in enumerate(records, start=shard.start):
            yield shard.path, place, record


def _check_total(found: int, shard: Shard) -> None:
    if found != shard.total:
        raise ValueError(
            f"the file holds {found} records, {_INFO} says {shard.total}; expected as many. Prepare the set again."
        )


def _read_tfrecord(shard: Shard) -> list[bytes]:
    records = read_tfrecord(shard.path)
    _check_total(len(records), shard)
    return records[shard.start : shard.stop]


def _read_array_record(shard: Shard) -> list[bytes]:
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise ModuleNotFoundError(
            f"{shard.path} needs the package array_record, which is there for Linux alone. Prepare the set with "
            "file_format='tfrecord'."
        ) from error

    try:
        reader = ArrayRecordReader(str(shard.path), options="readahead_buffer_size:0")
        try:
            _check_total(reader.num_records(), shard)
            return list(reader.read(list(range(shard.start, shard.stop))))
        finally:
            reader.close()
    except RuntimeError as error:  # whatever is wrong with the file; it compares hashes of all
        raise ValueError(f"this is no ArrayRecord file, or it is damaged: {error}") from error


_READERS = {"array_record": _read_array_record, "tfrecord": _read_tfrecord}
