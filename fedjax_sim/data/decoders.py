"""Decoders: what makes arrays of a column that holds no numbers, such as text or encoded images.

Each factory returns a function from a list of values to an array ``[rows, ...]``, or to several by new name, to give to a
source of files as ``decode={"text": decoders.padded_words(...)}``. In a configuration it is a table with a name:
``decode.text = { name = "padded_words", ... }``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data import text
from fedjax_sim.data._label_values import check_values, numbered_from_0
from fedjax_sim.data._vocabulary import most_frequent
from fedjax_sim.data.formats import _pictures

__all__ = ["Decoder", "labels", "next_characters", "next_words", "padded_words", "pictures"]


class Decoder(Protocol):
    """Values of a column, such as those of one client or of one file, to an array ``[rows, ...]`` or several by name."""

    def __call__(self, values: list, /) -> Any: ...


Decode = Mapping[str, Decoder]
"""By old name: what makes arrays of a column."""


def pictures(
    size: Sequence[int] | None = None, colours: Literal["as stored", "grey", "rgb"] = "as stored"
) -> Decoder:
    """Images of one shape, of PNG, JPEG or other encoded images, or of arrays that differ in size.

    Args:
      size: height and width, to which each is resized (bilinear, whatever its proportions); by default all have one size
        already.
      colours: ``"grey"`` gives ``uint8[rows, height, width]``, ``"rgb"`` gives ``uint8[rows, height, width, 3]``; by default
        what the image has.

    Raises:
      ValueError: ``size`` is no pair of integers of at least 1, or other ``colours``; at the call, an image that is damaged,
        or images of several shapes.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> decode = fs.data.decoders.pictures(size=[8, 6], colours="rgb")
      >>> decode([np.zeros((3, 5), np.uint8), np.zeros((20, 9), np.uint8)]).shape
      (2, 8, 6, 3)
    """
    form = _pictures.form(size, colours)

    def decode(values: list, /) -> np.ndarray:
        return _pictures.pictures(values, "the column", *form)

    return decode


def labels(values: Sequence[float | str]) -> Decoder:
    """Labels that are not numbered from 0, such as -1 and 1 or names: their places in a list, ``int32[rows]``.

    Args:
      values: what they may be: numbers, or text; the first becomes 0, the next 1, and so on.

    Raises:
      TypeError, ValueError: no list of at least two different numbers or texts; at the call, a label that is not in it.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.decoders.labels(["cat", "dog"])(["dog", "cat", "dog"])
      array([1, 0, 1], dtype=int32)
    """
    check_values(values)
    return functools.partial(numbered_from_0, values=list(values), what="the column")


def padded_words(vocabulary: str | Path | Sequence[str], length: int, words: int = 10_000) -> Decoder:
    """One row of ids for each text, as ``data.text.padded``: ``int32[texts, length]``, for labels of whole texts.

    Args:
      vocabulary: words, most frequent first, or a JSON file of counts, ``{word: how often}``.
      length: words of a text; what is longer is cut off.
      words: how many of the most frequent are kept; all others have one id.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is none of counts, or a number is no integer of at least 1.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.decoders.padded_words(["to", "be"], length=3)(["to be or not", "be"]).tolist()
      [[3, 4, 5], [4, 0, 0]]
    """
    checks.positive_int("length", length)
    return functools.partial(text.padded, encoder=_words(vocabulary, words), length=length)


def next_words(vocabulary: str | Path | Sequence[str], length: int = 20, words: int = 10_000) -> Decoder:
    """One window for each text, for next-word prediction: columns ``x`` and ``y``, ``int32[texts, length]`` each.

    As ``data.text.next_token`` with ``truncate=True``.

    Args:
      vocabulary: words, most frequent first, or a JSON file of counts, ``{word: how often}``.
      length: words of a text; what is longer is cut off.
      words: how many of the most frequent are kept; all others have one id.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is none of counts, or a number is no integer of at least 1.

    Example:
      >>> import fedjax_sim as fs
      >>> columns = fs.data.decoders.next_words(["to", "be"], length=4)(["to be or not"])
      >>> columns["x"].tolist(), columns["y"].tolist()
      ([[1, 3, 4, 5]], [[3, 4, 5, 5]])
    """
    checks.positive_int("length", length)
    return functools.partial(text.next_token, encoder=_words(vocabulary, words), length=length, truncate=True)


def next_characters(length: int = 80, vocabulary: str = "tff") -> Decoder:
    """Windows of a client's texts, for next-character prediction, as ``data.text.next_token``: columns ``x`` and ``y``.

    A text gives as many windows as it fills, so this is for ``fs.data.tff``, whose sources allow other rows than values.

    Args:
      length: characters of a window.
      vocabulary: ``"tff"``, ``"leaf"`` or the characters themselves; see ``data.text.characters``.

    Raises:
      ValueError: ``length`` is no integer of at least 1, or a bad vocabulary.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.decoders.next_characters(length=3, vocabulary="abc")(["cab", "b"])["x"].tolist()
      [[1, 5, 3], [4, 0, 0], [1, 4, 0]]
    """
    checks.positive_int("length", length)
    return functools.partial(text.next_token, encoder=text.characters(vocabulary), length=length)


def _words(vocabulary: str | Path | Sequence[str], words: int) -> text.Encoder:
    checks.positive_int("words", words)
    return text.words(most_frequent(vocabulary, words))
