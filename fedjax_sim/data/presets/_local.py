"""Files that a preset needs."""

from __future__ import annotations

from pathlib import Path

from fedjax_sim.data._files import check_is_file


def needed(folder: Path, name: str, origin: str) -> Path:
    """The file of that name.

    Args:
      folder: where it should be.
      name: of the file.
      origin: where people get it, completes ``Get it from ...``.

    Raises:
      FileNotFoundError, IsADirectoryError: it is not there.
    """
    path = folder / name
    try:
        check_is_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error} Nothing downloads by itself. Get it from {origin}.") from None
    return path


def present(path: str | Path, origin: str) -> Path:
    """The path of a set that is there, a file or a folder; ``origin`` and errors as for ``needed``."""
    path = Path(path)
    return path if path.is_dir() else needed(path.parent, path.name, origin)
