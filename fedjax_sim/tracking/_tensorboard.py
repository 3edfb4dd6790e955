"""Rows as TensorBoard's event files, without TensorFlow."""

from __future__ import annotations

import itertools
import json
import os
import re
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim.tracking._files import check_keep_rounds
from fedjax_sim.tracking._rows import as_json

_COUNTER = itertools.count()


class TensorBoard:
    """Scalars in TensorBoard's event files, each on disk as soon as it is written. Needs the extra ``[tensorboard]``.

    Every replica (seed, setting of a sweep) has a folder of its own, which TensorBoard shows as a run. The step is the
    number of rounds done, ``round + 1``. Values that are no numbers are left out.

    The package's own writer imports TensorFlow where it is installed, which takes seconds and the GPU's memory, and
    writes from a thread whose errors nobody sees; here its messages are written directly.

    Args:
      folder: for the event files; made if it is missing.
      keep_rounds: continue after a crash: TensorBoard forgets what the folder has of later rounds.

    Raises:
      ModuleNotFoundError: the package is not installed.
      ValueError: ``keep_rounds`` is no count.

    Example:
      ``with TensorBoard("runs/a/tensorboard") as tracker: tracker.write({"round": 0, "seed": 3, "loss": 0.5})``, then
      ``tensorboard --logdir runs``.
    """

    def __init__(self, folder: str | Path, keep_rounds: int | None = None):
        check_keep_rounds(keep_rounds)
        try:
            from tensorboard.compat.proto import event_pb2, summary_pb2
            from tensorboard.summary.writer.record_writer import RecordWriter
        except ImportError as error:
            raise ModuleNotFoundError(
                f"TensorBoard event files need the package tensorboard, which does not import ({error}); install it with "
                "pip install 'fedjax-sim[tensorboard]'.",
                name="tensorboard",
            ) from error
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._protos, self._record_writer = (event_pb2, summary_pb2), RecordWriter
        self._keep_rounds = keep_rounds
        self._writers: dict[str, Any] = {}
        self._closed = False

    def write(self, row: Mapping[str, Any]) -> None:
        """Adds the numbers of one row.

        Raises:
          KeyError: the row has no ``round``.
          ValueError: the tracker is closed.
        """
        if self._closed:
            raise ValueError(f"the event files in {self.folder} are closed: they take no more rows.")
        event_pb2, summary_pb2 = self._protos
        values = [
            summary_pb2.Summary.Value(tag=name, simple_value=float(value))
            for name, value in row.items()
            if name not in ("round", "seed") and _is_number(value)
        ]
        writer = self._writer(replica_name(row))
        event = event_pb2.Event(
            wall_time=time.time(), step=int(row["round"]) + 1, summary=summary_pb2.Summary(value=values)
        )
        writer.write(event.SerializeToString())
        writer.flush()

    def close(self) -> None:
        """Closes the files; closing again does nothing."""
        self._closed = True
        for writer in self._writers.values():
            writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _writer(self, replica: str):
        if replica not in self._writers:
            self._writers[replica] = self._open(self.folder / replica)
        return self._writers[replica]

    def _open(self, folder: Path):
        """A new event file; those that are there stay, and TensorBoard reads them in the order of their names."""
        event_pb2, _ = self._protos
        folder.mkdir(parents=True, exist_ok=True)
        now = time.time()
        stamp = f"{int(now):010d}.{socket.gethostname()}.{os.getpid()}.{next(_COUNTER):04d}"
        writer = self._record_writer((folder / f"events.out.tfevents.{stamp}").open("xb"))
        events = [event_pb2.Event(wall_time=now, file_version="brain.Event:2")]
        if self._keep_rounds is not None:
            start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            events.append(event_pb2.Event(wall_time=now, step=self._keep_rounds + 1, session_log=start))
        for event in events:
            writer.write(event.SerializeToString())
        writer.flush()
        return writer


def replica_name(row: Mapping[str, Any]) -> str:
    """A name for the replica of a row that can be a folder's: empty where the row has neither seed nor settings.

    Example:
      >>> from fedjax_sim.tracking._tensorboard import replica_name
      >>> replica_name({"round": 0, "seed": 3, "sweep": {"algorithm.client.learning_rate": 0.1}})
      'algorithm.client.learning_rate=0.1,seed=3'
    """
    settings = dict(as_json(row.get("sweep") or {}))
    if "seed" in row:
        settings["seed"] = as_json(row["seed"])
    text = ",".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in settings.items()
    )
    return re.sub(r"[^\w.,=+-]", "_", text)


def _is_number(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    return isinstance(value, int | float | np.integer | np.floating) or (
        getattr(value, "shape", None) == () and np.issubdtype(value.dtype, np.number)
    )
