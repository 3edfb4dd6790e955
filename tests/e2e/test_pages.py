"""Every snippet of the README and of the documentation runs, in the order of its page; see ``run_pages.py``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("run_pages.py")
FENCE = re.compile(r"^ *```(?:python|console)\b", re.MULTILINE)
PAGES = [
    page
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if FENCE.search(page.read_text(encoding="utf-8"))
]
READ_FIRST = [ROOT / "README.md", ROOT / "docs" / "index.md", ROOT / "docs" / "quickstart.md"]
NEEDS_DEVICES = ROOT / "docs" / "how-to" / "several-devices.md"
MOST_SKIPPED = 2
"""Blocks that cannot run here; a new one says why, and this number is raised on purpose."""

pytestmark = pytest.mark.slow


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(scope="session")
def results(tmp_path_factory):
    """What each page did.

    The number of devices is fixed when JAX starts, so the page about several has a process. The first pages that people
    read are compiled as they will be for them, the others as tests are, in half the time.
    """
    for_tests = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]),
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "COLUMNS": "120",
    }
    for_users = {
        name: value
        for name, value in for_tests.items()
        if name not in ("XLA_FLAGS", "JAX_DISABLE_MOST_OPTIMIZATIONS")
    }
    rest = [page for page in PAGES if page not in (*READ_FIRST, NEEDS_DEVICES)]
    # One after the other: programs that a page compiled are there for the next one, and other tests run meanwhile.
    found = {}
    for pages, environment in ((READ_FIRST, for_users), (rest, for_tests), ([NEEDS_DEVICES], for_tests)):
        arguments = [sys.executable, str(PROGRAM), *map(str, pages)]
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=1800)
        assert done.returncode == 0, done.stderr[-3000:]
        found |= {result["page"]: result for result in map(json.loads, done.stdout.splitlines())}
    return found


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_snippet_runs(results, page):
    result = results[str(page)]
    assert "error" not in result, f"{name(page)}\n{result.get('error')}\n{result['printed'][-2000:]}"
    assert result["python"] + len(result["commands"]) > 0


def test_little_is_skipped(results):
    skipped = [f"{name(page)}, {reason}" for page in PAGES for reason in results[str(page)]["skipped"]]
    total = sum(r["python"] + len(r["commands"]) for r in results.values())
    print(f"{total} blocks and commands ran; {len(skipped)} blocks were skipped:", *skipped, sep="\n  ")
    assert len(skipped) <= MOST_SKIPPED, skipped


def test_the_readme_prints_what_it_says(results):
    printed = results[str(ROOT / "README.md")]["printed"]
    assert "worst decile" in printed and "mean gain" in printed and "(5, 4)" in printed


@pytest.mark.parametrize("page", READ_FIRST[:2], ids=name)
def test_a_run_looks_as_it_is_shown(results, page):
    """The rows of the table, numbers apart: the page runs the same command."""
    shown = re.search(r"```text\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert shown is not None
    for line in words(shown[1]):
        assert line in words(results[str(page)]["printed"]), line


def words(text: str) -> list[list[str]]:
    """The words of each line, without numbers and what hangs on them, such as the date in a folder's name."""
    lines = [[word for word in line.split() if not re.search(r"\d", word)] for line in text.splitlines()]
    return [line for line in lines if line]
