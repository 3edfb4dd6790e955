"""Sets on disk that are larger than memory: written a client at a time, read through memory maps."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._columns import check_columns, describe, offsets_of
from fedjax_sim.data._files import check_is_file, errors_name
from fedjax_sim.data._ids import as_ids
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated

MANIFEST = "manifest.json"
_VERSION = 1
_PIECE = 1 << 24  # bytes that are checked at a time
_MOST_AXES = 32  # of an array, which numpy has everywhere

Pairs = Iterable[tuple[int | str, Mapping[str, Any]]]
"""``(id, columns [examples of the client, ...])``, one client after the other."""


def write(
    folder: str | Path,
    train: Pairs,
    test: Pairs | None = None,
    *,
    name: str = "stored",
    classes: int | None = None,
) -> Federated:
    """Writes a set a client at a time, so that it never has to fit into memory, and returns it, memory-mapped.

    The folder appears when everything is written, or not at all. Every file has a checksum in the manifest, and so has the manifest itself. Of a process that
    was killed while it wrote, a folder ``.NAME.`` with some digits is left, which can be removed.

    Args:
      folder: must not exist yet.
      train: the clients to train on.
      test: those to evaluate on; none by default, then the test part has the same clients without examples.
      name: of the set.
      classes: number of classes, where there are any.

    Raises:
      FileExistsError: the folder exists.
      TypeError: ``name`` is no text, a column holds none of numbers and booleans, or ids are neither integers nor text.
      ValueError: no client, an id that comes twice, clients that disagree about columns, also those of the two parts, or rows
        without a number; names the client. ``classes`` is no integer of at least 1.

    Example:
      >>> import tempfile, numpy as np, fedjax_sim as fs
      >>> clients = ((client, {"x": np.full((2, 3), client, np.float32)}) for client in range(4))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     data = fs.data.write(folder + "/set", clients)
      ...     print(data.train)
      ClientData(4 clients with 2 to 2 of 8 examples, x: float32[3], 96 B)
    """
    folder = Path(folder)
    if not isinstance(name, str):
        raise TypeError(f"name is {type(name).__name__}, expected str.")
    if classes is not None:
        checks.positive_int("classes", classes)
        classes = int(classes)  # JSON knows no integers of numpy
    with new_folder(folder) as (partial, manifest):
        about, expected = _write_part(partial, "train", train)
        manifest |= {"name": name, "classes": classes, "parts": {"train": about}}
        if test is not None:
            manifest["parts"]["test"], _ = _write_part(partial, "test", test, expected)
    return stored(folder)


def stored(folder: str | Path, verify: bool = False) -> Federated:
    """Reads a folder that ``write`` made. Columns are memory-mapped: examples are read when they are wanted.

    Args:
      folder: the folder.
      verify: reads every column once and compares its checksum. The lengths of all files, and the checksums of ids,
        offsets and the manifest, are compared in any case.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such folder, or a file of it is missing.
      ValueError: a file is damaged or was cut off; names it.
    """
    folder = Path(folder)
    path = folder / MANIFEST
    check_is_file(path)
    with errors_name(path):
        manifest = parsed(path)
    parts = {part: _read_part(folder, part, about, verify) for part, about in manifest["parts"].items()}
    train = parts["train"]
    test = parts["test"] if "test" in parts else train.filter(np.zeros(train.num_examples, bool))
    return Federated(
        train, test, name=manifest["name"], classes=manifest["classes"], notes=tuple(manifest["notes"])
    )


# --- writing -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """A folder to fill and the manifest to complete; it gets its name when both are done and can be read, or not at all.

    Raises:
      FileExistsError: there is one of that name.
    """
    _check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's, which nobody else may read, not even under its last name.
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    partial.mkdir()
    manifest: dict[str, Any] = {"version": _VERSION}
    try:
        yield partial, manifest
        with (partial / MANIFEST).open("w", encoding="utf-8") as stream:
            json.dump(manifest | {"crc32": _checksum(manifest)}, stream, indent=1)
            stream.flush()
            os.fsync(stream.fileno())  # or the name could outlive a loss of power, and the contents not
        stored(partial)
        try:
            os.replace(partial, folder)
        except OSError:
            _check_free(folder)  # somebody else may have written it meanwhile
            raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _check_free(folder: Path) -> None:
    if folder.exists() or folder.is_symlink():
        raise FileExistsError(f"{folder} exists already and is not overwritten; name another folder.")


class _File:
    """A file that is written in pieces, with its length and checksum."""

    def __init__(self, path: Path):
        self.name, self.length, self.checksum = path.name, 0, 0
        self._stream = path.open("wb")

    def write(self, data: bytes | memoryview) -> None:
        self._stream.write(data)
        self.checksum = zlib.crc32(data, self.checksum)
        self.length += len(data)

    def close(self) -> dict[str, Any]:
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._stream.close()
        return {"file": self.name, "bytes": self.length, "crc32": self.checksum}


def _write_part(
    folder: Path, part: str, clients: Pairs, expected: dict[str, str] | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """A part's entry in the manifest, and its columns as ``describe`` has them; ``expected`` are those of another part."""
    files: dict[str, _File] = {}
    specs: dict[str, dict[str, Any]] = {}
    ids, sizes = [], []
    try:
        for client, raw in clients:
            columns, size = check_columns(raw, of=f" of client {client!r}")
            columns = {name: np.ascontiguousarray(column) for name, column in columns.items()}
            expected = describe(columns) if expected is None else expected
            if describe(columns) != expected:
                others = f"client {ids[0]!r} has" if ids else "those of the training part have"
                raise ValueError(
                    f"client {client!r} has columns {describe(columns)}, {others} {expected}; expected the same "
                    "names, dtypes and shapes. Convert them before writing."
                )
            if not files:
                for place, (name, column) in enumerate(columns.items()):
                    if 0 in column.shape[1:]:
                        raise ValueError(
                            f"column {name!r} of client {client!r} has rows of shape {list(column.shape[1:])}, expected at least "
                            "one number in each. Leave it out."
                        )
                    files[name] = _File(folder / f"{part}.{place}.bin")
                    specs[name] = {"dtype": spelled(column.dtype), "shape": list(column.shape[1:])}
            for name, column in columns.items():
                files[name].write(column.reshape(-1).view(np.uint8).data)
            ids.append(client)
            sizes.append(size)
        if not ids or expected is None:
            raise ValueError(f"{part} has no client, expected at least one.")
        names = as_ids("ids", ids)
        unique, counts = np.unique(names, return_counts=True)
        if len(unique) != len(names):
            raise ValueError(
                f"client {unique[counts > 1][0].item()!r} comes more than once, expected each id once."
            )
    finally:
        closed = {name: file.close() for name, file in files.items()}
    columns = {name: specs[name] | closed[name] for name in closed}
    return described(folder, part, columns, names, np.asarray(sizes, np.int64)), expected


def spelled(dtype: np.dtype) -> str:
    """A dtype as the manifest spells it: numpy's code, or the name where it has none, as of bfloat16."""
    return dtype.name if dtype.kind == "V" else dtype.str


def described(
    folder: Path, part: str, columns: dict[str, Any], ids: np.ndarray, sizes: np.ndarray
) -> dict[str, Any]:
    """A part's entry in the manifest, of its columns' entries; writes its ids and offsets."""
    about: dict[str, Any] = {"columns": columns}
    for key, array in (("ids", ids), ("offsets", offsets_of(sizes))):
        file = _File(folder / f"{part}.{key}.bin")
        file.write(np.ascontiguousarray(array).view(np.uint8).data)
        about[key] = {"dtype": array.dtype.str, "shape": [], **file.close()}
    return about


# --- reading -------------------------------------------------------------------------------------------------


def parsed(path: Path) -> dict[str, Any]:
    """The manifest, with every key that is read later; what is not as ``write`` leaves it is refused."""
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if manifest["version"] != _VERSION:
            raise ValueError(f"version is {manifest['version']}, expected {_VERSION}")
        parts = manifest["parts"]
        if (
            "train" not in parts
            or not set(parts) <= {"train", "test"}
            or not isinstance(manifest["name"], str)
        ):
            raise ValueError("it names no part 'train'")
        for about in parts.values():
            for entry in (about["ids"], about["offsets"], *about["columns"].values()):
                file, dtype, shape = entry["file"], entry["dtype"], entry["shape"]
                if not isinstance(file, str) or not file or "\0" in file or Path(file).name != file:
                    raise ValueError(f"{file!r} is no name of a file in the folder")
                sizes = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
                if not sizes or len(shape) >= _MOST_AXES or np.dtype(dtype).hasobject:
                    raise ValueError(f"{dtype}{shape} is no type of an array")
                if not isinstance(entry["bytes"], int) or not isinstance(entry["crc32"], int):
                    raise ValueError(f"{file} has {entry['bytes']!r} bytes, checksum {entry['crc32']!r}")
        notes = manifest.get("notes", [])
        if not isinstance(notes, list) or not all(isinstance(note, str) for note in notes):
            raise ValueError(f"notes are {notes!r}")
        classes = manifest["classes"]
        if classes is not None and (type(classes) is not int or classes < 0):
            raise ValueError(f"classes is {classes!r}")
        # Folders that were written before there was a checksum have none.
        if "crc32" in manifest and manifest["crc32"] != _checksum(manifest):
            raise ValueError("its checksum is not that of its contents: it was damaged or changed")
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"this is no manifest of a stored set: {error!r}") from error
    return {"notes": notes} | manifest


def _checksum(manifest: dict[str, Any]) -> int:
    """Of everything in it but its checksum, however it is laid out."""
    rest = {key: value for key, value in manifest.items() if key != "crc32"}
    return zlib.crc32(json.dumps(rest, sort_keys=True).encode())


def _read_part(folder: Path, part: str, about: dict[str, Any], verify: bool) -> ClientData:
    # Ids and offsets are read anyway, and nothing else would show that an id is another one.
    ids, offsets = (np.array(_mapped(folder, about[key], verify=True)) for key in ("ids", "offsets"))
    columns = {name: _mapped(folder, entry, verify) for name, entry in about["columns"].items()}
    with errors_name(folder / MANIFEST):
        return ClientData(columns, offsets, ids)


def _mapped(folder: Path, entry: dict[str, Any], verify: bool) -> np.ndarray:
    """A file as an array ``[rows, ...]`` of the type that the manifest says."""
    path = folder / entry["file"]
    check_is_file(path)
    dtype, shape, length = np.dtype(entry["dtype"]), tuple(entry["shape"]), path.stat().st_size
    row = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if length != entry["bytes"] or row == 0 or length % row:
        raise ValueError(
            f"{path} has {length} bytes, the manifest says {entry['bytes']} in rows of {row}: it was cut off or changed. "
            "Write the set again."
        )
    if verify and checksum_of(path) != entry["crc32"]:
        raise ValueError(f"{path} is damaged: its checksum is not that of the manifest. Write the set again.")
    rows = length // row
    if rows == 0:
        return np.zeros((0, *shape), dtype)  # nothing can be mapped
    return np.memmap(path, dtype, "r", shape=(rows, *shape))


def checksum_of(path: Path) -> int:
    """Of a whole file, read a piece at a time."""
    found = 0
    with path.open("rb") as stream:
        while piece := stream.read(_PIECE):
            found = zlib.crc32(piece, found)
    return found
