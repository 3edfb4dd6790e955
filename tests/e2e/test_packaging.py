"""What the wheel holds, what the two names resolve to, and how long the import takes."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import fedjax_sim

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> zipfile.ZipFile:
    """The wheel, built in an isolated environment as pip does."""
    folder = tmp_path_factory.mktemp("wheel")
    arguments = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.mark.slow
def test_the_wheel_holds_both_packages_and_nothing_else(wheel):
    names = wheel.namelist()
    metadata = f"fedjax_sim-{fedjax_sim.__version__}.dist-info"
    assert {name.split("/")[0] for name in names} == {"fedjax_sim", "fedjax_sim_kernels", metadata}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "fedjax_sim").rglob("*.py")}
    modules |= {str(p.relative_to(ROOT / "kernels")) for p in (ROOT / "kernels").rglob("*.py")}
    assert modules | {"fedjax_sim/py.typed", "fedjax_sim_kernels/py.typed"} <= set(names)
    assert f"{metadata}/licenses/LICENSE" in names


@pytest.mark.slow
def test_the_wheel_names_the_command(wheel):
    (entry_points,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    assert "fedjax-sim = fedjax_sim.cli:main" in wheel.read(entry_points).decode()


def test_there_is_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == fedjax_sim.__version__
