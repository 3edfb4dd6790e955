"""Data sets of the ``datasets`` package: objects, and folders that it saved. The package itself is not needed."""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from fedjax_sim.data._files import check_is_file, errors_name
from fedjax_sim.data.decoders import Decode
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats._arrow_sets import Piece, Wanted, check_shards
from fedjax_sim.data.formats._arrow_stored import arrow_set
from fedjax_sim.data.formats._tables import Columns

if TYPE_CHECKING:
    import pyarrow as pa


class HuggingFaceDataset(Protocol):
    """What is used of a ``datasets.Dataset``."""

    @property
    def num_rows(self) -> int:
        """Number of examples."""
        ...

    @property
    def features(self) -> Any:
        """Types of the columns."""
        ...

    def with_format(self, type: str) -> Any:
        """The same data set, whose rows are Arrow tables."""
        ...


def huggingface(
    path: str | Path | HuggingFaceDataset | Mapping[str, HuggingFaceDataset],
    *,
    client: str | None = None,
    split: str | None = "split",
    train: str = "train",
    test: str | None = None,
    columns: Columns | None = None,
    label: str = "y",
    channel_axis: str | Iterable[str] = (),
    decode: Decode | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    store: str | Path | None = None,
) -> Federated:
    """Reads a folder that ``save_to_disk`` wrote, or takes a ``datasets.Dataset`` or ``DatasetDict``.

    The parts of a ``DatasetDict`` are the parts; a single ``Dataset`` is training data, or divided by a column. All
    else is as for ``fedjax_sim.data.parquet``: numbers keep their type, lists of one length become axes, images are
    decoded, ``ClassLabel`` says how many ``classes`` there are. Selections and the order of rows are those of the
    object.

    Args:
      path: a folder or an object.
      client: the column of ids, text or integers; by default ``"client"`` if there is one. Without, one client holds
        all, until ``fedjax_sim.data.repartition`` deals the examples out; ``notes`` says so.
      split: the column that divides the rows of a single ``Dataset``: 0 for training and 1 for test, or names of parts.
      train: name of the part to train on.
      test: name of the part to evaluate on; by default ``"test"``, or else ``"validation"``, if there is one. Other
        parts are left out; ``notes`` names them.
      columns: what to keep: names, or new name to name in the set. By default all but ``client`` and ``split``;
        ``image`` is then called ``x`` and ``label`` ``y``.
      label: the label column (its new name), if there is one.
      channel_axis: columns ``[examples, height, width]`` that get a trailing axis of length 1, as convolutions expect.
      decode: by name in the set, a function for a column that holds no numbers: it gets the list of all values and
        returns an array ``[examples, ...]``, or several by new name; see ``fedjax_sim.data.decoders``.
      test_fraction: divides the examples of each client, by ``fedjax_sim.data.split``, where there is no split.
      seed: for ``test_fraction``.
      store: as for ``fedjax_sim.data.parquet``; of an object, the folder must not exist yet.

    Raises:
      FileNotFoundError: there is no such folder, or a file of it is missing.
      FileExistsError: ``store`` is there already, and the set is an object.
      TypeError: an object of another kind, such as one that streams.
      ValueError: as ``fedjax_sim.data.parquet``; also for a folder that ``save_to_disk`` did not write.

    Example:
      >>> import datasets, fedjax_sim as fs
      >>> toy = datasets.Dataset.from_dict({"user": ["bo", "ann", "bo"], "x": [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]})
      >>> fs.data.huggingface(toy.select([2, 1]), client="user").train
      ClientData(2 clients with 1 to 1 of 2 examples, x: float64[2], 32 B)
    """
    if isinstance(path, str | Path):
        source: Path | str = Path(path)
        name, pieces = source.resolve().name, _saved(source)
    else:
        name, source = "huggingface", type(path).__name__
        pieces = _pieces(path)
    wanted = Wanted(client, split, train, test, columns, label, channel_axis, decode, test_fraction, seed)
    return arrow_set(name, source, pieces, wanted, store)


def _pieces(data: HuggingFaceDataset | Mapping[str, HuggingFaceDataset]) -> list[Piece]:
    parts = data if isinstance(data, Mapping) else {None: data}
    if not parts:
        raise ValueError(f"the {type(data).__name__} is empty, expected a part to train on.")
    pieces = []
    for part, dataset in parts.items():
        if not all(hasattr(dataset, name) for name in ("num_rows", "features", "with_format")):
            raise TypeError(
                f"{'the data set' if part is None else f'part {part!r}'} is {type(dataset).__name__}, expected a "
                "datasets.Dataset, a DatasetDict or a folder. What streams must be saved first."
            )
        source = type(data).__name__ if part is None else f"{type(data).__name__}[{part!r}]"
        read, batches = (functools.partial(one, dataset) for one in (_table, _batches))
        pieces.append(Piece(source, part, read, batches))
    return pieces


def _table(
    dataset: HuggingFaceDataset, names: Collection[str] | None = None, optional: Collection[str] = ()
) -> pa.Table:
    return _sliced(dataset, slice(None))


def _batches(
    dataset: HuggingFaceDataset,
    size: int,
    names: Collection[str] | None = None,
    optional: Collection[str] = (),
) -> Iterator[pa.Table]:
    yield _sliced(dataset, slice(0))
    rows = max(1, size // max(_sliced(dataset, slice(1)).nbytes, 1)) if dataset.num_rows else 1
    for start in range(0, dataset.num_rows, rows):
        yield _sliced(dataset, slice(start, start + rows))


def _sliced(dataset: HuggingFaceDataset, rows: slice) -> pa.Table:
    # Rows as the object has them: a selection is kept as indices beside the table.
    table = dataset.with_format("arrow")[rows]
    return table.replace_schema_metadata(dataset.features.arrow_schema.metadata)


def _saved(folder: Path) -> list[Piece]:
    """The tables of a folder; nothing but JSON and Arrow is read."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is no folder, expected one that save_to_disk wrote. Nothing downloads: of a name on the hub, give what "
            "datasets.load_dataset returns."
        )
    if (folder / "state.json").is_file():
        return _shards(folder, None)
    about = folder / "dataset_dict.json"
    if not about.is_file():
        raise ValueError(
            f"{folder} holds neither state.json nor dataset_dict.json, expected what save_to_disk writes. Parquet files "
            "are read by fs.data.parquet."
        )
    with errors_name(about):
        parts = _names(_parsed(about), "splits")
    return [piece for part in parts for piece in _shards(folder / part, part)]


def _shards(folder: Path, part: str | None) -> list[Piece]:
    state = folder / "state.json"
    check_is_file(state)
    with errors_name(state):
        content = _parsed(state)
        if content.get("_indices_data_files") or content.get("_indices_files"):
            raise ValueError(
                "rows are selected by indices, expected none. Save the set anew, with flatten_indices()."
            )
        entries = content.get("_data_files")
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError("_data_files is no list of objects, expected the names of the files.")
        files = [
            folder / name for name in _names({"filename": [e.get("filename") for e in entries]}, "filename")
        ]
        check_shards(files)
    return [Piece.of_file(file, part) for file in files]


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError(f"the file is no JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"the file holds a {type(content).__name__}, expected an object.")
    return content


def _names(content: Mapping[str, Any], key: str) -> list[str]:
    """Names of files or folders in this one, and nowhere else."""
    names = content.get(key)
    if not isinstance(names, list) or not names:
        raise ValueError(f"{key} is {names!r}, expected a list of names.")
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or names.count(name) > 1:
            raise ValueError(f"{key} holds {name!r}, expected names of files or folders here, each once.")
    return names
