"""Folders of this machine for client rows: each is locked while its process lives, and the next process removes the others."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import tempfile
import uuid
from pathlib import Path
from typing import TextIO

_LOCK = "lock"


def scratch_folder() -> Path:
    """Where large temporary files go: ``TMPDIR`` if it is set, ``/var/tmp`` if it can be written, since ``/tmp`` may be memory."""
    usual = Path("/var/tmp")
    if "TMPDIR" in os.environ or not os.access(usual, os.W_OK):
        return Path(tempfile.gettempdir())
    return usual


def locked_folder(parent: Path, prefix: str) -> tuple[str, TextIO]:
    """The name of a new folder in ``parent``, and its lock; those of processes that were killed are removed before.

    Only folders that this machine made are: whether a process of another one lives, which may use ``parent``, too, cannot be
    known. Where the system or the file system has no such locks, as Windows has not, none are.

    Args:
      parent: has to exist.
      prefix: of the names of such folders.

    Raises:
      OSError: ``parent`` is missing, or cannot be written.
    """
    prefix = f"{prefix}{socket.gethostname()}-"
    for path in parent.iterdir():
        if path.name.startswith(prefix):
            # A file that is gone is made again: whoever removed this folder before was killed at that.
            with contextlib.suppress(OSError), (path / _LOCK).open("a") as lock:
                if _taken(lock):
                    shutil.rmtree(path, ignore_errors=True)
    name = f"{prefix}{uuid.uuid4().hex}"
    hidden = parent / f".{name}"  # nobody looks for it until it is locked
    hidden.mkdir(mode=0o700)
    lock = (hidden / _LOCK).open("a")
    _taken(lock)
    hidden.rename(parent / name)
    return name, lock


def _taken(lock: TextIO) -> bool:
    """Whether the lock is this process's from now on; the system gives it back when the process ends, however it does."""
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False
