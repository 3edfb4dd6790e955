"""TensorFlow's record files, without TensorFlow: framing and checksums.

A record is its length (8 bytes), the length's checksum (4), the data and their checksum (4), little-endian. Source: TensorFlow,
guide "TFRecord and tf.train.Example"; the checksum is CRC-32C (RFC 3720, appendix B.4), rotated and shifted by a constant.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_BLOCK = 256  # bytes whose checksums are computed side by side
_BATCH = 1 << 24  # bytes that are checked at a time
_MASK = 0xA282EAD8


def read_tfrecord(path: Path) -> list[bytes]:
    """The records of a file, in its order, every checksum compared.

    Raises:
      ValueError: the file was cut off, or a length or data are damaged; names the record. Combine with ``errors_name``.
    """
    content = path.read_bytes()
    records: list[bytes] = []
    waiting: list[tuple[bytes, int]] = []
    place = size = 0
    while place < len(content):
        if len(content) - place < 12:
            raise ValueError(f"record {len(records)} was cut off, expected a whole file.")
        head = content[place : place + 8]
        length, checksum = struct.unpack_from("<QI", content, place)
        if _masked(_of_bytes(head)) != checksum:
            raise ValueError(f"the length of record {len(records)} is damaged: its checksum is another.")
        stop = place + 12 + length
        if stop + 4 > len(content):
            raise ValueError(f"record {len(records)} was cut off, expected a whole file.")
        records.append(content[place + 12 : stop])
        waiting.append((records[-1], struct.unpack_from("<I", content, stop)[0]))
        size += length
        place = stop + 4
        if size >= _BATCH or place == len(content):
            _check(waiting, len(records) - len(waiting))
            waiting, size = [], 0
    return records


def _check(waiting: list[tuple[bytes, int]], first: int) -> None:
    found = crc32c([record for record, _ in waiting])
    for number, ((_, expected), checksum) in enumerate(zip(waiting, found, strict=True), start=first):
        if _masked(checksum) != expected:
            raise ValueError(f"record {number} is damaged: its checksum is another.")


def _masked(checksum: int) -> int:
    return (((checksum >> 15) | (checksum << 17)) + _MASK) & 0xFFFFFFFF


def crc32c(records: Sequence[bytes]) -> list[int]:
    """CRC-32C of each record.

    A checksum's state is linear in the data, so the states of all blocks are computed side by side, and then those of each
    record are joined. The state begins with all bits set, which is a state of 0 before data whose first four bytes are
    inverted; and zeros in front of the data do not change a state of 0, so they fill the first block up.
    """
    counts = [-(-len(record) // _BLOCK) for record in records]
    data = np.zeros(sum(counts) * _BLOCK, np.uint8)
    stop = 0
    for record, count in zip(records, counts, strict=True):
        stop += count * _BLOCK
        start = stop - len(record)
        data[start:stop] = np.frombuffer(record, np.uint8)
        data[start : min(start + 4, stop)] ^= 0xFF
    states = np.zeros(len(data) // _BLOCK, np.uint32)
    for column in np.ascontiguousarray(data.reshape(-1, _BLOCK).T):
        states = _after_a_byte(states ^ column)
    parts, found, place = states.tolist(), [], 0
    for record, count in zip(records, counts, strict=True):
        state = 0
        for part in parts[place : place + count]:
            first, second, third, fourth = state.to_bytes(4, "little")
            state = _SKIP[0][first] ^ _SKIP[1][second] ^ _SKIP[2][third] ^ _SKIP[3][fourth] ^ part
        found.append(state ^ 0xFFFFFFFF if len(record) >= 4 else _of_bytes(record))
        place += count
    return found


def _of_bytes(record: bytes) -> int:
    """CRC-32C of a few bytes."""
    state = 0xFFFFFFFF
    for byte in record:
        state = _BYTES[(state ^ byte) & 0xFF] ^ (state >> 8)
    return state ^ 0xFFFFFFFF


def _after_a_byte(states: np.ndarray) -> np.ndarray:
    return _TABLE[states & 0xFF] ^ (states >> 8)


def _table() -> np.ndarray:
    """What eight zero bits make of each byte, ``uint32[256]``."""
    states = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        states = (states >> 1) ^ np.where(states & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    return states


def _skip() -> list[list[int]]:
    """What a block of zeros makes of each byte of a state, by the byte's place."""
    states = (np.arange(256, dtype=np.uint32) << (8 * np.arange(4, dtype=np.uint32))[:, None]).astype(
        np.uint32
    )
    for _ in range(_BLOCK):
        states = _after_a_byte(states)
    return states.tolist()


_TABLE = _table()
_BYTES: list[int] = _TABLE.tolist()
_SKIP = _skip()
