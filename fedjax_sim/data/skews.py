"""Features that differ from client to client: the same labels, written with other hands and seen by other cameras."""

from __future__ import annotations

import numpy as np

from fedjax_sim._src import checks, keys
from fedjax_sim.data._columns import column_of
from fedjax_sim.data.client_data import ClientData

# Purposes of the generator; above those of `keys`, so that no two decisions share a stream.
_NOISE = 120
_ROTATION = 121


def feature_noise(data: ClientData, std: float, seed: int, column: str = "x") -> ClientData:
    """Gaussian noise whose level grows from client to client, from 0 for the first to ``std`` for the last.

    Integer columns are rounded and kept within their type; the noise is in their units (of 255 for uint8 images).

    Args:
      data: examples by client.
      std: the last client's standard deviation, above 0.
      seed: a non-negative integer.
      column: what is changed, numbers ``[examples, ...]``.

    Raises:
      ValueError: there is no such column, or ``std`` is out of range.

    Source: Li et al. 2022 (arXiv 2102.02079), section 3.2, noise-based feature skew.

    Example:
      >>> import numpy as np, fedjax_sim as fs
      >>> data = fs.data.ClientData({"x": np.zeros((4000, 1), np.float32)}, [0, 2000, 4000], ids=[0, 1])
      >>> noisy = fs.data.feature_noise(data, std=2.0, seed=0)
      >>> [round(float(noisy.client(i)["x"].std())) for i in (0, 1)]
      [0, 2]
    """
    checks.positive("std", std)
    old = column_of(data.columns, column, "column")
    clients = data.num_clients
    level = std * np.arange(clients) / max(clients - 1, 1)
    generator = keys.host_generator((seed,), _NOISE)
    new = np.empty_like(old)
    for client, (start, stop) in enumerate(zip(data.offsets[:-1], data.offsets[1:], strict=True)):
        changed = old[start:stop] + level[client] * generator.standard_normal(
            old[start:stop].shape, np.float32
        )
        if old.dtype.kind in "iu":
            limits = np.iinfo(old.dtype)
            changed = np.clip(np.rint(changed), limits.min, limits.max)
        new[start:stop] = changed.astype(old.dtype)
    return _with(data, column, new)


def rotated(
    data: ClientData, quarter_turns: tuple[int, ...] = (0, 1, 2, 3), seed: int = 0, column: str = "x"
) -> tuple[ClientData, np.ndarray]:
    """Images turned by a multiple of 90 degrees that is the client's own: clusters of clients.

    Args:
      data: examples by client.
      quarter_turns: what there is to choose from, counter-clockwise; the clients are dealt out evenly at random.
      seed: a non-negative integer.
      column: square images ``[examples, size, size, ...]``.

    Returns:
      The data, and the position in ``quarter_turns`` of each client's turn, ``int64[clients]``.

    Raises:
      ValueError: there is no such column, it does not hold square images, or ``quarter_turns`` are no integers.

    Source: Ghosh et al. 2020 (arXiv 2006.04088), section 6.1, rotated MNIST.

    Example:
      >>> import fedjax_sim as fs
      >>> data, cluster = fs.data.rotated(fs.data.digits(clients=8).train, (0, 2))
      >>> sorted(cluster.tolist())
      [0, 0, 0, 0, 1, 1, 1, 1]
    """
    old = column_of(data.columns, column, "column")
    if old.ndim < 3 or old.shape[1] != old.shape[2]:
        raise ValueError(
            f"column {column!r} has shape {list(old.shape)}, expected square images [examples, size, size, ...]."
        )
    turns = np.asarray(quarter_turns)
    if turns.ndim != 1 or not turns.size or turns.dtype.kind not in "iu":
        raise ValueError(f"quarter_turns is {quarter_turns!r}, expected integers, at least one.")
    generator = keys.host_generator((seed,), _ROTATION)
    cluster = generator.permutation(np.arange(data.num_clients) % len(turns))
    new = np.empty_like(old)
    for client, (start, stop) in enumerate(zip(data.offsets[:-1], data.offsets[1:], strict=True)):
        new[start:stop] = np.rot90(old[start:stop], int(turns[cluster[client]]), axes=(1, 2))
    return _with(data, column, new), cluster


def _with(data: ClientData, name: str, column: np.ndarray) -> ClientData:
    return ClientData({**data.columns, name: column}, data.offsets, data.ids)
