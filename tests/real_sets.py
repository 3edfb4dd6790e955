"""The real data sets beside the checkout."""

from __future__ import annotations

from pathlib import Path

import pytest


def data_path(shared: Path, name: str) -> Path:
    """A file or folder of ``../shared/data``; a test that asks for one that is not there is skipped."""
    path = shared / "data" / name
    if not path.exists():
        pytest.skip(f"the real data set {name} is not here")
    return path
