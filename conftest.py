"""What must happen before pytest imports anything else."""

import gc
import os
from pathlib import Path

# Many tests, and the processes that they start, compile the same programs. One folder for each worker: JAX does not
# write its entries in one move, so another worker could read half of one. It must be known before JAX is imported.
_CACHE = Path(__file__).parent / ".pytest_cache" / "jax" / os.environ.get("PYTEST_XDIST_WORKER", "main")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# A layout that somebody measured on this machine is not for tests.
os.environ["XDG_CACHE_HOME"] = str(Path(__file__).parent / ".pytest_cache" / "user")

# Before pytest collects doctests: a module that importlib mode met first would load twice.
import jax  # noqa: E402
import pytest  # noqa: E402

import fedjax_sim  # noqa: E402, F401

_FEW_MAPPINGS = 20_000


@pytest.fixture(autouse=True, scope="module")
def programs_are_let_go():
    """Every compiled program maps memory, and Linux gives a process 65,530 mappings: beyond them compiling crashes."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_bytes().splitlines()) > _FEW_MAPPINGS:
        jax.clear_caches()
        gc.collect()
