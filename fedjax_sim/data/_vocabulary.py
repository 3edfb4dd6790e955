"""Vocabularies as lists, or as files of counts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fedjax_sim.data._files import errors_name, parse_json, read_text


def most_frequent(known: str | Path | Sequence[str], size: int) -> list[str]:
    """The first entries of a list; or, of a JSON file of counts, the most frequent, equal ones in the alphabet's order.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no file of counts.
    """
    return (_counted(Path(known)) if isinstance(known, str | Path) else list(known))[:size]


def _counted(path: Path) -> list[str]:
    with errors_name(path):
        counts = parse_json(read_text(path))
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            raise ValueError('this is no file of counts, expected JSON: {"word": 123, ...}.')
        return sorted(counts, key=lambda word: (-counts[word], word))
