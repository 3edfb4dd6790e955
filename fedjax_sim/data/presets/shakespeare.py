"""Shakespeare by speaking role: the field's set of next-character prediction."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data import text
from fedjax_sim.data._files import errors_name
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats._leaf_file import User, as_list
from fedjax_sim.data.formats._leaf_folder import Users, join_users, read_users
from fedjax_sim.data.presets._local import present
from fedjax_sim.data.presets._plays import Role, read_roles, read_speakers

_ORIGIN = "LEAF (the repository TalwalkarLab/leaf, data/shakespeare, preprocess.sh), or write the plays as JSON lines"


def shakespeare(
    path: str | Path,
    *,
    vocabulary: str = "tff",
    oov_buckets: int | None = None,
    length: int = 80,
    join: bool = False,
    test_fraction: float | None = None,
    min_lines: int = 2,
) -> Federated:
    """Plays with their speaking roles as clients, to predict the next character.

    What is read depends on the name:

    - ``.jsonl``, ``.jsonl.gz``: one role a line, ``{"play": ..., "role": ..., "speeches": [...]}``, the lines of a
      speech parted by newlines. Ids are ``"PLAY/ROLE"``.
    - ``.txt``: paragraphs that begin with ``SPEAKER:``, as in char-rnn's ``tinyshakespeare``. Ids are the speakers.
    - ``.json``, ``.json.gz``, or a folder: LEAF's JSON, each example a text of ``length`` characters and the one that
      follows. Parts and files are those of ``leaf``.

    Columns: ``x`` is ``int32[examples, length]``, ``y`` is ``int32[examples, length]``, the next character at every
    position, -1 where there is none to predict; of LEAF's examples only the last position has one. ``classes`` is the
    size of the vocabulary, which ``models.char_lstm`` takes from the data in a configuration.

    Each client is divided in time. Of a role's lines, over all its speeches, the last ``test_fraction``, rounded up,
    are for the test and the others for training, at least one on either side; a speech across the border is cut
    between two lines. Of LEAF's examples the first ones are for training, and as they overlap, the test part begins
    ``length - 1`` examples after them, as in LEAF's own division by sample; what lies between is in neither.

    Args:
      path: a file or a folder.
      vocabulary: ``"tff"``, ``"leaf"``, or the characters themselves; see ``text.characters``.
      oov_buckets: ids for other characters; see ``text.characters``.
      length: characters of a window.
      join: a role's speeches, with their markers, are one text, which leaves fewer windows that are mostly padding;
        see ``text.next_token``. Not for LEAF's JSON.
      test_fraction: in (0, 1); 0.2 where it is not given. Not for a folder that has a test part.
      min_lines: roles with fewer lines are left out, as in McMahan et al. 2017, and ``notes`` says how many. Not for
        LEAF's JSON.

    Raises:
      FileNotFoundError: there is no such file or folder.
      ValueError: another kind of name, a damaged file, a line that is no such object, a character that is not in the
        vocabulary; begins with the file's name. Also for arguments out of range.

    Source: McMahan et al. 2017 (arXiv 1602.05629), section 3; Caldas et al. 2018, LEAF (arXiv 1812.01097).

    Example:
      >>> import json, pathlib, tempfile, fedjax_sim as fs
      >>> roles = [{"play": "Hamlet", "role": "BERNARDO", "speeches": ["Who's there?", "Long live the king!"]},
      ...          {"play": "Hamlet", "role": "GHOST", "speeches": ["Mark me.", "Alas,\\npoor ghost!"]}]
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     file = pathlib.Path(folder, "roles.jsonl")
      ...     _ = file.write_text("\\n".join(map(json.dumps, roles)))
      ...     data = fs.data.shakespeare(file, length=20)
      >>> data.train.ids.tolist(), data.train.sizes, data.test.sizes, data.classes
      (['Hamlet/BERNARDO', 'Hamlet/GHOST'], array([1, 2]), array([1, 1]), 90)
    """
    checks.positive_int("length", length)
    checks.positive_int("min_lines", min_lines)
    if test_fraction is not None and not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}, expected a number in (0, 1), ends excluded.")
    path, encoder = present(path, _ORIGIN), text.characters(vocabulary, oov_buckets)
    name = path.name
    if name.endswith((".jsonl", ".jsonl.gz", ".txt")):
        roles = read_speakers(path) if name.endswith(".txt") else read_roles(path)
        return _from_roles(path, roles, encoder, length, join, test_fraction or 0.2, min_lines)
    if not path.is_dir() and not name.endswith((".json", ".json.gz")):
        raise ValueError(
            f"{path}: expected a name that ends in .jsonl, .jsonl.gz, .txt, .json or .json.gz, or a folder of LEAF's JSON."
        )
    users = read_users(path, None, test_fraction, _leaf_columns(encoder, length))
    notes: tuple[str, ...] = ()
    if users.test is None:
        users, lost = _divided(users, test_fraction or 0.2, length)
        notes = (f"{lost} examples that overlap both parts are in neither",) if lost else ()
    train, test = join_users(users)
    return Federated(train, test, name=users.name, classes=encoder.size, notes=notes)


# --- roles ---------------------------------------------------------------------------------------------------


def _from_roles(
    path: Path,
    roles: list[Role],
    encoder: text.Encoder,
    length: int,
    join: bool,
    test_fraction: float,
    min_lines: int,
) -> Federated:
    lines = [sum(speech.count("\n") + 1 for speech in role.speeches) for role in roles]
    kept = [(role, count) for role, count in zip(roles, lines, strict=True) if count >= min_lines]
    if not kept:
        raise ValueError(
            f"{path}: none of {len(roles)} roles has {min_lines} lines, expected at least one such role."
        )
    parts: tuple[list[dict[str, np.ndarray]], ...] = ([], [])
    for role, count in kept:
        # Rounded first: 0.2 * 5 lines are one line, not a little more.
        tested = min(math.ceil(round(test_fraction * count, 6)), count - 1)
        for part, speeches in zip(parts, _cut(role.speeches, count - tested), strict=True):
            with errors_name(path):
                try:
                    part.append(text.next_token(speeches, encoder, length, join=join))
                except ValueError as error:
                    raise ValueError(f"role {role.id!r}: {error}") from error
    ids = [role.id for role, _ in kept]
    few = len(roles) - len(kept)
    notes = (
        (f"{few} of {len(roles)} roles have fewer than {min_lines} lines and are left out",) if few else ()
    )
    train, test = (ClientData.from_clients(dict(zip(ids, part, strict=True))) for part in parts)
    return Federated(train, test, name=path.name.partition(".")[0], classes=encoder.size, notes=notes)


def _cut(speeches: Sequence[str], lines: int) -> tuple[list[str], list[str]]:
    """The first so many lines of speeches, and the others."""
    before: list[str] = []
    for place, speech in enumerate(speeches):
        own = speech.split("\n")
        if len(own) > lines:
            first = ["\n".join(own[:lines])] if lines else []
            return before + first, ["\n".join(own[lines:]), *speeches[place + 1 :]]
        before.append(speech)
        lines -= len(own)
    return before, []


# --- LEAF ----------------------------------------------------------------------------------------------------


def _leaf_columns(encoder: text.Encoder, length: int):
    def convert(user: str, name: str, values: Any) -> np.ndarray:
        expected = length if name == "x" else 1
        found = np.zeros((len(as_list(user, name, values)), expected), np.int32)
        for row, value in enumerate(values):
            if not isinstance(value, str):
                raise ValueError(f"user {user!r}: {name}[{row}] is {type(value).__name__}, expected text.")
            if len(value) != expected:
                fix = " Give length=, the length of the file's texts." if name == "x" else ""
                raise ValueError(
                    f"user {user!r}: {name}[{row}] has {len(value)} characters, expected {expected}.{fix}"
                )
            try:
                found[row] = encoder.encode(value)
            except ValueError as error:
                raise ValueError(f"user {user!r}: {name}[{row}]: {error}") from error
        return found if name == "x" else text.only_last(found[:, 0], length)

    return convert


def _divided(users: Users, test_fraction: float, length: int) -> tuple[Users, int]:
    """Each user's examples in time, without those that overlap both parts, and how many those are."""
    train, test, lost = {}, {}, 0
    for user, whole in users.train.items():
        count = len(whole.columns["y"])
        kept = min(max(1, int(round((1 - test_fraction) * count, 6))), count)
        begin = min(kept + length - 1, count)
        lost += begin - kept
        train[user], test[user] = (
            User(user, {name: column[rows] for name, column in whole.columns.items()}, whole.file)
            for rows in (slice(kept), slice(begin, None))
        )
    return Users(train, test, users.name), lost
