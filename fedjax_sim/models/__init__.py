"""The field's standard models, as flax linen modules called with ``module(x, train=...)``."""

from typing import Any

from fedjax_sim._src import tree
from fedjax_sim.models.images import cifar10_cnn, cnn, deeper_cnn, emnist_cnn, linear, mlp, reference_cnn
from fedjax_sim.models.layers import LSTM
from fedjax_sim.models.text import char_lstm

__all__ = [
    "LSTM",
    "char_lstm",
    "cifar10_cnn",
    "cnn",
    "count_parameters",
    "deeper_cnn",
    "emnist_cnn",
    "linear",
    "mlp",
    "reference_cnn",
]


def count_parameters(params: Any) -> int:
    """Number of elements over all leaves of a tree of parameters, or of their ``ShapeDtypeStruct``.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim.models import count_parameters
    >>> count_parameters({"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)})
    16
    """
    return tree.size(params)
