"""Reading arrays from files; whatever goes wrong, the error names the file and the array. Never unpickles."""

from __future__ import annotations

import contextlib
import gzip
import json
import lzma
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

# A zip file may also ask for a password or for a method that nobody has (RuntimeError), an array's header for more than
# there is memory, or be no Python at all.
_DAMAGED = (
    EOFError, KeyError, MemoryError, OSError, OverflowError, RuntimeError, SyntaxError, TypeError, ValueError,
    lzma.LZMAError, struct.error, tokenize.TokenError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


@contextlib.contextmanager
def errors_name(*paths: Path | str) -> Iterator[None]:
    """Turns what is wrong with the contents of files into a ``ValueError`` that begins with their names."""
    try:
        yield
    except (IndexError, TypeError, ValueError) as error:
        raise ValueError(f"{' with '.join(map(str, paths))}: {error}") from error


class Npz:
    """The arrays of an ``.npz`` file, each read when it is first asked for.

    Attributes:
      names: of all arrays in the file.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: the file is damaged or of another kind.
    """

    names: tuple[str, ...]

    def __init__(self, path: Path):
        check_is_file(path)
        self._path = path
        self._arrays: dict[str, np.ndarray] = {}
        try:
            # np.load does not close a file that it opened and then could not read.
            with path.open("rb") as stream:
                archive = np.load(stream, allow_pickle=False)
        except _DAMAGED as error:
            # Of what is no archive at all numpy guesses that it was pickled, and says how to run its code.
            said = "" if "allow_pickle" in str(error) else f": {error}"
            raise ValueError(
                f"{path} is no readable .npz file (truncated, or of another kind){said}"
            ) from error
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError(f"{path} holds a single array, expected an .npz file. Write it with np.savez.")
        self.names = tuple(archive.files)
        twice = next((name for name in self.names if self.names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{path} holds {twice!r} twice, expected each array once.")

    def read(self, name: str) -> np.ndarray:
        """One array.

        Raises:
          ValueError: it is not there, is damaged, or holds Python objects. Combine with ``errors_name``.
        """
        if name not in self.names:
            raise ValueError(f"no array is called {name!r}, the file has {', '.join(self.names)}.")
        if name not in self._arrays:
            try:
                with np.load(self._path, allow_pickle=False) as archive:
                    array = archive[name]
            except _DAMAGED as error:
                if "allow_pickle" in str(error):
                    raise ValueError(
                        f"array {name!r} holds Python objects, which are not read because unpickling runs code. "
                        "Save numbers (ragged rows: pad them to one length), or read only the other columns."
                    ) from error
                raise ValueError(f"array {name!r} cannot be read, the file is damaged: {error}") from error
            if not isinstance(array, np.ndarray):  # what is in the archive and no .npy file comes as bytes
                raise ValueError(f"{name!r} is no array, expected a file that np.savez wrote.")
            self._arrays[name] = array
        return self._arrays[name]


def read_npy(path: str | Path) -> np.ndarray:
    """The array of an ``.npy`` file, or of an ``.npy.xz`` file, compressed with xz.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: the file is damaged or of another kind, or holds Python objects.
    """
    path = Path(path)
    check_is_file(path)
    kind = ".npy.xz" if path.suffix == ".xz" else ".npy"
    try:
        with lzma.open(path) if path.suffix == ".xz" else path.open("rb") as stream:
            array = np.load(stream, allow_pickle=False)
    except _DAMAGED as error:
        raise ValueError(
            f"{path} is no readable {kind} file (truncated, or of another kind): {error}"
        ) from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path} is an archive, expected one array: an {kind} file.")
    return array


def read_text(file: Path) -> str:
    """The text of a file in UTF-8, with or without a byte order mark, decompressed if its name ends in ``.gz``.

    Combine with ``errors_name``.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: it is empty, truncated, or no text.
    """
    check_is_file(file)
    opened = gzip.open if file.suffix == ".gz" else open
    try:
        with opened(file, "rt", encoding="utf-8-sig") as stream:
            text = stream.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"the compressed file is truncated, or of another kind: {error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is no text in UTF-8: {error}") from error
    if not text.strip():
        raise ValueError("the file is empty.")
    return text


def parse_json(text: str) -> Any:
    """What a JSON text says; a key that is there twice in one object is an error, not the last one.

    Raises:
      ValueError: it is no JSON.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"the file is no JSON, or truncated: {error}") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object's keys and values; of a key that is there twice, JSON's readers would drop one silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(
            f"key {next(k for k in found if keys.count(k) > 1)!r} is there twice in one object, expected once."
        )
    return found


def where_from(origin: str) -> str:
    """Ends an error about a published set that is not there."""
    return f"Nothing downloads by itself. Get it from {origin}."


def needed(folder: Path, name: str, origin: str) -> Path:
    """The file of that name, which a published set needs.

    Args:
      folder: where it should be.
      name: of the file.
      origin: where people get it, completes ``Get it from ...``.

    Raises:
      FileNotFoundError, IsADirectoryError, NotADirectoryError: it is not there, or the folder is a file.
    """
    get = where_from(origin)
    if folder.is_file():
        raise NotADirectoryError(f"{folder} is a file, expected a folder with {name} in it. {get}")
    path = folder / name
    try:
        check_is_file(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise type(error)(f"{error} {get}") from None
    return path


def check_is_folder(path: Path) -> Path:
    """The path; raises ``NotADirectoryError`` or ``FileNotFoundError`` with it."""
    if path.is_file():
        raise NotADirectoryError(f"{path} is a file, expected a folder.")
    if not path.is_dir():
        raise FileNotFoundError(f"{path} does not exist, expected a folder.")
    return path


def check_is_file(path: Path) -> None:
    """Raises ``IsADirectoryError`` or ``FileNotFoundError`` with the path."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder, expected a file.")
    if not path.is_file():
        # Reading from a pipe would wait for somebody who writes.
        found = "is a pipe or a device" if path.exists() else "does not exist"
        raise FileNotFoundError(f"{path} {found}, expected a file.")
