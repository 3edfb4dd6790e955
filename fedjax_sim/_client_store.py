"""Client rows in a key-value store that tensorstore reaches: a folder of this machine, or a bucket."""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._client_folder import locked_folder
from fedjax_sim._client_layout import RowLayout
from fedjax_sim.engines._state import ClientTable

StoreSpec = str | Mapping[str, Any]
"""Of a key-value store of tensorstore's: the URL of a folder, or a specification as a dict."""

_PREFIX = "fedjax-sim-client-state-"
_FOLDER_ROWS = 1024
"""Rows of a folder in the store: threads that write files into one folder wait for one another, and a folder for each row takes as
much room again."""
_MOST_ROWS = 4096
"""Rows of a request: each costs some 2 kB, however small it is."""
_PATIENCE = 60.0
"""Seconds until a store that does not answer is given up when a table is made; when one is removed, a tenth of them."""


class ScratchError(OSError):
    """Client state that cannot be kept where it was to be: the place is missing, full, or cannot be read or written."""


class StoreTable:
    """Rows of a table outside of memory, by their place: replica times rows, plus client.

    They lie in a zarr array, ``uint8[rows / 1024, 1024, row_bytes]``, in a folder of its own, which is removed when the last leaf
    is gone, and at the end of the process. What a killed process leaves, the next one on this machine removes; in a bucket it stays.

    Rows that were never written are zero and take no space. Which were written is known in memory: others are not asked for, and one
    that has vanished is an error.

    Attributes:
      where: the folder or the store.
      layout: of the rows.

    Args:
      where: to make it: a folder of this machine, the URL of a folder, ``"gs://bucket/folder"``, ``"s3://bucket/folder"``, or the
        specification of any key-value store of tensorstore's, as a dict. A folder of this machine has to exist.
      layout: of the rows.

    Raises:
      ScratchError: there is no such place, it does not answer, or it cannot be written.
    """

    def __init__(self, where: Path | StoreSpec, layout: RowLayout):
        import tensorstore as ts  # slow to import, and accelerator images may lack it

        self.where, self.layout = where, layout
        self._used = np.zeros(math.prod(layout.lead), bool)
        # Nothing is kept in memory. A kill loses the table anyway, so that nothing waits until it is safe on the disk.
        context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False})
        with self._explained():
            if isinstance(where, Path):
                where = where.absolute().as_uri()
            spec = ts.KvStore.Spec(where if isinstance(where, str) else dict(where))
            name, lock = f"{_PREFIX}{uuid.uuid4().hex}", None
            if spec.to_json()["driver"] == "file":
                name, lock = locked_folder(Path(spec.path), _PREFIX)
            spec = spec / f"{name}/"
            weakref.finalize(self, _remove, spec, lock, os.getpid())
            # A chunk per row: several would be read and written anew with each of them. Zeros are written as anything else.
            self._rows = ts.open(
                {
                    "driver": "zarr",
                    "kvstore": spec.to_json(),
                    "metadata": {
                        "shape": [-(-len(self._used) // _FOLDER_ROWS), _FOLDER_ROWS],
                        "chunks": [1, 1],
                        "dtype": [["row", "|u1", [layout.row_bytes]]],
                        "dimension_separator": "/",
                        "compressor": None,
                        "fill_value": None,
                    },
                    "fill_missing_data_reads": False,
                    "store_data_equal_to_fill_value": True,
                },
                context=context,
                create=True,
            ).result(timeout=_PATIENCE)

    def table(self) -> ClientTable:
        """The whole table, in read-only leaves that show what is written later, too, and hold its space."""
        return self.layout.leaves(lambda *part: StoredLeaf(self, self.layout.lead, *part))

    def gather(self, places: np.ndarray) -> np.ndarray:
        """Rows, ``uint8[n, row_bytes]``.

        Raises:
          ScratchError: they cannot be read.
        """
        return self.read(places, 0, self.layout.row_bytes)

    def read(self, places: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Some bytes of rows, ``uint8[n, stop - start]``.

        Raises:
          ScratchError: they cannot be read.
        """
        raw = np.zeros((len(places), stop - start), np.uint8)
        # A leaf without elements: tensorstore would look for no bytes of another row.
        used = np.flatnonzero(self._used[places] & (start < stop))
        with self._explained():
            for part in self._pieces(used):
                raw[part] = self._at(places[part])[:, start:stop].read().result()
        return raw

    def put(self, places: np.ndarray, raw: np.ndarray) -> None:
        """Writes rows, ``uint8[n, row_bytes]``, to places that differ.

        Raises:
          ScratchError: there is no room for them.
        """
        with self._explained():
            for part in self._pieces(np.arange(len(places))):
                self._at(places[part]).write(raw[part]).result()
        self._used[places] = True

    def written(self) -> Iterator[np.ndarray]:
        """Places of the rows that were written, ascending, a piece at a time."""
        return self._pieces(np.flatnonzero(self._used))

    def _at(self, places: np.ndarray) -> Any:
        return self._rows.vindex[np.divmod(places, _FOLDER_ROWS)]

    def _pieces(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Parts of the rows; all of a part are in memory at once."""
        step = min(self.layout.piece, _MOST_ROWS)
        return (rows[start : start + step] for start in range(0, len(rows), step))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (
            ValueError,
            TypeError,
            OSError,
            RuntimeError,
            NotImplementedError,
        ) as error:  # what tensorstore raises
            told = (
                error.strerror
                if isinstance(error, OSError)
                else re.sub(r" \[[\w ]+='.*", "", str(error), flags=re.DOTALL)
            )
            raise ScratchError(
                f"client state cannot be kept in {self.where}: {told or f'no answer in {_PATIENCE:g} s'}. Name a place that exists "
                f"and has room for {len(self._used) * self.layout.row_bytes / 1e9:.3g} GB, to which its table grows with the clients "
                "that take part: Simulation(client_state=...)"
            ) from error


def _remove(spec: Any, lock: int | None, process: int) -> None:
    if os.getpid() != process:  # a fork's, which must not
        return
    import tensorstore as ts

    with contextlib.suppress(Exception):  # whoever cannot reach it any more cannot be told, either
        folder = ts.KvStore.open(spec).result(timeout=_PATIENCE / 10)
        folder.read(".zarray").result(timeout=_PATIENCE / 10)  # does it answer at all?
        folder.delete_range(ts.KvStore.KeyRange()).result()  # in many threads
    if spec.to_json()["driver"] == "file":  # which leaves empty folders
        shutil.rmtree(spec.path, ignore_errors=True)
    if lock is not None:
        os.close(lock)


class StoredLeaf(np.lib.mixins.NDArrayOperatorsMixin):
    """A leaf of a table in a store, read-only: ``leaf[client]``, ``leaf[clients]`` and ``leaf[10:20]`` read these rows.

    A store gives whole rows, also where a leaf is but a part of them. A leaf of a sweep has replicas in front, and
    ``leaf[replica]`` reads nothing yet. ``numpy.asarray`` reads all of it, and so does whatever else numpy does with arrays; JAX
    takes ``leaf[:]``.

    Args:
      base: the table.
      lead: replicas, if there are any, and rows.
      start: first byte of the leaf in a row.
      shape: of a row.
      dtype: of its elements.
      first: place of the leaf's first row in the table.
    """

    def __init__(
        self,
        base: StoreTable,
        lead: tuple[int, ...],
        start: int,
        shape: tuple[int, ...],
        dtype: np.dtype,
        first: int = 0,
    ):
        self.base, self.shape, self.dtype = base, (*lead, *shape), dtype
        self._lead, self._part, self._first = lead, (start, shape, dtype), first

    ndim = property(lambda self: len(self.shape))
    size = property(lambda self: math.prod(self.shape))
    nbytes = property(lambda self: self.size * self.dtype.itemsize)

    def __len__(self) -> int:
        return self._lead[0]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.dtype}{list(self.shape)} in {self.base.where})"

    def __getitem__(self, index: Any) -> Any:
        first, *rest = (index if isinstance(index, tuple) else (index,)) or (...,)
        if len(self._lead) > 1 and isinstance(first, int | np.integer):
            at = self._first + range(self._lead[0])[first] * self._lead[1]
            replica = StoredLeaf(self.base, self._lead[1:], *self._part, at)
            return replica[tuple(rest)] if rest else replica
        plain = all(isinstance(x, int | np.integer | slice) for x in rest)
        if len(self._lead) > 1 or first is None or first is ... or _is_mask(first) or not plain:
            return np.asarray(self)[index]
        rows = np.arange(len(self))[first]
        return self._read(rows)[(*[slice(None)] * rows.ndim, *rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError(
                "client state outside of memory is read into an array: it cannot be had without a copy."
            )
        found = self._read(np.arange(math.prod(self._lead)).reshape(self._lead))
        return found if dtype is None else found.astype(dtype, copy=False)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **options: Any
    ) -> Any:
        if any(isinstance(x, StoredLeaf) for x in out):
            raise ValueError(
                "client state outside of memory is read-only: compute with leaf[:], which is an array."
            )
        arrays = [np.asarray(x) if isinstance(x, StoredLeaf) else x for x in inputs]
        return getattr(ufunc, method)(*arrays, **(options | ({"out": out} if out else {})))

    def __getattr__(self, name: str) -> Any:
        """What else an array has: ``leaf.sum()``."""
        if name.startswith("_") or not hasattr(np.ndarray, name):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(np.asarray(self), name)

    def __reduce__(self) -> Any:
        """Pickled and copied as the array that it is: the store's rows are gone with this process."""
        return np.asarray, (np.asarray(self),)

    def same(self, other: StoredLeaf) -> bool:
        """Whether both read the same bytes."""
        places = [(x.base, x._lead, x._part, x._first) for x in (self, other)]
        return places[0] == places[1]

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, ``[*rows.shape, *shape]``."""
        start, shape, dtype = self._part
        raw = self.base.read(self._first + rows.reshape(-1), start, start + math.prod(shape) * dtype.itemsize)
        return raw.view(dtype).reshape(*rows.shape, *shape)


def _is_mask(index: Any) -> bool:
    """Of more than the rows."""
    return np.ndim(index) > 1 and np.asarray(index).dtype == bool
