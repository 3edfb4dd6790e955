"""The examples run at toy size."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = {"own_loop": "mean squared error", "research_script": "worst decile"}


def run(*arguments: str) -> str:
    path = os.pathsep.join([str(ROOT), str(ROOT / "kernels")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_an_example_runs(name):
    assert EXAMPLES[name] in run(str(ROOT / "examples" / f"{name}.py"), "--rounds", "3")


def test_no_example_is_forgotten():
    assert {path.stem for path in (ROOT / "examples").glob("*.py")} == set(EXAMPLES)


def test_the_own_loop_learns():
    """A rule and a chain in somebody else's loop: the error falls by more than ten times."""
    lines = run(str(ROOT / "examples" / "own_loop.py"), "--rounds", "40").splitlines()
    first, last = (float(lines[i].split()[-1]) for i in (0, -1))
    assert last < first / 10
