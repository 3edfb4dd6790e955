"""Runs the snippets of pages: ``python run_pages.py PAGE...`` prints one line of JSON per page.

A program of its own, so that what pages register, import and configure stays out of other tests. Per page there is one
folder and one namespace, and blocks run in the order in which they stand:

- ``python``: executed; with ``title="name"`` written to that file instead, as is any other block with a title;
- ``toml``: parsed;
- ``console``: lines that begin with ``$ fedjax-sim`` go through the command line; others are counted alone;
- a comment ``<!-- skip: reason -->`` on the line before a block says why it cannot run here.
"""

from __future__ import annotations

import contextlib
import glob
import io
import json
import linecache
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = re.compile(
    r"^(?:<!-- skip: (?P<skip>.+?) -->\n)?(?P<indent> *)```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """A fenced block: ``skip`` is the reason why it does not run, ``title`` the file that it stands for."""

    language: str
    title: str | None
    skip: str | None
    text: str
    line: int


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page that name a language."""
    for match in BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["options"])
        indent = len(match["indent"])
        lines = [line[indent:] for line in match["text"].splitlines(keepends=True)]
        line = text.count("\n", 0, match.start("text")) + 1
        yield Block(match["language"], title and title[1], match["skip"], "".join(lines), line)


def commands(block: Block) -> list[str]:
    """What a console block types, continued lines joined and comments removed."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line[2:].partition("  #")[0].strip() for line in lines if line.startswith("$ ")]


def run_page(page: Path, folder: Path) -> dict[str, Any]:
    """Runs a page in an empty folder; the result counts what ran and holds what was printed."""
    found: dict[str, Any] = {"page": str(page), "python": 0, "commands": [], "skipped": [], "printed": ""}
    started, busy = time.perf_counter(), time.process_time()
    printed = io.StringIO()
    namespace: dict[str, Any] = {"__name__": "__page__"}
    before = Path.cwd()
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    try:
        with contextlib.redirect_stdout(printed), warnings.catch_warnings():
            warnings.simplefilter("error")
            for block in blocks(page.read_text(encoding="utf-8")):
                run_block(block, page, namespace, found)
    except BaseException:  # SystemExit of a command, too: the page says what failed and the next one runs
        found["error"] = traceback.format_exc()
    finally:
        sys.path.remove(str(folder))
        os.chdir(before)
    return found | {
        "printed": printed.getvalue(),
        "seconds": round(time.perf_counter() - started, 1),
        "processor_seconds": round(time.process_time() - busy, 1),
    }


def run_block(block: Block, page: Path, namespace: dict[str, Any], found: dict[str, Any]) -> None:
    if block.skip:
        found["skipped"].append(f"line {block.line}: {block.skip}")
    elif block.title:
        Path(block.title).parent.mkdir(parents=True, exist_ok=True)
        Path(block.title).write_text(block.text, encoding="utf-8")
    elif block.language == "python":
        name = f"{page}, block at line {block.line}"
        # So that tracebacks show the line.
        linecache.cache[name] = (len(block.text), None, block.text.splitlines(keepends=True), name)
        exec(compile(block.text, name, "exec"), namespace)
        found["python"] += 1
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "console":
        for command in commands(block):
            if command.split()[0] == "fedjax-sim":
                run_command(command)
                found["commands"].append(command)


def run_command(command: str) -> None:
    arguments = [
        name
        for word in shlex.split(command)[1:]
        for name in (sorted(glob.glob(word)) if "*" in word else [word])
    ]
    # The number of devices is fixed when JAX starts, so a command that sets it gets a process.
    if "devices" in command or "sharded" in command:
        done = subprocess.run(
            [sys.executable, "-m", "fedjax_sim", *arguments], capture_output=True, text=True, timeout=300
        )
        print(done.stdout)
        if done.returncode:
            raise RuntimeError(f"{command} ended with {done.returncode}: {done.stderr}")
        return
    from fedjax_sim.cli import app

    try:
        with contextlib.redirect_stderr(io.StringIO()) as errors:
            app(arguments, prog_name="fedjax-sim")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"{command} ended with {end.code}: {errors.getvalue()}") from None


def main() -> None:
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(run_page(Path(name).resolve(), Path(folder).resolve())), flush=True)


if __name__ == "__main__":
    main()
