"""One file of LEAF's JSON: parsed, checked, and each user's lists as arrays."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fedjax_sim.data._files import errors_name, parse_json, read_text

Convert = Callable[[str, str, Any], Any]
"""``(user, column, JSON's value)`` to an array ``[examples, ...]``, or a list; raises ValueError that names the user."""

_KEYS = ("users", "num_samples", "user_data")


class User(NamedTuple):
    """One user's examples, and the file that they came from.

    Attributes:
      user: the id.
      columns: ``x`` and ``y``, as they were converted: with ``numbers``, ``float32[examples, ...]`` or ``int32``, and
        ``int32[examples, ...]``.
      file: for messages.
    """

    user: str
    columns: dict[str, Any]
    file: Path


def read_file(file: Path, convert: Convert) -> list[User]:
    """The users of one file, in its order, their columns converted.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: something is wrong with it; begins with its name.
    """
    with errors_name(file):
        content = parse_json(read_text(file))
        if not isinstance(content, dict):
            raise ValueError(f"the file holds a {type(content).__name__}, expected an object with {_KEYS}.")
        for key in _KEYS:
            if key not in content:
                raise ValueError(f"key {key!r} is missing, the file has {', '.join(content) or 'none'}.")
        users, sizes, user_data = (content[key] for key in _KEYS)
        _check_users(users, sizes, user_data)
        return [
            User(user, _columns(user, user_data[user], size, convert), file)
            for user, size in zip(users, sizes, strict=True)
        ]


def _check_users(users: Any, sizes: Any, user_data: Any) -> None:
    for name, value, kind in (
        ("users", users, list),
        ("num_samples", sizes, list),
        ("user_data", user_data, dict),
    ):
        if not isinstance(value, kind):
            expected = "a list" if kind is list else "an object"
            raise ValueError(f"{name} is {type(value).__name__}, expected {expected}.")
    if not users:
        raise ValueError("users is empty, expected at least one user.")
    if len(users) != len(sizes):
        raise ValueError(f"num_samples has {len(sizes)} entries for {len(users)} users, expected as many.")
    seen = set()
    for user in users:
        if not isinstance(user, str):
            raise ValueError(f"users holds {user!r}, expected text.")
        if user.endswith("\0"):  # an array of names would drop it
            raise ValueError(f"users holds {user!r}, which ends with a zero byte. Rename it.")
        if user in seen:
            raise ValueError(f"users names {user!r} twice, expected once.")
        if user not in user_data:
            raise ValueError(
                f"users names {user!r}, but user_data lacks it. Remove the name, or add the data."
            )
        seen.add(user)
    extra = [user for user in user_data if user not in seen]
    if extra:
        raise ValueError(
            f"user_data holds {extra[0]!r}, but users does not name it. Add the name, or remove the data."
        )


def _columns(user: str, content: Any, size: Any, convert: Convert) -> dict[str, Any]:
    if not isinstance(content, dict) or not {"x", "y"} <= content.keys():
        has = ", ".join(content) or "nothing" if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"user {user!r} has {has}, expected an object with 'x' and 'y'.")
    columns = {name: convert(user, name, content[name]) for name in ("x", "y")}
    for name, column in columns.items():
        if len(column) != size:
            raise ValueError(
                f"user {user!r} has {len(column)} rows of {name!r}, but num_samples says {size!r}; expected as many."
            )
    return columns


def as_list(user: str, name: str, values: Any) -> list[Any]:
    """Raises ValueError for what is no list."""
    if not isinstance(values, list):
        raise ValueError(f"user {user!r}: {name} is {type(values).__name__}, expected a list.")
    return values


def numbers(user: str, name: str, values: Any) -> np.ndarray:
    """A user's column: ``int32`` if all is written as integers, otherwise ``float32``; the labels ``y`` are ``int32``."""
    array = _numbers(user, name, values)
    if name != "y":
        return array
    wrong = (np.rint(array) != array) | (np.abs(array.astype(np.float64)) >= 2**31)
    if wrong.any():
        raise ValueError(
            f"user {user!r}: y holds {array[wrong][0]}, expected whole numbers of 32 bits, the labels."
        )
    return array.astype(np.int32)


def _has_booleans(values: list[Any]) -> bool:
    """Whether true or false is among numbers, in lists of any depth; to numpy they are 1 and 0."""
    kinds = set(map(type, values))
    return bool in kinds or (list in kinds and any(_has_booleans(v) for v in values if isinstance(v, list)))


def _numbers(user: str, name: str, values: Any) -> np.ndarray:
    values = as_list(user, name, values)
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(
            f"user {user!r}: the rows of {name} are of different lengths, expected one. Pad them."
        ) from error
    if array.dtype.kind == "U":
        raise ValueError(
            f"user {user!r}: {name} holds text, such as {array.flat[0].item()!r}, expected numbers. LEAF's "
            "texts are read by fs.data.shakespeare and fs.data.sent140, its images by fs.data.celeba; write others as "
            "integers, with the help of fs.data.text."
        )
    if array.dtype.kind not in "iuf" or _has_booleans(values):
        raise ValueError(
            f"user {user!r}: {name} holds something that is no number (null, true, false, an object, an integer of "
            "more than 64 bits), expected numbers alone."
        )
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array.astype(np.float32)
        finite = np.isfinite(array)
        if not finite.all():
            row = int(np.argwhere(~finite)[0, 0])
            raise ValueError(
                f"user {user!r}: {name} holds NaN, infinity, or a number too large for float32 at row {row}."
            )
        return array
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise ValueError(
            f"user {user!r}: {name} holds integers from {array.min()} to {array.max()}, expected int32."
        )
    return array.astype(np.int32)
