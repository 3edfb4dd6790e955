"""What a docstring says of a component: its first sentence, its parameters, its source."""

from __future__ import annotations

import re
import textwrap


def summary(text: str) -> str:
    """The first paragraph; of a long one, its first sentence or clause."""
    paragraph = " ".join(text.split("\n\n")[0].split())
    if len(paragraph) <= 120:
        return paragraph
    for end in re.finditer(r"(?<!\bal)[.;:](?= )", paragraph):
        before = paragraph[: end.end()]
        if before.count("(") == before.count(")"):  # a citation in brackets has stops of its own
            return before
    return paragraph


def arguments(text: str) -> dict[str, str]:
    """What the section Args, or Attributes, says of each parameter, on one line."""
    section = re.search(r"^(?:Args|Attributes|Parameters):\n((?:[ \t]+.*\n?|\n)*)", text, re.MULTILINE)
    if section is None:
        return {}
    lines = textwrap.dedent(section.group(1)).splitlines()
    found: dict[str, str] = {}
    current: list[str] = []
    for line in lines:
        match = re.match(r"(\*{0,2}\w+(?:, \w+)*)(?: \([^)]*\))?: (.*)", line)
        if match:
            current = [name.strip("*") for name in match.group(1).split(", ")]
            found |= dict.fromkeys(current, match.group(2).strip())
        elif line.strip() and line.startswith(" "):
            found |= {name: f"{found[name]} {line.strip()}" for name in current}
    return found


def source(text: str) -> str:
    """The paper: what follows ``Source:``, else what the first paragraph names in brackets, else the first citation."""
    explicit = re.search(r"^Source: ((?:.+\n?)+)", text, re.MULTILINE)
    if explicit:
        return " ".join(explicit.group(1).split())
    cited = re.search(r"[A-Z]\w+ et al\.?,? (?:\"[^\"]+\", )?\d{4}", " ".join(text.split()))
    paper = re.search(r"\(([^()]*\d{4}[^()]*)\)", text.split("\n\n")[0])
    if paper:
        return " ".join(paper.group(1).split())
    return cited.group(0) if cited else ""
