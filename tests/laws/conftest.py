import jax
import pytest


@pytest.fixture(autouse=True, scope="module")
def highest_precision():
    """Engines are compared where float32 products are float32 products, on accelerators, too.

    Until the end of a module, not of the session: what a run says of its precision is tested elsewhere.
    """
    with jax.default_matmul_precision("highest"):
        yield
