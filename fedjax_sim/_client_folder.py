"""Folders of this machine for client rows: each is locked while its process lives, and the next process removes the others."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
import uuid
from pathlib import Path


def scratch_folder() -> Path:
    """Where large temporary files go: ``TMPDIR`` if it is set, ``/var/tmp`` if it can be written, since ``/tmp`` may be memory."""
    usual = Path("/var/tmp")
    if "TMPDIR" in os.environ or not os.access(usual, os.W_OK):
        return Path(tempfile.gettempdir())
    return usual


def locked_folder(parent: Path, prefix: str) -> tuple[str, int | None]:
    """The name of a new folder in ``parent``, and the descriptor that holds its lock; folders of killed processes are removed before.

    Removed are only those that this machine made: a lock that a process of another one has may not be seen here. Where there are no
    locks of folders, as on Windows and on some shared file systems, the new folder has a name that nobody looks for.

    Args:
      parent: has to exist.
      prefix: of the names of such folders.

    Raises:
      OSError: ``parent`` is missing, or cannot be written.
    """
    own = f"{prefix}{socket.gethostname()}-"
    for path in parent.iterdir():
        if re.fullmatch(re.escape(own) + "[0-9a-f]{32}", path.name):
            lock = _acquired(path)
            if lock is not None:
                shutil.rmtree(path, ignore_errors=True)
                os.close(lock)
    unique = uuid.uuid4().hex
    path = parent / f"{prefix}{unique}"
    path.mkdir(mode=0o700)
    lock = _acquired(path)
    if lock is not None:
        path = path.rename(parent / f"{own}{unique}")
    return path.name, lock


def _acquired(folder: Path) -> int | None:
    """The descriptor that holds the folder's lock, if no other does; the system gives it back when the process ends, however it does.

    Of the folder and not of a file in it: services that clean ``/var/tmp`` leave a folder alone that somebody has locked.
    """
    with contextlib.suppress(ImportError, OSError):
        import fcntl

        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor
    return None
