"""Memory that this process may use: the machine's, or less where its control group or its own limits say so."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def process_bytes(root: Path = Path("/")) -> int | None:
    """The least of all limits that can be known: of a container, of a job of a cluster, of ``ulimit``, of the machine.

    Args:
      root: where ``proc`` and ``sys`` are.
    """
    return min([*_of_machine(), *_of_groups(root), *_of_process()], default=None)


def _of_machine() -> Iterator[int]:
    try:
        yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return


def _of_process() -> Iterator[int]:
    try:
        import resource  # not on Windows
    except ImportError:
        return
    for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA):
        limit, _ = resource.getrlimit(kind)
        if limit != resource.RLIM_INFINITY:
            yield limit


def _of_groups(root: Path) -> Iterator[int]:
    """Limits of the process's control group and of all groups around it, of both versions of Linux's interface.

    Inside of a container the path may be that of the machine, where there is nothing; the container's own limits then stand
    at the top.
    """
    for line in _read(root / "proc" / "self" / "cgroup").splitlines():
        _, kinds, path, *_ = [*line.split(":", 2), "", ""]
        top = root / "sys" / "fs" / "cgroup"
        if kinds and "memory" not in kinds.split(","):
            continue
        top, name = (top / "memory", "memory.limit_in_bytes") if kinds else (top, "memory.max")
        parts = [part for part in path.split("/") if part]
        for depth in range(len(parts) + 1) if ".." not in parts else (0,):
            limit = _read(top.joinpath(*parts[:depth]) / name).strip()
            if limit.isdecimal():  # "max" where there is none
                yield int(limit)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
