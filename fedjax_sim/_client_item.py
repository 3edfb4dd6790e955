"""The client table in a checkpoint: one file of the rows that were used, written and read a piece at a time.

The file is a sequence of blocks. A block is the number of its rows and a checksum, then the places of the rows (replica times
rows, plus client), then the rows. One without rows ends the file, and holds the number of all instead of a checksum.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import future

from fedjax_sim._client_layout import RowLayout
from fedjax_sim._client_rows import Opener, Rows, used_rows
from fedjax_sim.engines._state import ClientTable

FILE = "rows"
_HEAD = np.dtype([("rows", "<i8"), ("check", "<i8")])


def write(path: Path, table: ClientTable, layout: RowLayout) -> None:
    """Writes a table's rows that are not zero.

    Raises:
      OSError: the disk is full.
    """
    total = 0
    with path.open("wb") as file:
        for part in used_rows(table, layout):
            if not len(part.raw):
                continue
            places = np.ascontiguousarray(part.replica * layout.lead[-1] + part.client, "<i8")
            check = zlib.crc32(part.raw.data, zlib.crc32(places.data))
            file.write(np.array((len(places), check), _HEAD).tobytes())
            file.write(places.data)
            file.write(part.raw.data)
            total += len(places)
        file.write(np.array((0, total), _HEAD).tobytes())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path, layout: RowLayout, opener: Opener | None) -> ClientTable:
    """The table that a file holds, with the layout that it was written with.

    Args:
      path: of the file.
      layout: of the table.
      opener: of a table outside of memory; ``None`` for one in memory.

    Raises:
      ValueError: the file is damaged.
      OSError: it cannot be read, or the table not be written.
    """
    if opener is not None:
        outside, rows = opener(layout), layout.lead[-1]
        for part in _blocks(path, layout):
            outside.put(part.replica * rows + part.client, part.raw)
        return outside.table()
    table, replicated = layout.zeros(), len(layout.lead) > 1
    for part in _blocks(path, layout):
        index = (part.replica, part.client) if replicated else (part.client,)

        def fill(leaf, rows, index=index):
            leaf[index] = rows

        jax.tree.map(fill, table, layout.split(part.raw))
    return table


def _blocks(path: Path, layout: RowLayout) -> Iterator[Rows]:
    total, left = 0, path.stat().st_size
    *replicas, rows = layout.lead
    records = rows * (replicas or [1])[0]
    with path.open("rb") as file:
        while True:
            head, left = np.frombuffer(_exactly(file, _HEAD.itemsize, left), _HEAD)[0], left - _HEAD.itemsize
            count, check = int(head["rows"]), int(head["check"])
            if count == 0:
                if check != total or left:
                    raise ValueError(
                        f"{path} is damaged: it ends after {total} rows, and should after {check}."
                    )
                return
            size = count * (8 + layout.row_bytes)
            block = _exactly(file, size if count > 0 else left + 1, left)
            left -= size
            if zlib.crc32(block) != check:
                raise ValueError(
                    f"{path} is damaged: the checksum of rows {total} to {total + count - 1} differs."
                )
            places = np.frombuffer(block, "<i8", count)
            if places.min() < 0 or places.max() >= records:
                raise ValueError(f"{path} has rows of client {places.max()} in a table of {records} rows.")
            raw = np.frombuffer(block, np.uint8, offset=8 * count).reshape(count, layout.row_bytes)
            total += count
            yield Rows(*np.divmod(places, rows), raw)


def _exactly(file: Any, size: int, left: int) -> bytes:
    # Not asked for where the file is too short: a damaged size may be larger than the memory.
    if size > left:
        raise ValueError(f"{file.name} is damaged: it is too short.")
    return file.read(size)


class RowsHandler(ocp.AsyncCheckpointHandler):
    """Writes the item into the checkpoint's temporary folder, which orbax renames when all items are complete."""

    async def async_save(self, directory: Any, args: RowsSave) -> list[Any]:
        async def work() -> None:
            write(Path(directory) / FILE, args.table, args.layout)

        writing = future.CommitFutureAwaitingContractedSignals(work(), name="client_rows")
        if not args.background:
            # An error is raised when orbax asks for the result: here it would leave the other items half begun.
            with contextlib.suppress(Exception):
                writing.result()
        return [writing]

    def save(self, directory: Any, args: RowsSave) -> None:
        write(Path(directory) / FILE, args.table, args.layout)

    def restore(self, directory: Any, args: Any = None) -> Any:
        raise NotImplementedError("client rows are read with read(): where they go is not orbax's to say.")


@ocp.args.register_with_handler(RowsHandler, for_save=True, for_restore=True)
@dataclasses.dataclass
class RowsSave(ocp.args.CheckpointArgs):
    """A table for ``RowsHandler``.

    Attributes:
      table: what is to be written.
      layout: of its rows.
      background: it is written while the run goes on, which must not change it.
    """

    table: ClientTable
    layout: RowLayout
    background: bool
