"""Which form order statistics take."""

from __future__ import annotations

from typing import Literal

import jax

from fedjax_sim_kernels.order import network, reference

Form = Literal["network", "reference"]

MOST_ROWS = 1024
"""A network for more rows would be a longer program than the gain is worth."""


def choose(rows: jax.Array) -> Form:
    """The form for these rows."""
    return "network" if rows.shape[0] <= MOST_ROWS else "reference"


def median(rows: jax.Array, valid: jax.Array) -> jax.Array:
    """Coordinate-wise median of the rows that are there.

    Args:
      rows: ``[rows, ...]``, floating; NaN counts as infinite.
      valid: ``bool[rows]``; the others may hold anything.

    Returns:
      ``[...]``: of an even number of rows the mean of the middle two; 0 without any.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim_kernels import order
    >>> rows = jnp.array([[1.0, 5.0], [9.0, jnp.nan], [2.0, 6.0], [0.0, 0.0]])
    >>> order.median(rows, jnp.array([True, True, True, False])).tolist()
    [2.0, 6.0]
    """
    return (network if choose(rows) == "network" else reference).median(rows, valid)


def trimmed_mean(rows: jax.Array, valid: jax.Array, trim: jax.Array) -> jax.Array:
    """Coordinate-wise mean of the rows that are there without the ``trim`` smallest and the ``trim`` largest.

    Args:
      rows: as for ``median``; likewise ``valid``.
      trim: ``int32[]``, rows to leave out at each end; may be traced.

    Returns:
      ``[...]``; 0 where nothing is left.

    >>> import jax.numpy as jnp
    >>> from fedjax_sim_kernels import order
    >>> order.trimmed_mean(jnp.array([[1.0], [2.0], [4.0], [99.0]]), jnp.ones(4, bool), 1).tolist()
    [3.0]
    """
    return (network if choose(rows) == "network" else reference).trimmed_mean(rows, valid, trim)
