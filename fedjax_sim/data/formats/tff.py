"""TensorFlow Federated's files: HDF5, and SQLite with serialised examples."""

from __future__ import annotations

import contextlib
import dataclasses
import lzma
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._files import check_is_file, errors_name
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.decoders import Decode
from fedjax_sim.data.federated import Federated, split
from fedjax_sim.data.formats import _tables, _tff_hdf5, _tff_sqlite
from fedjax_sim.data.formats._tables import Columns
from fedjax_sim.data.formats._tff_part import Layout, LazyPart, Part, in_memory

_COMPRESSED = (".lzma", ".xz")
_HDF5 = (".h5", ".hdf5")


def tff(
    path: str | Path,
    *,
    train: str = "train",
    test: str | None = None,
    columns: Columns | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    label: str = "y",
    classes: int | None = None,
    channel_axis: str | Iterable[str] = (),
    decode: Decode | None = None,
    test_fraction: float | None = None,
    seed: int = 0,
    lazy: bool = False,
) -> Federated:
    """Reads the files of TensorFlow Federated's data sets: SQLite, also compressed (``.sqlite.lzma``), and HDF5.

    An SQLite file holds all splits; its tables are ``examples`` (``split_name``, ``client_id``,
    ``serialized_example_proto``) and ``client_metadata``, whose counts must be true. An HDF5 file is one part: the group
    ``examples`` has a group for each client, with an array ``[examples, ...]`` for each field. A folder with one HDF5
    file for each part, ``..._train.h5`` and ``..._test.h5``, gives both; one alone is training data.

    Each part has the clients that the file gives it, sorted by id: often not the same in training and test. Values
    keep their type, except ``image``, uint8 where the file has int64, and an integer label, int32. TFF's own sets have
    their shapes: ``pixels`` ``[28, 28]``, ``image`` ``[32, 32, 3]`` or ``[84, 84, 3]``; a single value per example is a
    scalar, several are an axis.

    Args:
      path: a file, or a folder of HDF5 files.
      train: the split to train on: ``"all_train"``, say, of ``emnist_all.sqlite``.
      test: the split to evaluate on; by default ``"test"``, or else ``"validation"``, if there is one. Other splits of an
        SQLite file are left out; ``notes`` names them.
      columns: what to keep: names, or new name to field. By default all; ``pixels`` or ``image`` is then called ``x``
        and ``label`` ``y``.
      shapes: by field, the shape of one example, where the file holds flat lists of another set.
      label: the label column (its new name), if there is one.
      classes: how many; by default the largest label plus one unless there are negative ones, and not known if
        ``lazy``.
      channel_axis: columns ``[examples, height, width]`` that get a trailing axis of length 1, as convolutions expect.
      decode: by field, a function for text: it gets the list of one client's values (``str``; bytes where they are no
        UTF-8) and returns an array ``[examples, ...]``, or several by new name; see ``fedjax_sim.data.decoders``. It may make more or fewer examples of
        them, if all columns agree.
      test_fraction: divides the examples of each client, by ``fedjax_sim.data.split``, where there is no test part.
      seed: for ``test_fraction``.
      lazy: read clients when they are wanted (``fedjax_sim.data.ClientSource``), for sets larger than memory.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ImportError: an HDF5 file, and ``h5py`` is not installed: it comes with the extra ``hdf5``.
      ValueError: a file is damaged, was cut off or is of another kind; examples are missing; a field is text or of
        several lengths; an HDF5 file links to others. Begins with the name of the file.

    Source: TensorFlow Federated (tff.simulation.datasets), its SqlClientData and HDF5ClientData.

    Example:
      >>> import tempfile, h5py, numpy as np, fedjax_sim as fs
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with h5py.File(folder + "/toy_train.h5", "w") as file:
      ...         for client, size in (("f0", 2), ("f1", 3)):
      ...             file[f"examples/{client}/pixels"] = np.ones((size, 28, 28), np.float32)
      ...             file[f"examples/{client}/label"] = np.arange(size, dtype=np.int32)
      ...     data = fs.data.tff(folder + "/toy_train.h5")
      >>> data.train
      ClientData(2 clients with 2 to 3 of 5 examples, y: int32[], x: float32[28, 28], 15.7 kB)
    """
    path = Path(path)
    if lazy and test_fraction is not None:
        raise ValueError(f"{path}: test_fraction needs all examples in memory, expected lazy=False with it.")
    with contextlib.ExitStack() as stack:
        parts, notes = _parts(stack, path, train, test, lazy)
        if len(parts) > 1 and test_fraction is not None:
            raise ValueError(f"{path} has a test part, expected no test_fraction. Leave it out.")
        layout, like = _layout(path, parts, columns, shapes, label, channel_axis, decode)
        found = [LazyPart(part, layout, like) if lazy else in_memory(part, layout, like) for part in parts]
        if lazy:
            stack.pop_all()  # the files stay open
    if len(found) == 1:
        nothing = {name: column[:0] for name, column in like.items()}
        found.append(ClientData(nothing, np.zeros(len(found[0].ids) + 1, np.int64), found[0].ids))
    data = Federated(*found, name=_name(path), classes=classes, notes=notes)
    if test_fraction is not None:
        halves = split(data.train.in_memory, test_fraction, seed)
        data = dataclasses.replace(data, train=halves[0], test=halves[1])
    if classes is None and not lazy:
        labels = [part.columns[label] for part in found if label in part.columns]
        data = dataclasses.replace(data, classes=_tables.count_classes(*map(np.asarray, labels)))
    return data


def _name(path: Path) -> str:
    name = path.resolve().name
    for suffix in (*_COMPRESSED, *_HDF5, ".sqlite", ".db"):
        name = name.removesuffix(suffix)
    return name


def _parts(
    stack: contextlib.ExitStack, path: Path, train: str, test: str | None, lazy: bool
) -> tuple[list[Part], tuple[str, ...]]:
    """The training part, and the test part if there is one; notes on what is left out."""
    if path.is_dir():
        return _hdf5_folder(stack, path, train, test)
    check_is_file(path)
    place = path
    if path.suffix in _COMPRESSED:
        if lazy:
            raise ValueError(
                f"{path} is compressed, which cannot be read client by client. Unpack it first: xz -d -k."
            )
        place = _unpacked(path, Path(stack.enter_context(tempfile.TemporaryDirectory())))
    with place.open("rb") as stream:
        start = stream.read(len(_tff_sqlite.MAGIC))
    if start.startswith(_tff_hdf5.MAGIC):
        if test is not None:
            raise ValueError(
                f"{path} is one part, so there is no part {test!r} in it. Give the folder that holds both files."
            )
        return [_hdf5(stack, place, path)], ()
    if start != _tff_sqlite.MAGIC:
        raise ValueError(f"{path} is neither an SQLite file nor an HDF5 file, expected one of them.")
    file = stack.enter_context(contextlib.closing(_tff_sqlite.SqliteFile(place, path)))
    with errors_name(path):
        test = _tables.test_part(file.sizes, train, test)
    if lazy:
        file.check_index()
    parts: list[Part] = [file.part(name) for name in (train, test) if name is not None]
    return parts, _tables.left_out(file.sizes, (train, test))


def _hdf5(stack: contextlib.ExitStack, place: Path, source: Path) -> Part:
    return stack.enter_context(contextlib.closing(_tff_hdf5.Hdf5Part(place, source)))


def _hdf5_folder(
    stack: contextlib.ExitStack, path: Path, train: str, test: str | None
) -> tuple[list[Part], tuple[str, ...]]:
    files = {file: file.stem for file in sorted(path.iterdir()) if file.suffix in _HDF5}
    by_part: dict[str, Path] = {}
    for file, stem in files.items():
        known = [
            part
            for part in (train, test or "test", "validation")
            if re.search(rf"(^|[-_.]){re.escape(part)}$", stem)
        ]
        part = known[0] if known else stem
        if part in by_part:
            raise ValueError(
                f"{path} holds {by_part[part].name} and {file.name}, expected one file for {part!r}."
            )
        by_part[part] = file
    if not by_part:
        raise ValueError(
            f"{path} holds no .h5 or .hdf5 file, expected one for each part. For an SQLite file, give the file."
        )
    with errors_name(path):
        test = _tables.test_part(by_part, train, test)
    parts = [_hdf5(stack, by_part[name], by_part[name]) for name in (train, test) if name is not None]
    return parts, _tables.left_out(by_part, (train, test))


def _unpacked(path: Path, folder: Path) -> Path:
    place = folder / "unpacked"
    try:
        with lzma.open(path) as packed, place.open("wb") as stream:
            shutil.copyfileobj(packed, stream, 1 << 20)
    except (EOFError, lzma.LZMAError) as error:
        raise ValueError(
            f"{path}: the compressed file was cut off, or is of another kind: {error}"
        ) from error
    return place


def _layout(
    path: Path,
    parts: Sequence[Part],
    columns: Columns | None,
    shapes: Mapping[str, Sequence[int]] | None,
    label: str,
    channel_axis: str | Iterable[str],
    decode: Decode | None,
) -> tuple[Layout, dict[str, np.ndarray]]:
    """What becomes of the fields, and the columns of the first client that has examples."""
    part = next((part for part in parts if part.sizes.any()), None)
    if part is None:
        raise ValueError(f"{path}: no client has an example, expected at least one.")
    first = int(np.flatnonzero(part.sizes)[0])
    values = part.client(first)
    chosen = _tables.usual(values) if columns is None else _tables.renamed(columns)
    with errors_name(path):
        for name, shape in (shapes or {}).items():
            if name not in chosen.values():
                raise ValueError(f"shapes names {name!r}, expected one of {', '.join(chosen.values())}.")
            for size in shape:
                checks.positive_int(f"shapes[{name!r}]", size)
        layout = Layout(
            chosen,
            {name: tuple(shape) for name, shape in (shapes or {}).items()},
            _tables.functions_by_new_name(decode, chosen),
            label,
            (channel_axis,) if isinstance(channel_axis, str) else tuple(channel_axis),
        )
    return layout, layout.apply(values, part, first)
