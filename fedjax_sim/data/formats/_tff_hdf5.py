"""TensorFlow Federated's HDF5 files: a group per client, an array per field. Links that lead elsewhere are refused."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fedjax_sim.data._files import errors_name
from fedjax_sim.data.formats._tables import text_ids
from fedjax_sim.data.formats._tff_part import Part, Values, text

if TYPE_CHECKING:
    import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"

_MOST_COMPRESSED = 1100  # gzip, the filter that HDF5 always has, makes at most 1032 bytes of one


@contextlib.contextmanager
def _errors(path: Path) -> Iterator[None]:
    with errors_name(path):
        try:
            yield
        except (OSError, RuntimeError, KeyError, MemoryError, OverflowError, UnicodeError) as error:
            raise ValueError(
                f"the HDF5 file is damaged, was cut off, or is of another kind: {error}"
            ) from error


class Hdf5Part(Part):
    """The clients of a file, sorted by their ids.

    Args:
      place: where it is.
      path: how messages name it.

    Raises:
      ImportError: ``h5py`` is not installed.
      ValueError: the file is damaged, or holds something else than arrays by client.
    """

    def __init__(self, place: Path, path: Path):
        try:
            import h5py
        except ImportError as error:
            raise ImportError(
                f"{path} is an HDF5 file, which needs the package h5py: pip install 'fedjax-sim[hdf5]'."
            ) from error
        with _errors(path):
            self._file = h5py.File(place, "r")
            try:
                if "examples" not in self._file:
                    there = ", ".join(self._file) or "none"
                    raise ValueError(f"no group is called 'examples', the file has {there}.")
                self._examples = _child(self._file, "examples", h5py.Group)
                names = sorted(self._examples)
                sizes = [self._size(name) for name in names]
                if not names:
                    raise ValueError("the group 'examples' is empty, expected at least one client.")
                super().__init__(path, text_ids(names, "group 'examples'"), sizes)
            except BaseException:
                self.close()
                raise
        self._names = names

    def close(self) -> None:
        self._file.close()

    def client(self, position: int) -> Values:
        with _errors(self.source):
            # What is in the group was looked at when the file was opened.
            return {
                field: _values(dataset) for field, dataset in self._examples[self._names[position]].items()
            }

    def clients(self) -> Iterator[tuple[int, Values]]:
        for position in np.flatnonzero(self.sizes).tolist():
            yield position, self.client(position)

    def _size(self, name: str) -> int:
        rows = {field: dataset.shape[0] for field, dataset in self._fields(name).items()}
        if len(set(rows.values())) != 1:
            raise ValueError(
                f"client {name!r} has fields of {rows} rows, expected one row per example in every field."
            )
        return next(iter(rows.values()))

    def _fields(self, name: str) -> dict[str, h5py.Dataset]:
        import h5py

        group = _child(self._examples, name, h5py.Group)
        fields = {field: _child(group, field, h5py.Dataset) for field in group}
        for field, dataset in fields.items():
            _check(dataset, f"client {name!r}: field {field!r}")
        return fields


def _child(group: h5py.Group, name: str, kind: type) -> Any:
    """What is in a group under this name, and nowhere else."""
    import h5py

    if not isinstance(name, str):  # a name that is no UTF-8 comes as bytes, or with surrogates
        raise ValueError(f"{name!r} is no name in UTF-8, expected text.")
    link = group.id.links.get_info(name.encode())
    if link.type != h5py.h5l.TYPE_HARD:  # pyright: ignore[reportAttributeAccessIssue]
        raise ValueError(f"{name!r} is a link, which could lead to any file, expected the data themselves.")
    found = group[name]
    if not isinstance(found, kind):
        raise ValueError(f"{name!r} is a {type(found).__name__}, expected a {kind.__name__}.")
    return found


def _check(dataset: h5py.Dataset, what: str) -> None:
    """Before anything is read: the array is in this file, is one of numbers or text, and is as large as it says."""
    shape, dtype = dataset.shape, dataset.dtype
    if dataset.external or dataset.is_virtual:
        raise ValueError(f"{what} keeps its values in other files, expected them in this one.")
    if dtype.kind not in "biufS" and not _is_text(dtype):
        raise ValueError(f"{what} is of dtype {dtype}, expected numbers or text.")
    if not shape:
        raise ValueError(f"{what} is a single value, expected an array [examples, ...].")
    stored = dataset.id.get_storage_size()
    most = stored * _MOST_COMPRESSED if dataset.chunks else stored
    if math.prod(shape) * dtype.itemsize > most:
        raise ValueError(f"{what} says it has shape {list(shape)}, more than its {stored} bytes can hold.")


def _is_text(dtype: np.dtype) -> bool:
    import h5py

    return h5py.check_string_dtype(dtype) is not None


def _values(dataset: h5py.Dataset) -> np.ndarray | list:
    values = dataset[()]
    if values.dtype.kind in "OS":
        return [text(raw) if isinstance(raw, bytes) else _nested(raw) for raw in values]
    return values


def _nested(rows: np.ndarray) -> list:
    return [text(raw) if isinstance(raw, bytes) else _nested(raw) for raw in rows]
