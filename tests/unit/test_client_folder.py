"""Folders of client rows: each belongs to a living process, and the next one removes those of the dead, and no others."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from fedjax_sim._client_folder import locked_folder
from fedjax_sim._client_layout import RowLayout
from fedjax_sim._client_store import StoreTable
from fedjax_sim.engines._state import ClientTable

ROOT = Path(__file__).resolve().parents[2]
HOLDER = """
import sys
from pathlib import Path
from fedjax_sim._client_folder import locked_folder

name, lock = locked_folder(Path(sys.argv[1]), "rows-")
row = Path(sys.argv[1], name, "0", "1")
row.parent.mkdir()
row.write_bytes(b"row")
print("there", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds a folder in ``tmp_path``."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "there\n"
        yield process
        process.kill()


def release(lock: int | None) -> None:
    assert lock is not None
    os.close(lock)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_living_process_has_is_left_and_what_a_killed_one_had_is_removed(tmp_path, holder):
    (theirs,) = tmp_path.iterdir()
    first, lock = locked_folder(tmp_path, "rows-")
    assert names(tmp_path) == {theirs.name, first}
    holder.kill()
    holder.wait()
    second, other = locked_folder(tmp_path, "rows-")
    assert names(tmp_path) == {first, second}
    release(lock)
    third, lock = locked_folder(tmp_path, "rows-")
    assert names(tmp_path) == {second, third}
    release(lock), release(other)


def test_what_is_not_known_to_be_dead_is_left(tmp_path):
    """Folders of another machine, whose name may begin as this one's, and of something else."""
    unique, host = "0" * 32, socket.gethostname()
    kept = {f"rows-elsewhere-{unique}", f"rows-{host}-2-{unique}", f"more-rows-{host}-{unique}", "rows-"}
    for name in kept:
        (tmp_path / name).mkdir()
    (tmp_path / f"rows-{host}-{unique}").symlink_to(tmp_path / "rows-")
    os.mkfifo(tmp_path / f"rows-{host}-{'1' * 32}")
    before = names(tmp_path)
    first, lock = locked_folder(tmp_path, "rows-")
    assert names(tmp_path) == before | {first}
    release(lock)


@pytest.mark.parametrize("missing", ["the system's", "the file system's"])
def test_without_locks_a_folder_has_a_name_that_nobody_removes(tmp_path, monkeypatch, missing):
    with monkeypatch.context() as patch:
        if missing == "the system's":
            patch.setitem(sys.modules, "fcntl", None)
        else:
            patch.setattr("fcntl.flock", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOLCK, "No locks")))
        first, none = locked_folder(tmp_path, "rows-")
        second, _ = locked_folder(tmp_path, "rows-")
    third, lock = locked_folder(tmp_path, "rows-")
    assert none is None and names(tmp_path) == {first, second, third}
    release(lock)


def test_a_table_is_seen_by_its_own_user_alone_and_held_while_it_lives(tmp_path):
    layout = RowLayout(ClientTable((), (), jax.ShapeDtypeStruct((8, 3), np.float32)), 0)
    table = StoreTable(tmp_path, layout)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o700
    others = [StoreTable(tmp_path, layout) for _ in range(3)]
    table.put(np.array([5]), np.ones((1, layout.row_bytes), np.uint8))
    assert len(list(tmp_path.iterdir())) == 4 and table.gather(np.array([5])).all()
    del table, others
    assert not list(tmp_path.iterdir())
