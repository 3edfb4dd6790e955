"""Client rows in a key-value store that tensorstore reaches: a bucket, a folder of another machine, or one of any system."""

from __future__ import annotations

import contextlib
import math
import os
import re
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._client_rows import RowLayout, RowTable, ScratchError
from fedjax_sim.engines._state import ClientTable

StoreSpec = str | Mapping[str, Any]
"""Of a key-value store of tensorstore's: the URL of a folder, or a specification as a dict."""

_MOST_ROWS = 4096
"""Rows of a request: each costs some 2 kB, however small it is."""
_PATIENCE = 60.0
"""Seconds until a store that does not answer is given up when a table is made; when one is removed, a tenth of them."""


class StoreTable(RowTable):
    """Rows in a zarr array of bytes, ``uint8[rows, row_bytes]``, in a folder of its own.

    The folder is removed when the last leaf is gone, and at the end of the process; one that is killed leaves it behind.
    Which rows were written is known in memory: others are not asked for, and one that has vanished is an error.

    Args:
      where: to make it: the URL of a folder, ``"gs://bucket/folder"``, ``"s3://bucket/folder"``, ``"file:///folder"``, or the
        specification of any key-value store of tensorstore's, as a dict.
      layout: of the rows.

    Raises:
      ScratchError: there is no such store, it does not answer, or it cannot be written.
    """

    def __init__(self, where: StoreSpec, layout: RowLayout):
        import tensorstore as ts  # slow to import, and accelerator images may lack it

        self.where, self.layout = where, layout
        self._used = np.zeros(math.prod(layout.lead), bool)
        # Nothing is kept in memory. A kill loses the table anyway, so that nothing waits until it is safe on the disk.
        context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False})
        with self._explained():
            spec = ts.KvStore.Spec(where if isinstance(where, str) else dict(where))
            spec = spec / f"fedjax-sim-client-state-{uuid.uuid4().hex}/"
            folder = ts.KvStore.open(spec, context=context).result(timeout=_PATIENCE)
            weakref.finalize(self, _remove, folder, os.getpid())
            # A chunk per row: several would be read and written anew with each of them. Zeros are written as anything else.
            self._rows = ts.open(
                {
                    "driver": "zarr3",
                    "kvstore": spec.to_json(),
                    "fill_missing_data_reads": False,
                    "store_data_equal_to_fill_value": True,
                },
                context=context,
                create=True,
                dtype=ts.uint8,
                fill_value=0,
                shape=[len(self._used), layout.row_bytes],
                chunk_layout=ts.ChunkLayout(chunk_shape=[1, layout.row_bytes]),
            ).result(timeout=_PATIENCE)

    def table(self) -> ClientTable:
        return self.layout.leaves(lambda *part: StoredLeaf(self, self.layout.lead, *part))

    def gather(self, places: np.ndarray) -> np.ndarray:
        return self.read(places, 0, self.layout.row_bytes)

    def read(self, places: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Some bytes of rows, ``uint8[n, stop - start]``; places need not ascend.

        Raises:
          ScratchError: they cannot be read.
        """
        raw = np.zeros((len(places), stop - start), np.uint8)
        used = np.flatnonzero(self._used[places])
        with self._explained():
            for part in self._pieces(used):
                raw[part] = self._rows[places[part], start:stop].read().result()
        return raw

    def put(self, places: np.ndarray, raw: np.ndarray) -> None:
        with self._explained():
            for part in self._pieces(np.arange(len(places))):
                self._rows[places[part]].write(raw[part]).result()
        self._used[places] = True

    def written(self) -> Iterator[np.ndarray]:
        return self._pieces(np.flatnonzero(self._used))

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
            reason = (
                re.sub(r" \[[\w ]+='.*", "", str(error), flags=re.DOTALL) or f"no answer in {_PATIENCE:g} s"
            )
            raise ScratchError(
                f"client state cannot be kept in {self.where}: {reason}. Name another place, Simulation(client_state=...)"
            ) from error


def _remove(folder: Any, process: int) -> None:
    if os.getpid() != process:  # a fork's, which must not
        return
    with contextlib.suppress(Exception):  # whoever cannot reach it any more cannot be told, either
        folder.read("zarr.json").result(timeout=_PATIENCE / 10)  # does it answer at all?
        folder.delete_range(type(folder).KeyRange()).result()
        where = folder.spec().to_json()
        if where["driver"] == "file":  # of files, empty folders are left
            Path(where["path"]).rmdir()


class StoredLeaf(np.lib.mixins.NDArrayOperatorsMixin):
    """A leaf of a table in a store, read-only: ``leaf[client]``, ``leaf[clients]`` and ``leaf[10:20]`` read these rows.

    A store gives whole rows, also where a leaf is but a part of them. A leaf of a sweep has replicas in front, and
    ``leaf[replica]`` reads nothing yet. ``numpy.asarray`` reads all of it, and so does whatever else numpy's arrays do.

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
                "client state in a store is read into an array: it cannot be had without a copy."
            )
        found = self._read(np.arange(math.prod(self._lead)).reshape(self._lead))
        return found if dtype is None else found.astype(dtype, copy=False)

    def __array_ufunc__(
        self, ufunc: np.ufunc, method: str, *inputs: Any, out: Any = (), **options: Any
    ) -> Any:
        if any(isinstance(x, StoredLeaf) for x in out):
            raise ValueError("client state in a store is read-only: compute with leaf[:], which is an array.")
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
