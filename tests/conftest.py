from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder next to the checkout that holds data too large for the repository; see its data/README.md."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no ../shared next to the checkout: the real data sets are not here")
    return path
