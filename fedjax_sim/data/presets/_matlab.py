"""MATLAB's files of version 5, as far as cell arrays of real matrices.

SciPy reads far more of the format, but follows cells inside cells without end, so that a file made for it crashes Python. Here
everything has a bound, and functions, objects and whatever else is no matrix of numbers is refused unread.
"""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

_HEADER = 128
_LARGEST = 1 << 26  # bytes of one variable
_MATRIX, _COMPRESSED, _UINT32, _INT32, _INT8 = 14, 15, 6, 5, 1
_DTYPES = {
    1: "<i1",
    2: "<u1",
    3: "<i2",
    4: "<u2",
    5: "<i4",
    6: "<u4",
    7: "<f4",
    9: "<f8",
    12: "<i8",
    13: "<u8",
}
"""Types of data elements."""
_CELL, _NUMERIC = 1, range(6, 16)  # classes of arrays
_COMPLEX = 8


def read_cells(path: Path) -> dict[str, list[np.ndarray]]:
    """The cell arrays of a file, by name: their matrices ``[rows, columns]`` in MATLAB's order, in the type of storage.

    Other variables are left out. Source: The MathWorks, MAT-File Format, version 5.

    Raises:
      ValueError: the file is of another kind, damaged, or has a cell that is no real matrix. Combine with ``errors_name``.
    """
    content = memoryview(path.read_bytes())
    if len(content) < _HEADER or bytes(content[124:128]) != b"\x00\x01IM":
        raise ValueError("this is no MATLAB file of version 5 in little-endian order, or it was cut off.")
    found: dict[str, list[np.ndarray]] = {}
    for kind, data in _elements(content[_HEADER:]):
        if kind == _COMPRESSED:
            kind, data = _only(_elements(_decompressed(data)))
        if kind != _MATRIX:
            raise ValueError(f"a variable is a data element of type {kind}, expected {_MATRIX}, a matrix.")
        array, (_, shape, name), body = _header(data)
        if array != _CELL:
            continue
        if name in found:
            raise ValueError(f"variable {name!r} is there twice, expected once.")
        found[name] = [_matrix(f"{name}{{{number}}}", *cell) for number, cell in enumerate(body, start=1)]
        if len(found[name]) != math.prod(shape):
            raise ValueError(
                f"variable {name!r} has {len(found[name])} cells, its header says {list(shape)}; expected as many."
            )
    return found


def _elements(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Type and bytes of one data element after the other."""
    place = 0
    while place < len(data):
        if len(data) - place < 8:
            raise ValueError("a data element was cut off.")
        kind, length = struct.unpack_from("<II", data, place)
        start = place + 8
        if kind >> 16:  # a short one, inside its own tag
            kind, length, start = kind & 0xFFFF, kind >> 16, place + 4
        stop = start + length
        if stop > len(data) or (start == place + 4 and length > 4):
            raise ValueError(f"a data element has {length} bytes, but the file ends before: it was cut off.")
        yield kind, data[start:stop]
        place = stop if kind == _COMPRESSED else stop + -stop % 8


def _only(elements: Iterator[tuple[int, memoryview]]) -> tuple[int, memoryview]:
    found = list(elements)
    if len(found) != 1:
        raise ValueError(f"there are {len(found)} data elements, expected one.")
    return found[0]


def _decompressed(data: memoryview) -> memoryview:
    stream = zlib.decompressobj()
    try:
        content = stream.decompress(data, _LARGEST)
    except zlib.error as error:
        raise ValueError(f"compressed data are damaged: {error}") from error
    if not stream.eof:
        raise ValueError(f"compressed data were cut off, or are of more than {_LARGEST} bytes.")
    return memoryview(content)


def _header(
    data: memoryview,
) -> tuple[int, tuple[int, tuple[int, ...], str], Iterator[tuple[int, memoryview]]]:
    """An array's class; its flags, shape and name; and its elements."""
    body = _elements(data)
    kinds, parts = zip(*(next(body, (0, memoryview(b""))) for _ in range(3)), strict=True)
    flags, shape, name = parts
    if kinds != (_UINT32, _INT32, _INT8) or len(flags) != 8 or len(shape) % 4:
        raise ValueError("a matrix begins with something else than flags, dimensions and a name.")
    return (
        flags[0],
        (flags[1], struct.unpack(f"<{len(shape) // 4}i", shape), bytes(name).decode("latin-1")),
        body,
    )


def _matrix(name: str, kind: int, data: memoryview) -> np.ndarray:
    if kind != _MATRIX:
        raise ValueError(f"{name} is a data element of type {kind}, expected {_MATRIX}, a matrix.")
    array, (flags, shape, _), body = _header(data)
    if array not in _NUMERIC or flags & _COMPLEX or len(shape) != 2 or min(shape) < 0:
        raise ValueError(
            f"{name} is an array of class {array} and shape {list(shape)}, expected a real matrix, class 6 to 15; cells in "
            "cells, text, functions and objects are not read."
        )
    stored, values = _only(body)
    dtype = np.dtype(_DTYPES.get(stored, "V1"))
    if dtype.kind == "V" or len(values) != math.prod(shape) * dtype.itemsize:
        raise ValueError(f"{name} has {len(values)} bytes of type {stored}, expected {list(shape)} numbers.")
    return np.frombuffer(values, dtype).reshape(shape, order="F")
