from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder next to the checkout that holds data too large for the repository; see its data/README.md."""
    path = ROOT.parent / "shared"
    if not path.is_dir():
        pytest.skip("no ../shared next to the checkout: the real data sets are not here")
    return path


@pytest.fixture(scope="module")
def compiled_quickly():
    """For tests of small programs that compile far longer than they run: LLVM leaves them as XLA wrote them.

    XLA's own passes, which fuse, simplify and choose forms, run as ever.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)
