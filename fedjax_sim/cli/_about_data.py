"""What is known about a data set, in words: one row of a table for each thing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_DIVERGENCE = "between a client's labels and all labels: total variation distance, mean weighted by examples"


def rows(about: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Name and text of every row, of what ``experiment.describe_data`` returns."""
    for name, value in about.items():
        if name == "test examples":
            yield name, f"{value:,} of {_clients(about['test clients'])}"
        elif name == "classes":
            yield name, "not known" if value is None else f"{value:,}"
        elif name == "columns":
            yield (
                name,
                ", ".join(f"{column}: {kind['dtype']}{kind['shape']}" for column, kind in value.items()),
            )
        elif name == "sample":
            yield name, f"{value:,} of {_clients(about['clients'])}, drawn at random"
        elif name.startswith("divergence"):
            which = (
                _DIVERGENCE.replace("all labels", "the sample's labels") if "sample" in name else _DIVERGENCE
            )
            yield name, f"{value:.4f} {which}"
        elif name == "notes":
            yield from (("note", note) for note in value)
        elif name != "test clients":
            yield name, _text(value)


def _clients(count: int) -> str:
    return f"{count:,} client{'s' * (count != 1)}"


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"{value['smallest']:,} to {value['largest']:,}, median {value['median']:,g}"
    if isinstance(value, list):
        return "  ".join(map(_text, value))  # numbers have commas of their own
    return f"{value:,}" if isinstance(value, int) else str(value)
