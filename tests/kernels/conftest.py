import pytest
from fedjax_sim_kernels.products import panels


@pytest.fixture
def panels_everywhere(monkeypatch):
    """Weights of any size are laid out, whatever this machine's compiler makes of it."""
    monkeypatch.setattr(panels, "SMALLEST", 1)
    monkeypatch.setattr(panels, "FEWEST", 1)
    monkeypatch.setattr(panels, "_makes_products", lambda: True)
    monkeypatch.setattr(panels.backends, "current", lambda: "cpu")
