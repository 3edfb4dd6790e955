"""Docstrings for the reference: a section ``Example`` is one of examples, and so are doctests that stand alone."""

from __future__ import annotations

import re
import textwrap
from typing import Any

import griffe


class Examples(griffe.Extension):
    """Names sections as griffe knows them, so that doctests are shown as code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrites the docstring of an object that was just read."""
        if obj.docstring is not None:
            obj.docstring.value = "\n\n".join(
                _named(part) for part in re.split(r"\n\n+", obj.docstring.value)
            )


def _named(paragraph: str) -> str:
    if paragraph.startswith(">>>"):
        return "Examples:\n" + textwrap.indent(paragraph, "  ")
    return re.sub(r"^Example:$", "Examples:", paragraph, flags=re.MULTILINE)
