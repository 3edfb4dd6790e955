"""Files of plays: who speaks, and what."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from fedjax_sim.data._files import errors_name, parse_json, read_text

_PARAGRAPHS = re.compile(r"\n{2,}")


class Role(NamedTuple):
    """A speaking role.

    Attributes:
      id: ``"PLAY/ROLE"``, or the speaker's name alone where the file tells no play.
      speeches: in the order of the play; lines are parted by newlines.
    """

    id: str
    speeches: list[str]


def read_roles(file: Path) -> list[Role]:
    """The roles of a ``.jsonl`` or ``.jsonl.gz`` file, one object ``{play, role, speeches}`` a line, in its order.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: something is wrong with it; names the file and the line.
    """
    with errors_name(file):
        roles: dict[str, Role] = {}
        # Not splitlines: JSON's text may hold U+2028, which ends no line of the file.
        for number, line in enumerate(read_text(file).split("\n"), 1):
            if not line.strip():
                continue
            try:
                role = _role(line)
                if role.id in roles:
                    raise ValueError(f"the role {role.id!r} is there twice, expected one line for each.")
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
            roles[role.id] = role
        return list(roles.values())


def read_speakers(file: Path) -> list[Role]:
    """The speakers of a ``.txt`` file: paragraphs that begin with a line ``SPEAKER:``, parted by empty lines.

    Speakers stand in the order of their first words. One without a line after the name has said nothing there.

    Raises:
      FileNotFoundError, IsADirectoryError: there is no such file.
      ValueError: something is wrong with it; names the file and the paragraph.
    """
    with errors_name(file):
        speeches: dict[str, list[str]] = {}
        for number, paragraph in enumerate(_PARAGRAPHS.split(read_text(file).strip("\n")), 1):
            first, _, said = paragraph.partition("\n")
            name = first.strip().removesuffix(":")
            if not first.rstrip().endswith(":") or not name:
                raise ValueError(
                    f"paragraph {number} begins with {first[:60]!r}, expected the speaker, such as 'ROMEO:'."
                )
            speeches.setdefault(name, []).extend([said] if said else [])
        return [Role(name, said) for name, said in speeches.items()]


def _role(line: str) -> Role:
    content = parse_json(line)
    if not isinstance(content, dict):
        raise ValueError(
            f"it holds a {type(content).__name__}, expected an object with play, role and speeches."
        )
    for key, kind in (("play", str), ("role", str), ("speeches", list)):
        if key not in content:
            raise ValueError(f"key {key!r} is missing, it has {', '.join(content) or 'none'}.")
        if not isinstance(content[key], kind):
            expected = "text" if kind is str else "a list of texts"
            raise ValueError(f"{key} is {type(content[key]).__name__}, expected {expected}.")
    for place, speech in enumerate(content["speeches"]):
        if not isinstance(speech, str):
            raise ValueError(f"speeches[{place}] is {type(speech).__name__}, expected text.")
    if content["role"].endswith("\0"):  # an array of names would drop it
        raise ValueError(f"role is {content['role']!r}, which ends with a zero byte. Rename it.")
    return Role(f"{content['play']}/{content['role']}", content["speeches"])
