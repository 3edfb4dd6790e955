import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Many tests, and the processes that they start, compile the same programs. Before JAX is imported, and one folder for
# each worker: JAX does not write its entries in one move, so another worker could read half of one.
_CACHE = ROOT / ".pytest_cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder next to the checkout that holds data too large for the repository; see its data/README.md."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no ../shared next to the checkout: the real data sets are not here")
    return path
