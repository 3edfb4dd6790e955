"""Which client has how many examples of which class, and how far that is from the whole."""

from __future__ import annotations

import numpy as np

from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.client_source import Clients

_MOST = 2**28
"""Numbers of the largest table of clients and classes: of a million clients some 250 classes."""


def has_labels(data: Clients, classes: int | None) -> bool:
    """Whether the column ``y`` holds one label for each example, an integer of so few that a table of them can be made."""
    labels = data.columns.get("y")
    if classes is None or labels is None or data.num_clients * classes > _MOST:
        return False
    return len(labels.shape) == 1 and labels.dtype.kind in "iu"


def label_counts(data: ClientData, classes: int) -> np.ndarray:
    """Examples of each class at each client, ``int64[clients, classes]``, of data that ``has_labels``.

    Raises:
      ValueError: a label is not from 0 to ``classes - 1``.
    """
    owner = np.repeat(np.arange(data.num_clients), data.sizes)
    labels = np.asarray(data.columns["y"]).astype(np.int64)
    outside = labels[(labels < 0) | (labels >= classes)]
    if outside.size:
        raise ValueError(
            f"column 'y' holds label {outside[0]}, expected 0 to {classes - 1}: the data says it has {classes} classes."
        )
    counts = np.bincount(owner * classes + labels, minlength=data.num_clients * classes)
    return counts.reshape(data.num_clients, classes)


def divergences(counts: np.ndarray) -> np.ndarray:
    """Total variation distance between each client's labels and those of all clients together, ``float64[clients]``.

    0 where a client has the classes in the shares of the whole, towards 1 where it has what hardly anybody else has;
    0 for a client without examples.

    Args:
      counts: ``int[clients, classes]``, examples.

    Example:
      >>> import numpy as np
      >>> from fedjax_sim.data._label_counts import divergences
      >>> divergences(np.array([[2, 2], [4, 0], [0, 4], [0, 0]]))
      array([0. , 0.5, 0.5, 0. ])
    """
    sizes = counts.sum(axis=1)
    whole = counts.sum(axis=0) / max(1, int(sizes.sum()))
    distances = 0.5 * np.abs(counts / np.maximum(sizes, 1)[:, None] - whole).sum(axis=1)
    return np.where(sizes > 0, distances, 0.0)


def mean_divergence(counts: np.ndarray) -> float:
    """The mean of ``divergences``, weighted by examples; there is at least one."""
    return float(np.average(divergences(counts), weights=counts.sum(axis=1)))
