"""Client rows in a key-value store that tensorstore reaches: a bucket, a folder of another machine, or one of any system."""

from __future__ import annotations

import contextlib
import math
import uuid
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._client_rows import RowLayout, RowTable, ScratchError
from fedjax_sim.engines._state import ClientTable

Store = str | Mapping[str, Any]
"""Of a key-value store of tensorstore's: the URL of a folder, or its specification."""


class StoreTable(RowTable):
    """Rows in a zarr array of bytes, ``uint8[rows, row_bytes]``, in a folder of its own.

    The folder is removed when the last leaf is gone, and at the end of the process; one that is killed leaves it behind.

    Args:
      where: to make it: the URL of a folder, ``"gs://bucket/folder"``, ``"s3://bucket/folder"``, ``"file:///folder"``, or the
        specification of any key-value store of tensorstore's, as a dict.
      layout: of the rows.

    Raises:
      ScratchError: there is no such place, or it cannot be written.
    """

    def __init__(self, where: Store, layout: RowLayout):
        import tensorstore as ts  # slow to import, and accelerator images may lack it

        self.where, self.layout = where, layout
        # Nothing is kept in memory. A kill loses the table anyway, so that nothing waits until it is safe on the disk.
        context = ts.Context({"cache_pool": {"total_bytes_limit": 0}, "file_io_sync": False})
        with self._explained():
            spec = ts.KvStore.Spec(where) / f"fedjax-sim-client-state-{uuid.uuid4().hex}/"
            self._folder = ts.KvStore.open(spec, context=context).result()
            # A chunk per row: several would be read and written anew with each of them.
            self._rows = ts.open(
                {"driver": "zarr3", "kvstore": spec.to_json()},
                context=context,
                create=True,
                dtype=ts.uint8,
                fill_value=0,
                shape=[math.prod(layout.lead), layout.row_bytes],
                chunk_layout=ts.ChunkLayout(chunk_shape=[1, layout.row_bytes]),
            ).result()
        weakref.finalize(self, _remove, self._folder)

    def table(self) -> ClientTable:
        return self.layout.leaves(lambda *part: StoredLeaf(self, self.layout.lead, *part))

    def gather(self, places: np.ndarray) -> np.ndarray:
        return self.read(places, 0, self.layout.row_bytes)

    def read(self, places: np.ndarray, start: int, stop: int) -> np.ndarray:
        """Some bytes of rows, ``uint8[n, stop - start]``; places need not ascend.

        Raises:
          ScratchError: they cannot be read.
        """
        raw = np.empty((len(places), stop - start), np.uint8)
        with self._explained():
            for part in self._pieces(len(places)):
                raw[part] = self._rows[places[part], start:stop].read().result()
        return raw

    def put(self, places: np.ndarray, raw: np.ndarray) -> None:
        with self._explained():
            for part in self._pieces(len(places)):
                self._rows[places[part]].write(raw[part]).result()

    def written(self) -> Iterator[np.ndarray]:
        with self._explained():
            keys = self._folder.list().result()
        # That of a row is c/place/0; one is zarr.json.
        places = np.sort(np.array([int(key.split(b"/")[1]) for key in keys if key[:2] == b"c/"], np.int64))
        return (places[part] for part in self._pieces(len(places)))

    def _pieces(self, rows: int) -> Iterator[slice]:
        """Parts of so many rows; all of a part are in memory at once."""
        step = self.layout.piece
        return (slice(start, start + step) for start in range(0, rows, step))

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, RuntimeError, NotImplementedError) as error:  # what tensorstore raises
            reason = str(error).split(" [")[0]
            raise ScratchError(
                f"client state cannot be kept in {self.where} ({reason}): its table grows to "
                f"{math.prod(self.layout.lead) * self.layout.row_bytes / 1e9:.3g} GB with the clients that take part. Name a "
                'place with room for it, Simulation(client_state="gs://bucket/folder")'
            ) from error


def _remove(folder: Any) -> None:
    with contextlib.suppress(Exception):  # whoever cannot reach it any more cannot be told, either
        folder.delete_range(type(folder).KeyRange()).result()
        where = folder.spec().to_json()
        if where["driver"] == "file":  # of files, empty folders are left
            Path(where["path"]).rmdir()


class StoredLeaf(np.lib.mixins.NDArrayOperatorsMixin):
    """A leaf of a table in a store, read-only: ``leaf[client]``, ``leaf[clients]`` and ``leaf[10:20]`` read these rows.

    One of a sweep has replicas in front, and ``leaf[replica]`` reads nothing yet. ``numpy.asarray`` reads all of it, and so does
    whatever is computed with it.

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
        first, *rest = index if isinstance(index, tuple) else (index,)
        if len(self._lead) > 1 and isinstance(first, int | np.integer):
            at = self._first + range(self._lead[0])[first] * self._lead[1]
            replica = StoredLeaf(self.base, self._lead[1:], *self._part, at)
            return replica[tuple(rest)] if rest else replica
        whole = len(self._lead) > 1 or first is None or first is Ellipsis
        if whole or not all(isinstance(x, int | np.integer | slice) for x in rest):
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

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        arrays = [np.asarray(x) if isinstance(x, StoredLeaf) else x for x in inputs]
        return getattr(ufunc, method)(*arrays, **options)

    def copy(self) -> np.ndarray:
        """All of it, in memory."""
        return np.asarray(self)

    def same(self, other: StoredLeaf) -> bool:
        """Whether both read the same bytes."""
        places = [(x.base, x._lead, x._part, x._first) for x in (self, other)]
        return places[0] == places[1]

    def _read(self, rows: np.ndarray) -> np.ndarray:
        """Rows by number, ``[*rows.shape, *shape]``."""
        start, shape, dtype = self._part
        raw = self.base.read(self._first + rows.reshape(-1), start, start + math.prod(shape) * dtype.itemsize)
        return raw.view(dtype).reshape(*rows.shape, *shape)
