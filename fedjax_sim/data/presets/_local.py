"""Files that a preset needs."""

from __future__ import annotations

from pathlib import Path

from fedjax_sim.data._files import needed


def present(path: str | Path, origin: str) -> Path:
    """The path of a set that is there, a file or a folder; ``origin`` and errors as for ``needed``."""
    path = Path(path)
    return path if path.is_dir() else needed(path.parent, path.name, origin)
