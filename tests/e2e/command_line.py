"""The command line inside the test process, in a folder of the test's own."""

from __future__ import annotations

import os

import pytest
from typer.testing import CliRunner

from fedjax_sim.cli import app


@pytest.fixture
def own_folder(tmp_path, monkeypatch):
    """Default run folders land in the test's folder, and JAX's configuration stays as the test process has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", os.environ.get("JAX_COMPILATION_CACHE_DIR", ""))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path


def invoke(*arguments: str):
    """Runs the command in this process."""
    result = CliRunner().invoke(app, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result
