"""Files that a preset needs."""

from __future__ import annotations

from pathlib import Path

from fedjax_sim.data._files import needed, where_from


def present(path: str | Path, origin: str) -> Path:
    """The path of a set that is there, a file or a folder that is not empty; ``origin`` and errors as for ``needed``."""
    path = Path(path)
    if not path.is_dir():
        return needed(path.parent, path.name, origin)
    if not any(path.iterdir()):
        raise FileNotFoundError(f"{path} is empty, expected the files of the set. {where_from(origin)}")
    return path
