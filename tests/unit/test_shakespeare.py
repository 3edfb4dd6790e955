"""Plays by role: numbers of the real files, the division in time, LEAF's JSON, and hostile input."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim.data import text
from fedjax_sim.data.presets._plays import read_roles, read_speakers

ROLES = [
    {"play": "Ham", "role": "GHOST", "speeches": ["Mark me.", "Alas,\npoor\nghost!", "List"]},
    {"play": "Ham", "role": "BOY", "speeches": ["Ay"]},
    {"play": "Lear", "role": "GHOST", "speeches": ["Nothing\nwill come"]},
]


def write(path: Path, roles) -> Path:
    content = roles if isinstance(roles, str | bytes) else "\n".join(map(json.dumps, roles))
    raw = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" and not isinstance(roles, bytes) else raw)
    return path


def said(data, client) -> str:
    """The labels of a client's windows, as text; each speech's end is a bar."""
    y = data.client(client)["y"]
    return "".join("|" if i == 2 else text.characters().decode([i]) for i in y[y >= 0])


# --- roles ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["roles.jsonl", "roles.jsonl.gz"])
def test_roles_are_divided_by_lines(tmp_path, name):
    data = fs.data.shakespeare(write(tmp_path / name, ROLES), length=10, test_fraction=0.4)
    assert data.train.ids.tolist() == data.test.ids.tolist() == ["Ham/GHOST", "Lear/GHOST"]
    assert data.notes == ("1 of 3 roles have fewer than 2 lines and are left out",)
    assert (data.name, data.classes) == ("roles", 90)
    assert (
        said(data.train, "Ham/GHOST") == "Mark me.|Alas,\npoor|"
        and said(data.test, "Ham/GHOST") == "ghost!|List|"
    )
    assert said(data.train, "Lear/GHOST") == "Nothing|" and said(data.test, "Lear/GHOST") == "will come|"


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.text("ab", max_size=4), min_size=1, max_size=4), min_size=1, max_size=6),
    st.floats(0.01, 0.99),
)
def test_nothing_is_lost_and_the_border_is_a_line(tmp_path, speeches, fraction):
    joined = ["\n".join(lines) for lines in speeches]
    total = sum(map(len, speeches))
    path = write(tmp_path / "r.jsonl", [{"play": "p", "role": "r", "speeches": joined}])
    data = fs.data.shakespeare(path, length=5, test_fraction=fraction, min_lines=1)
    parts = [said(part, "p/r") for part in (data.train, data.test)]
    lines = [line for part in parts for speech in part.split("|")[:-1] for line in speech.split("\n")]
    assert lines == [line for own in speeches for line in own]
    tested = sum(speech.count("\n") + 1 for speech in parts[1].split("|")[:-1])
    assert tested == min(int(np.ceil(round(fraction * total, 6))), total - 1)


def test_options(tmp_path):
    path = write(tmp_path / "roles.jsonl", ROLES)
    apart, joined = (fs.data.shakespeare(path, length=40, join=join) for join in (False, True))
    assert apart.train.sizes.tolist() == [2, 1] and joined.train.sizes.tolist() == [1, 1]
    assert said(joined.train, "Ham/GHOST") == "Mark me.|Alas,\npoor\nghost!|"
    everybody = fs.data.load(f"shakespeare:{path}", min_lines=1)
    assert everybody.train.ids.tolist() == ["Ham/GHOST", "Ham/BOY", "Lear/GHOST"] and not everybody.notes
    assert everybody.test.sizes[1] == 0
    leaf = fs.data.shakespeare(path, vocabulary="leaf", length=8)
    assert leaf.classes == 80 and leaf.train.columns["y"].max() < 80


def test_speakers(tmp_path):
    play = "ROMEO:\nAy me!\n\nJULIET:\nWherefore\nart thou: say:\n\n\nROMEO:\nLove\n\nNurse:\n"
    roles = read_speakers(write(tmp_path / "play.txt", play))
    assert roles == [("ROMEO", ["Ay me!", "Love"]), ("JULIET", ["Wherefore\nart thou: say:"]), ("Nurse", [])]
    data = fs.data.shakespeare(tmp_path / "play.txt", length=10)
    assert data.train.ids.tolist() == ["ROMEO", "JULIET"]


# --- LEAF ----------------------------------------------------------------------------------------------------


def leaf(whole: str, length: int, **users: int) -> dict:
    """LEAF's windows of one text, so many for each user."""
    data = {
        user: {"x": [whole[i : i + length] for i in range(n)], "y": [whole[i + length] for i in range(n)]}
        for user, n in users.items()
    }
    return {"users": list(users), "num_samples": list(users.values()), "user_data": data}


def test_leafs_windows_are_divided_without_overlap(tmp_path):
    whole = "What is the city but the people? True, the people are the city."
    (tmp_path / "all_data_0.json").write_text(json.dumps(leaf(whole, 4, A_B=20, C=3)))
    data = fs.data.shakespeare(tmp_path, vocabulary="leaf", length=4, test_fraction=0.25)
    assert data.train.ids.tolist() == ["A_B", "C"]
    assert data.train.sizes.tolist() == [15, 2] and data.test.sizes.tolist() == [2, 0]
    assert data.notes == ("4 examples that overlap both parts are in neither",)
    encoder = text.characters("leaf")
    x, y = data.test.columns["x"], data.test.columns["y"]
    assert [encoder.decode(row) for row in x] == [whole[18:22], whole[19:23]]
    assert encoder.decode(y[:, -1]) == whole[22:24] and (y[:, :-1] == -1).all()
    np.testing.assert_array_equal(data.train.client("C")["x"][0], encoder.encode("What"))


def test_leafs_own_parts(tmp_path):
    for part, n in (("train", 4), ("test", 2)):
        (tmp_path / part).mkdir()
        (tmp_path / part / "all.json").write_text(json.dumps(leaf("To be or not", 3, A=n)))
    data = fs.data.shakespeare(tmp_path, vocabulary="leaf", length=3)
    assert (data.train.num_examples, data.test.num_examples, data.notes) == (4, 2, ())
    with pytest.raises(ValueError, match="has a test part"):
        fs.data.shakespeare(tmp_path, vocabulary="leaf", length=3, test_fraction=0.2)


# --- what is refused -----------------------------------------------------------------------------------------

GOOD = json.dumps(ROLES[0])


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.jsonl", "", "the file is empty"),
        ("a.jsonl", GOOD + "\n{", "line 2: the file is no JSON, or truncated"),
        ("a.jsonl", GOOD + "\n\n[1]", "line 3: it holds a list, expected an object with play"),
        ("a.jsonl", "[" * 100_000, "line 1: the file is no JSON"),
        ("a.jsonl", GOOD + "\n" + GOOD, "line 2: the role 'Ham/GHOST' is there twice"),
        ("a.jsonl", r'{"play": "p", "role": "r\u0000", "speeches": []}', "line 1: role is .*zero byte"),
        ("a.jsonl", [{"play": "p", "speeches": []}], "line 1: key 'role' is missing, it has play, speeches"),
        ("a.jsonl", [{"play": 3, "role": "r", "speeches": []}], "line 1: play is int, expected text"),
        ("a.jsonl", [{"play": "p", "role": "r", "speeches": "Ay"}], "speeches is str, expected a list of texts"),
        ("a.jsonl", [{"play": "p", "role": "r", "speeches": ["a", None]}], r"speeches\[1\] is NoneType, expected text"),
        ("a.jsonl", '{"play": "p", "play": "q", "role": "r", "speeches": []}', "line 1: key 'play' is there twice"),
        ("a.jsonl", [{"play": "p", "role": "r", "speeches": []}], "none of 1 roles has 2 lines"),
        ("a.jsonl", b"\xff\xfe", "no text in UTF-8"),
        ("a.jsonl.gz", gzip.compress(GOOD.encode(), mtime=0)[:-20], "the compressed file is truncated"),
        ("a.jsonl.gz", GOOD.encode(), "the compressed file is truncated, or of another kind"),
        ("a.txt", "To be\nor not", "paragraph 1 begins with 'To be', expected the speaker, such as 'ROMEO:'"),
        ("a.txt", "ROMEO:\nAy\n\n:\nme", "paragraph 2 begins with ':'"),
        ("a.csv", "x", "expected a name that ends in .jsonl"),
        ("a.json", json.dumps(leaf("abcdefgh", 3, A=2)), r"user 'A': x\[0\] has 3 characters, expected 4.*length="),
        ("a.json", '{"users":["A"],"num_samples":[1],"user_data":{"A":{"x":["abcd"],"y":["ef"]}}}', r"y\[0\] has 2 char"),
        ("a.json", '{"users":["A"],"num_samples":[1],"user_data":{"A":{"x":[3],"y":["e"]}}}', r"x\[0\] is int, expected"),
        ("a.json", '{"users":["A"],"num_samples":[1],"user_data":{"A":{"x":"abcd","y":["e"]}}}', "x is str, expected a"),
        ("a.json", '{"users":["A"],"num_samples":[1],"user_data":{"A":{"x":["a$cd"],"y":["e"]}}}', r"x\[0\]:.*'\$'"),
        ("a.json", '{"users":["A"],"num_samples":[2],"user_data":{"A":{"x":["abcd"],"y":["e"]}}}', "num_samples says 2"),
        ("a.json", '{"users":["A"],"num_samples":[0],"user_data":{"A":{"x":[],"y":[]}}}', "no user has an example"),
    ],
)  # fmt: skip
def test_a_bad_file_is_named(tmp_path, name, content, match):
    path = write(tmp_path / name, content)
    with pytest.raises(ValueError, match=match) as caught:
        fs.data.shakespeare(path, vocabulary="leaf", length=4)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"test_fraction": 1.0}, "test_fraction is 1.0"),
        ({"length": 0}, "length is 0"),
        ({"min_lines": 0}, "min_lines is 0"),
        ({"vocabulary": "leaf"}, r"role 'Lear/FOOL'.*holds '\$'.*oov_buckets=1"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, options, match):
    path = write(tmp_path / "a.jsonl", [*ROLES, {"play": "Lear", "role": "FOOL", "speeches": ["$1\n$2"]}])
    with pytest.raises(ValueError, match=match):
        fs.data.shakespeare(path, **options)


def test_a_missing_file(tmp_path):
    for name in ("a.jsonl", "a.txt", "a.json", "folder"):
        with pytest.raises(FileNotFoundError, match=name):
            fs.data.shakespeare(tmp_path / name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_damaged_bytes_end_in_value_errors(tmp_path, data):
    raw = bytearray("\n".join(map(json.dumps, ROLES)).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = write(tmp_path / "a.jsonl", bytes(raw[: data.draw(st.integers(0, len(raw)))]))
    try:
        fs.data.shakespeare(path, length=8)
    except ValueError as error:
        assert str(error).startswith(str(path))


# --- the real files ------------------------------------------------------------------------------------------


def test_the_numbers_of_the_real_plays(shared):
    path = shared / "data" / "shakespeare" / "roles.jsonl.gz"
    roles = read_roles(path)
    speeches = [speech for role in roles for speech in role.speeches]
    assert (len(roles), len(speeches), sum(speech.count("\n") + 1 for speech in speeches)) == (
        1_347,
        30_913,
        108_118,
    )
    assert len(set("".join(speeches))) == 76
    assert sum(len("\n".join(role.speeches)) for role in roles) == 4_321_775
    data = fs.data.shakespeare(path, join=True)
    assert data.train.num_clients == 1_230 and data.notes[0].startswith("117 of 1347 roles")
    assert (data.train.sizes >= 1).all() and (data.test.sizes >= 1).all()
    assert not any(
        (part.columns["y"] == 89).any() for part in (data.train, data.test)
    )  # TFF's characters suffice


def test_tinyshakespeare(shared):
    roles = read_speakers(shared / "data" / "shakespeare" / "tinyshakespeare_input.txt")
    assert len(roles) == 309 and sum(len(role.speeches) for role in roles) == 7_222 - 125
    assert (
        roles[0].id == "First Citizen"
        and roles[0].speeches[1] == "You are all resolved rather to die than to famish?"
    )
