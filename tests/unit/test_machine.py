"""What machine this is, and what a benchmark's file says of it."""

from __future__ import annotations

import datetime
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from fedjax_sim._src import machine
from fedjax_sim.bench import _compare, _host, _measure, _streaming

ROOT = Path(__file__).resolve().parents[2]
NEEDS_GIT = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def core(**facts: object) -> str:
    """A core's lines of /proc/cpuinfo."""
    return "".join(f"{name.replace('_', ' ')}\t: {value}\n" for name, value in facts.items()) + "\n"


@pytest.fixture
def cpuinfo(tmp_path, monkeypatch):
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(machine, "_CPUINFO", file)
    monkeypatch.setattr("platform.processor", lambda: "")
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    return file


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (2 * core(cpu_family=25, model=1, model_name="AMD EPYC"), "AMD EPYC (family 25, model 1)"),
        (core(cpu_family=25, model=17, model_name="AMD EPYC"), "AMD EPYC (family 25, model 17)"),
        (core(model_name="one", cpu_family=6, model=85) + core(model_name="two", model=3), "one (family 6, model 85)"),
        (core(model_name="ARMv7 Processor rev 4: v7l", CPU_revision=4), "ARMv7 Processor rev 4: v7l"),
        (core(model_name="Loongson", cpu_family="Loongson-64bit", model=1), "Loongson"),
        (core(cpu="POWER9", model="8335-GTH"), "aarch64"),
        (core(CPU_implementer="0x41"), "aarch64"),
        ("", "aarch64"),
        (None, "aarch64"),
    ],
)  # fmt: skip
def test_a_processor_is_told_by_family_and_model_where_they_are_known(cpuinfo, text, name):
    if text is not None:
        cpuinfo.write_text(text)
    assert machine.processor() == name


# --- the revision --------------------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package in a checkout of its own."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "checkout" / "package"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    git(folder, "init", "--quiet", "..")
    return folder


def git(folder: Path, *arguments: str) -> str:
    own = ("-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", *own, *arguments], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def revision(folder: Path) -> str | None:
    """Without haste: other tests may keep the machine busy."""
    return _measure._revision(folder, seconds=60)


@NEEDS_GIT
def test_a_revision_is_the_commit_and_whether_tracked_files_differ(package):
    git(package, "add", "__init__.py")
    assert revision(package) is None, "no commit yet"
    git(package, "commit", "--quiet", "--message=first")
    commit = git(package, "rev-parse", "HEAD")
    (package / "untracked").write_text("")
    assert revision(package) == commit[:10]
    (package / "__init__.py").write_text("changed = True\n")
    assert revision(package) == f"{commit[:10]}+"


@NEEDS_GIT
def test_a_package_installed_inside_another_checkout_has_no_revision(package):
    installed = package.parent / ".venv" / "package"
    installed.mkdir(parents=True)
    (installed / "__init__.py").write_text("")
    git(package, "add", "__init__.py")
    git(package, "commit", "--quiet", "--message=first")
    assert revision(package) and revision(installed) is None


def test_without_a_checkout_or_git_there_is_no_revision(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert _measure._revision(tmp_path) is None
    assert _measure._revision(tmp_path / "nowhere") is None
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _measure._revision(ROOT / "fedjax_sim") is None


def test_a_git_that_hangs_is_not_waited_for(tmp_path, monkeypatch):
    (tmp_path / "git").write_text("#!/bin/sh\nexec sleep 20\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    start = time.monotonic()
    assert _measure._revision(ROOT / "fedjax_sim", seconds=0.2) is None
    assert time.monotonic() - start < 10


# --- what stands in the file ---------------------------------------------------------------------------------


@pytest.mark.parametrize(("flags", "kept"), [(None, None), ("", None), ("--xla_a=1", "--xla_a=1")])
def test_a_file_says_when_of_what_and_with_which_flags(monkeypatch, flags, kept):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if flags is not None:
        monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(_measure, "_revision", lambda package: f"revision of {package.name}")
    days = [datetime.datetime.now(datetime.UTC).date().isoformat()]
    found = _measure.hardware(3)
    days.append(datetime.datetime.now(datetime.UTC).date().isoformat())
    assert found["date"] in days and found["xla_flags"] == kept and found["cores"] == 3
    assert found["revision"] == "revision of fedjax_sim"
    assert json.loads(json.dumps(found)) == found


def test_files_from_before_and_after_are_compared(tmp_path, capsys):
    rows = [{"model": "cnn", "seconds": {"min": 1, "median": 1, "max": 1}}]
    now = _measure.hardware(2)
    before = {name: now[name] for name in ("processor", "cores", "devices", "jax")}
    for name, hardware in (("a", before), ("b", now)):
        (tmp_path / name).write_text(json.dumps({"hardware": hardware, "rows": rows}))
    _compare.main([str(tmp_path / "a"), str(tmp_path / "b")])
    assert capsys.readouterr().out.count(f"{machine.processor()}, 2 core(s)") == 2


@pytest.fixture
def seven_cores(monkeypatch):
    """More than this process has devices."""
    monkeypatch.setattr(machine, "cores", lambda: 7)


def test_the_host_is_measured_on_the_cores_that_the_process_may_use(monkeypatch, seven_cores):
    monkeypatch.setattr(_host, "device_seconds", lambda *_: 0.0)
    assert _host.measure(2)["hardware"]["cores"] == 7


def test_streaming_is_measured_on_the_cores_that_the_process_may_use(tmp_path, monkeypatch, seven_cores):
    monkeypatch.setattr(
        _streaming, "_measured", lambda *_: {"examples_per_second": 1.0, "data_gigabytes": 1.0}
    )
    out = tmp_path / "s.json"
    _streaming.main(["--gigabytes", "0.001", "--models", "linear", "--repeats", "1", "--out", str(out)])
    assert json.loads(out.read_text())["hardware"]["cores"] == 7
