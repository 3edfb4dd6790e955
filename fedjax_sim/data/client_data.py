"""The examples of all clients: flat columns, and where in them each client begins."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from fedjax_sim._src import tree
from fedjax_sim.data._columns import check_columns, check_offsets, describe, gather_rows, offsets_of
from fedjax_sim.data._ids import StaticIds, as_ids, look_up


@dataclass(frozen=True, eq=False, repr=False)
class ClientData:
    """Examples of many clients, flat: client ``i`` holds rows ``offsets[i]`` to ``offsets[i + 1]`` of every column.

    Columns keep their storage type (uint8 images stay uint8) and a ``np.memmap`` stays memory-mapped. A client may
    be empty. The object is a JAX pytree whose leaves are the columns and the offsets, so ``jax.device_put(data)``
    and ``jax.tree.map`` work; the ids are static.

    Attributes:
      columns: name to array ``[examples, ...]``; no text, no objects, and not ``"mask"``, which batches add.
      offsets: ``int64[clients + 1]``, from 0 to the number of examples, never decreasing.
      ids: ``int64[clients]`` or text ``[clients]``, unique, read-only.

    Raises:
      TypeError: a column, the offsets or the ids are of a type that cannot serve.
      ValueError: there is no column or no client, lengths disagree, offsets do not cover the rows, ids repeat.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> data = fs.data.ClientData({"x": np.arange(6.0), "y": np.arange(6)}, offsets=[0, 4, 4, 6], ids=["ann", "bo", "cy"])
      >>> data
      ClientData(3 clients with 0 to 4 of 6 examples, x: float64[], y: int64[], 96 B)
      >>> data.client("cy")["x"]
      array([4., 5.])
    """

    columns: Mapping[str, np.ndarray]
    offsets: np.ndarray
    ids: np.ndarray
    _static: StaticIds = field(init=False)

    def __post_init__(self) -> None:
        columns, num_examples = check_columns(self.columns)
        static = StaticIds(as_ids("ids", self.ids))
        offsets = check_offsets(self.offsets, len(static.values), num_examples)
        _set_fields(self, columns, offsets, static)

    @classmethod
    def from_clients(
        cls, clients: Mapping[int, Mapping[str, Any]] | Mapping[str, Mapping[str, Any]]
    ) -> ClientData:
        """Joins one mapping of columns ``[examples of the client, ...]`` per client, in the order given.

        Raises:
          ValueError: clients disagree about the columns, or about a column's dtype or shape beyond the first axis.

        Example:
          >>> import numpy as np, fedjax_sim as fs
          >>> data = fs.data.ClientData.from_clients({7: {"x": np.zeros((2, 3))}, 5: {"x": np.ones((1, 3))}})
          >>> data.ids, data.sizes
          (array([7, 5]), array([2, 1]))
        """
        if not clients:
            raise ValueError("clients is empty, expected at least one client.")
        checked = {client: check_columns(raw, of=f" of client {client!r}") for client, raw in clients.items()}
        parts = {client: columns for client, (columns, _) in checked.items()}
        sizes = np.asarray([size for _, size in checked.values()])
        first, expected = next(iter(parts.items()))
        for client, columns in parts.items():
            # np.concatenate would promote 3 uint8 clients and one float64 client to float64 without a word.
            if describe(columns) != describe(expected):
                raise ValueError(
                    f"client {client!r} has columns {describe(columns)}, client {first!r} has {describe(expected)}; "
                    "expected the same names, dtypes and shapes. Convert them before joining."
                )
        joined = {name: np.concatenate([columns[name] for columns in parts.values()]) for name in expected}
        return cls(joined, offsets_of(sizes), as_ids("ids", list(parts)))

    @classmethod
    def from_arrays(
        cls,
        columns: Mapping[str, Any],
        client: Any,
        *,
        ids: Iterable[int | str] | np.ndarray | None = None,
    ) -> ClientData:
        """Groups rows by their owner; a client's rows keep their order.

        Rows that are grouped already are not copied, so memory-mapped columns stay memory-mapped.

        Args:
          columns: name to array ``[examples, ...]``.
          client: integers or text ``[examples]``, the id of the client that owns each row.
          ids: all clients, in the order wanted; those without rows are empty clients. By default the ids that
            occur, sorted.

        Raises:
          ValueError: ``client`` has another length than the columns, or holds an id that ``ids`` lacks.

        Example:
          >>> import numpy as np, fedjax_sim as fs
          >>> fs.data.ClientData.from_arrays({"x": np.array([1, 2, 3])}, client=["b", "a", "b"]).client("b")["x"]
          array([1, 3])
          >>> fs.data.ClientData.from_arrays({"x": np.array([1, 2, 3])}, client=[2, 0, 2], ids=range(4)).sizes
          array([1, 0, 2, 0])
        """
        columns, num_examples = check_columns(columns)
        owner = as_ids("client", client)
        if len(owner) != num_examples:
            raise ValueError(
                f"client has {len(owner)} entries, the columns have {num_examples} rows; expected one owner per row."
            )
        if ids is None:
            unique, index = np.unique(owner, return_inverse=True)
        else:
            unique = as_ids("ids", ids)
            index = look_up(unique, owner)
        sizes = np.bincount(index, minlength=len(unique))
        return cls(gather_rows(columns, np.argsort(index, kind="stable")), offsets_of(sizes), unique)

    @property
    def num_clients(self) -> int:
        return len(self.ids)

    @property
    def num_examples(self) -> int:
        return next(iter(self.columns.values())).shape[0]

    @property
    def sizes(self) -> np.ndarray:
        """Examples per client, ``int64[clients]``."""
        return self.offsets[1:] - self.offsets[:-1]

    @property
    def nbytes(self) -> int:
        """Bytes of the columns, whether in memory or mapped from a file."""
        return sum(column.nbytes for column in self.columns.values())

    def index(self, client: int | str) -> int:
        """Position of the client with this id.

        Raises:
          ValueError: no client has it.

        Example:
          >>> import numpy as np, fedjax_sim as fs
          >>> fs.data.ClientData({"x": np.zeros(2)}, [0, 1, 2], ids=[2100, 2101]).index(2101)
          1
        """
        return int(look_up(self.ids, as_ids("client", [client]))[0])

    def client(self, client: int | str) -> dict[str, np.ndarray]:
        """One client's columns, as views.

        Args:
          client: an integer is a position, 0 to ``num_clients - 1``, even where ids are integers (``index`` turns
            an id into a position); text is an id.

        Raises:
          IndexError: the position is out of range.
          ValueError: no client has the id.

        Example:
          >>> import numpy as np, fedjax_sim as fs
          >>> fs.data.ClientData({"x": np.arange(3)}, offsets=[0, 2, 3], ids=["ann", "bo"]).client("ann")
          {'x': array([0, 1])}
        """
        (position,) = self.positions([client])
        start, stop = (int(edge) for edge in self.offsets[position : position + 2])
        return {name: column[start:stop] for name, column in self.columns.items()}

    def select(self, clients: Any) -> ClientData:
        """The given clients, in the given order.

        Neighbours in their own order are a view, so memory-mapped columns stay memory-mapped; other selections copy.

        Args:
          clients: positions, text ids (both as in ``client``), or ``bool[clients]``.

        Raises:
          IndexError, ValueError: as in ``client``; ValueError also for none at all and for one named twice.

        Example:
          >>> import numpy as np, fedjax_sim as fs
          >>> data = fs.data.ClientData({"x": np.arange(5)}, [0, 1, 3, 5], ids=["ann", "bo", "cy"])
          >>> data.select(["cy", "ann"]).columns["x"]
          array([3, 4, 0])
          >>> data.select(data.sizes > 1).ids
          array(['bo', 'cy'], dtype='<U3')
        """
        positions = self.positions(clients)
        columns = gather_rows(self.columns, _rows_of(self.offsets, positions))
        return ClientData(columns, offsets_of(np.diff(self.offsets)[positions]), self.ids[positions])

    def filter(self, rows: np.ndarray) -> ClientData:
        """The same clients with only some of their examples.

        Args:
          rows: ``bool[examples]``, True where the example stays.

        Raises:
          ValueError: ``rows`` is not ``bool[examples]``.

        Example:
          >>> import numpy as np, fedjax_sim as fs
          >>> data = fs.data.ClientData({"y": np.array([0, 1, 2, 1])}, [0, 2, 4], ids=["ann", "bo"])
          >>> data.filter(data.columns["y"] == 1).sizes
          array([1, 1])
        """
        rows = np.asarray(rows)
        if rows.dtype != bool or rows.shape != (self.num_examples,):
            raise ValueError(
                f"rows is {rows.dtype}{list(rows.shape)}, expected bool[{self.num_examples}], one entry per example."
            )
        kept_before = np.concatenate([[0], np.cumsum(rows)])
        offsets = kept_before[np.asarray(self.offsets)]
        return ClientData(gather_rows(self.columns, np.flatnonzero(rows)), offsets, self.ids)

    def __repr__(self) -> str:
        # Leaves may be anything while JAX takes the tree apart, and a repr in a traceback must not raise.
        columns = ", ".join(f"{name}: {spec}" for name, spec in describe(self.columns).items())
        if not isinstance(self.offsets, np.ndarray) or not all(
            isinstance(column, (np.ndarray, jax.Array)) for column in self.columns.values()
        ):
            return f"ClientData({self.num_clients} clients, {columns})"
        sizes = self.sizes
        return (
            f"ClientData({self.num_clients} clients with {sizes.min()} to {sizes.max()} of {self.num_examples} "
            f"examples, {columns}, {tree.readable_bytes(self.nbytes)})"
        )

    def positions(self, clients: Any) -> np.ndarray:
        """Positions of the given clients, ``int64[...]``; arguments and errors as for ``select``."""
        return positions_of(self.ids, clients)

    @property
    def in_memory(self) -> ClientData:
        """These data themselves: what a ``ClientSource`` becomes when all of it is made."""
        return self

    def read(self, positions: np.ndarray, out: Mapping[str, np.ndarray]) -> None:
        """Writes the examples of clients, one after the other, into the first rows of arrays.

        Args:
          positions: ``int[clients]``.
          out: name to array ``[rows, ...]`` with room for them.
        """
        rows = _rows_of(self.offsets, positions)
        for column in self.columns.values():
            _announce(column, self.offsets[positions], self.offsets[np.asarray(positions) + 1])
        for name, column in self.columns.items():
            # With another mode, numpy would make a second copy before it writes.
            np.take(np.asarray(column), rows, axis=0, out=out[name][: len(rows)], mode="clip")


def _announce(column: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
    """Asks the system for the rows of a memory-mapped file, all at once: read as they are touched, they come page by page."""
    memory = getattr(column, "_mmap", None)
    if (
        not isinstance(memory, mmap.mmap)
        or not hasattr(mmap, "MADV_WILLNEED")
        or not column.flags.c_contiguous
    ):
        return
    begin = np.frombuffer(memory, np.uint8).__array_interface__["data"][0]
    first, row = column.__array_interface__["data"][0] - begin, column.strides[0]
    for start, stop in zip(first + starts * row, first + stops * row, strict=True):
        page = int(start) // mmap.PAGESIZE * mmap.PAGESIZE
        if stop > page:
            memory.madvise(mmap.MADV_WILLNEED, page, int(stop) - page)


def positions_of(ids: np.ndarray, clients: Any) -> np.ndarray:
    """Positions of clients, ``int64[...]``, given as positions, as text ids, or as ``bool[clients]``.

    Raises:
      IndexError, ValueError: as ``ClientData.select``.
    """
    array = np.asarray(clients)
    if array.dtype == bool:
        if array.shape != (len(ids),):
            raise ValueError(
                f"clients is bool{list(array.shape)}, expected bool[{len(ids)}], one entry per client."
            )
        array = np.flatnonzero(array)
    if array.size == 0:
        raise ValueError("clients names no client, expected at least one.")
    wanted = as_ids("clients", clients if array.dtype.kind not in "iu" else array)
    if wanted.dtype.kind == "U":
        return look_up(ids, wanted)
    outside = wanted[(wanted < 0) | (wanted >= len(ids))]
    if outside.size:
        raise IndexError(
            f"client {outside[0]} is out of range, expected a position from 0 to {len(ids) - 1} "
            "(for an integer id: data.index(id))."
        )
    return wanted


def _rows_of(offsets: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Rows of clients, one client after the other, ``int64[rows]``."""
    old = np.asarray(offsets)
    sizes = np.diff(old)[positions]
    new = offsets_of(sizes)
    return np.repeat(old[positions] - new[:-1], sizes) + np.arange(new[-1])


def _set_fields(data: ClientData, columns: Any, offsets: Any, static: StaticIds) -> None:
    for name, value in (
        ("columns", columns),
        ("offsets", offsets),
        ("ids", static.values),
        ("_static", static),
    ):
        object.__setattr__(data, name, value)


def _unflatten(static: StaticIds, children: Iterable[Any]) -> ClientData:
    # Not validated: leaves may be tracers, shapes or placeholders.
    columns, offsets = children
    data = object.__new__(ClientData)
    _set_fields(data, columns, offsets, static)
    return data


jax.tree_util.register_pytree_with_keys(
    ClientData,
    lambda data: (
        (
            (jax.tree_util.GetAttrKey("columns"), data.columns),
            (jax.tree_util.GetAttrKey("offsets"), data.offsets),
        ),
        data._static,
    ),
    _unflatten,
    lambda data: ((data.columns, data.offsets), data._static),
)
