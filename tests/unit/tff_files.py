"""Files as TensorFlow Federated has them, small; examples are serialised by hand, not by the code under test."""

from __future__ import annotations

import lzma
import sqlite3
import struct
from contextlib import closing
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def varint(number: int) -> bytes:
    """Seven bits a byte, the lowest first; negative numbers as 64 bits of two's complement."""
    number %= 1 << 64
    found = b""
    while number >= 128:
        found += bytes([number % 128 + 128])
        number //= 128
    return found + bytes([number])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(packed: bool = True, **features: Any) -> bytes:
    """A ``tf.train.Example``: text and bytes as bytes, floats as float32, integers as int64."""
    entries = b""
    for name, values in features.items():
        values = (
            np.ravel(values).tolist()
            if isinstance(values, np.ndarray)
            else values
            if isinstance(values, list)
            else [values]
        )
        if isinstance(values[0], str | bytes):
            raw = [value.encode() if isinstance(value, str) else value for value in values]
            feature = field(1, b"".join(field(1, value) for value in raw))
        elif isinstance(values[0], float):
            parts = [struct.pack("<f", value) for value in values]
            feature = field(
                2, field(1, b"".join(parts)) if packed else b"".join(b"\x0d" + part for part in parts)
            )
        else:
            parts = [varint(value) for value in values]
            feature = field(
                3, field(1, b"".join(parts)) if packed else b"".join(b"\x08" + part for part in parts)
            )
        entries += field(1, field(1, name.encode()) + field(2, feature))
    return field(1, entries)


Splits = dict[str, dict[str, list[bytes]]]
"""Split to client to serialised examples."""


def write_sqlite(path: Path, splits: Splits, index: bool = True, **sizes: Any) -> Path:
    """TFF's two tables; ``sizes`` replaces what the metadata say of a client, ``None`` leaves it out."""
    place = path.with_suffix("") if path.suffix == ".lzma" else path
    with closing(sqlite3.connect(place)) as connection, connection:
        connection.execute(
            "CREATE TABLE examples (split_name TEXT NOT NULL, client_id TEXT NOT NULL, serialized_example_proto BLOB NOT NULL)"
        )
        connection.execute(
            "CREATE TABLE client_metadata (client_id TEXT NOT NULL, split_name TEXT NOT NULL, num_examples INTEGER NOT NULL)"
        )
        if index:
            connection.execute("CREATE INDEX by_client ON examples (split_name, client_id)")
        for split, clients in splits.items():
            for client, examples in clients.items():
                connection.executemany(
                    "INSERT INTO examples VALUES (?, ?, ?)", [(split, client, raw) for raw in examples]
                )
                if sizes.get(client, 0) is not None:
                    row = client, split, sizes.get(client, len(examples))
                    connection.execute("INSERT INTO client_metadata VALUES (?, ?, ?)", row)
    if path.suffix == ".lzma":
        path.write_bytes(lzma.compress(place.read_bytes(), lzma.FORMAT_ALONE))
        place.unlink()
    return path


def write_hdf5(path: Path, clients: dict[str, dict[str, Any]], **options: Any) -> Path:
    """Groups ``examples/<client>/<field>``; lists of text as strings of any length."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_group("examples")
        for client, fields in clients.items():
            group = file.create_group(f"examples/{client}")
            for name, values in fields.items():
                if isinstance(values, list):
                    group.create_dataset(name, data=values, dtype=h5py.string_dtype())
                else:
                    group.create_dataset(name, data=values, **options)
    return path


def digits(*labels: int) -> dict:
    pixels = np.zeros((len(labels), 28, 28), np.float32) + np.array(labels)[:, None, None]
    return {"pixels": pixels.astype(np.float32), "label": np.array(labels, np.int32)}


def windows(texts: list[str]) -> dict[str, np.ndarray]:
    """Two letters a row, so that a client has other rows than texts."""
    joined = "".join(texts)
    rows = [[ord(joined[at]), ord(joined[at + 1])] for at in range(0, len(joined) - 1, 2)]
    return {"x": np.array(rows, np.int32), "y": np.array(rows, np.int32)[:, ::-1]}
