"""Symbols of a text and their ids: the tables behind ``fedjax_sim.data.text``."""

from __future__ import annotations

import functools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Split = Literal["characters", "spaces", "punctuation"]
_PUNCTUATION = re.compile(r"[\w']+|[.,!?;]")


def tokens_of(text: str, split: Split, lower: bool) -> Sequence[str]:
    """The pieces of a text, each of which is one token."""
    text = text.lower() if lower else text
    if split == "characters":
        return text
    return text.split() if split == "spaces" else _PUNCTUATION.findall(text)


def check_texts(name: str, texts: Any) -> list[str]:
    """The texts as a list.

    Raises:
      TypeError: one text alone, whose characters would be taken for texts, or something that is no text.
    """
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(
            f"{name} is {type(texts).__name__}, expected a list of str. Put one text into a list: [text]."
        )
    found = list(texts)
    for place, text in enumerate(found):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{place}] is {type(text).__name__}, expected str.")
    return found


@dataclass(frozen=True)
class Encoder:
    """Makes ids of texts: which symbols there are, and how a text falls into them.

    Ids: with ``markers``, 0 is padding, 1 begins and 2 ends a text, and the symbols follow in their order; without,
    they begin at 0. After them come the buckets for what is no symbol. ``size`` counts all, as
    ``models.char_lstm(encoder.size)`` wants.

    Attributes:
      symbols: characters or words, each once.
      split: ``"characters"``; ``"spaces"``, words are what stands between white space; ``"punctuation"``, runs of
        letters, digits and apostrophes are words, each of ``.,!?;`` is one, and everything else is left out (LEAF's
        rule for tweets).
      lower: capitals are made small first.
      markers: whether there are ids for padding, begin and end.
      oov_buckets: how many ids there are for tokens out of the vocabulary; a checksum of the token picks one. With 0,
        such a token is an error.

    Raises:
      TypeError: ``symbols`` is no sequence of str.
      ValueError: no symbol, one that comes twice, one that ``split`` could never make, or an unknown ``split``.

    Example:
      >>> import fedjax_sim as fs
      >>> encoder = fs.data.text.words(["the", "cat"])
      >>> encoder.size, encoder.encode("the dog"), encoder.decode([1, 3, 4, 2, 0])
      (6, array([3, 5], dtype=int32), 'the cat')
    """

    symbols: tuple[str, ...]
    split: Split = "spaces"
    lower: bool = False
    markers: bool = True
    oov_buckets: int = 1

    def __post_init__(self) -> None:
        if self.split not in ("characters", "spaces", "punctuation"):
            raise ValueError(
                f"split is {self.split!r}, expected one of 'characters', 'spaces', 'punctuation'."
            )
        if (
            isinstance(self.oov_buckets, bool)
            or not hasattr(self.oov_buckets, "__index__")
            or self.oov_buckets < 0
        ):
            raise ValueError(f"oov_buckets is {self.oov_buckets!r}, expected an integer, 0 or above.")
        symbols = tuple(check_texts("symbols", self.symbols))
        if not symbols:
            raise ValueError("symbols is empty, expected at least one.")
        seen = set()
        for symbol in symbols:
            if symbol in seen:
                raise ValueError(f"symbols holds {symbol!r} twice, expected each once.")
            if list(tokens_of(symbol, self.split, self.lower)) != [symbol]:
                raise ValueError(
                    f"symbols holds {symbol!r}, which split={self.split!r}, lower={self.lower} never makes of a text. "
                    "Count with the same settings: most_frequent(texts, size, split=..., lower=...)."
                )
            seen.add(symbol)
        object.__setattr__(self, "symbols", symbols)

    @property
    def size(self) -> int:
        """Number of ids, all kinds together."""
        return self._first + len(self.symbols) + self.oov_buckets

    @property
    def pad(self) -> int | None:
        """Id of padding."""
        return 0 if self.markers else None

    @property
    def begin(self) -> int | None:
        """Id that begins a text."""
        return 1 if self.markers else None

    @property
    def end(self) -> int | None:
        """Id that ends a text."""
        return 2 if self.markers else None

    @property
    def oov(self) -> tuple[int, ...]:
        """Ids of tokens out of the vocabulary."""
        return tuple(range(self.size - self.oov_buckets, self.size))

    @property
    def no_words(self) -> tuple[int, ...]:
        """Ids of padding, begin, end and all buckets: what ``metrics.accuracy(leave_out=...)`` leaves out."""
        return (*range(self._first), *self.oov)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text's tokens, ``int32[tokens]``, without begin and end.

        Raises:
          TypeError: ``text`` is no str.
          ValueError: a token that is no symbol, where there is no bucket for it.
        """
        if not isinstance(text, str):
            raise TypeError(f"text is {type(text).__name__}, expected str.")
        known = self._ids
        return np.fromiter(
            (
                known[token] if token in known else self._bucket(token)
                for token in tokens_of(text, self.split, self.lower)
            ),
            np.int32,
        )

    def decode(self, ids: Iterable[int]) -> str:
        """The text of ids; padding, begin and end are left out, and a token out of the vocabulary is U+FFFD.

        Raises:
          ValueError: an id that is none.
        """
        found = []
        for i in map(int, ids):
            if not 0 <= i < self.size:
                raise ValueError(f"ids hold {i}, expected 0 to {self.size - 1}.")
            if i >= self._first:
                place = i - self._first
                found.append(
                    self.symbols[place] if place < len(self.symbols) else "\N{REPLACEMENT CHARACTER}"
                )
        return ("" if self.split == "characters" else " ").join(found)

    @property
    def _first(self) -> int:
        return 3 if self.markers else 0

    @functools.cached_property
    def _ids(self) -> dict[str, int]:
        return {symbol: self._first + place for place, symbol in enumerate(self.symbols)}

    def _bucket(self, token: str) -> int:
        if not self.oov_buckets:
            raise ValueError(
                f"the text holds {token!r}, which is none of the {len(self.symbols)} symbols, and there is no bucket for "
                "others. Give oov_buckets=1, or other symbols."
            )
        checksum = zlib.crc32(token.encode("utf-8", "surrogatepass"))
        return self.size - self.oov_buckets + checksum % self.oov_buckets
