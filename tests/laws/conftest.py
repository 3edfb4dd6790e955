import jax
import pytest


@pytest.fixture(autouse=True, scope="session")
def highest_precision():
    """Engines are compared where float32 products are float32 products, on accelerators, too."""
    with jax.default_matmul_precision("highest"):
        yield
