"""Names of tests are the same in every process, and can be typed."""

from __future__ import annotations

import re

import pytest

CONTROL = re.compile(r"(?<!\\)\\(x[01][0-9a-f]|x[89][0-9a-f]|x7f|[nrt])")
"""How pytest writes bytes and control characters; a backslash of the argument's own is written twice."""
ADDRESS = re.compile(r"0x[0-9a-f]{8,}")


def test_no_name_holds_control_characters_or_addresses(request):
    names = [item.nodeid for item in request.session.items]
    wrong = [
        n for n in names if not n.isascii() or not n.isprintable() or CONTROL.search(n) or ADDRESS.search(n)
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("value", "name"),
    [(b"\x1f\x8b", "content"), (b"ab", "content"), ("a\0b", "content"), ("a\nb", "content"), ("a b", "a b"), (3, "3")],
)  # fmt: skip
def test_bytes_and_control_characters_go_by_the_name_of_their_argument(request, value, name):
    """Bytes that a library wrote may hold the time: two workers would collect different tests."""
    hook = request.config.hook.pytest_make_parametrize_id
    assert (hook(config=request.config, val=value, argname="content") or str(value)) == name
