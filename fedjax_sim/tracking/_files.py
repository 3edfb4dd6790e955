"""Files of rows that outlive a crash: replaced in one move, continued at a round."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TextIO


def check_keep_rounds(keep_rounds: int | None) -> None:
    """Raises ``ValueError`` unless it is ``None`` or an integer of at least 0."""
    if keep_rounds is None:
        return
    if isinstance(keep_rounds, bool) or not hasattr(keep_rounds, "__index__") or keep_rounds < 0:
        raise ValueError(
            f"keep_rounds is {keep_rounds!r}, expected the number of rounds to keep, an integer of at least 0, "
            "or None to make a new file."
        )


def create(path: Path) -> TextIO:
    """Opens a file that must be new."""
    try:
        return path.open("x", encoding="utf-8", newline="")
    except FileExistsError:
        raise FileExistsError(
            f"{path} exists already and is not overwritten; choose another folder, "
            "or pass keep_rounds=n to continue it after n rounds."
        ) from None


def replace(path: Path, write: Callable[[TextIO], object]) -> None:
    """Writes a file anew in one move: whenever the process dies, the path holds the whole old or the whole new one."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8", newline="") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def append(path: Path) -> TextIO:
    return path.open("a", encoding="utf-8", newline="")
