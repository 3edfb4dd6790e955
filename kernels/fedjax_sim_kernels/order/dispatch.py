"""Which form order statistics take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels import backends
from fedjax_sim_kernels.backends import Backend
from fedjax_sim_kernels.order import network, reference

Form = Literal["network", "pallas", "reference"]


class Few(NamedTuple):
    """A form for at most so many rows; more of them take the reference, a sort."""

    form: Form
    most_rows: int


FORMS: Mapping[Backend, Few] = {
    "cpu": Few("network", 1024),
    "nvidia": Few("pallas", 16),
    "other": Few("reference", 0),
}
"""Median of 20 rows of 1,206,590 on a core of a Zen 4, ms: network 183, sort 1,545; a network for more than 1,024 rows would be
a longer program than the gain is worth. Of 10 such rows on an H200: Pallas 0.146, sort 1.24, network 32.6. Counting takes the
square of the rows, filled up to a power of two: of 50 rows of 199,210 sort 0.594, Pallas 5.87, network 10.3. Between 16 and
50 rows nothing was timed on a GPU, and no trimmed mean, which counts alike."""


def choose(rows: jax.Array) -> Form:
    """The form for these rows on this backend."""
    form, most_rows = FORMS[backends.current()]
    # Pallas was timed with float32 alone.
    fits = rows.shape[0] <= most_rows and (form != "pallas" or rows.dtype == jnp.float32)
    return form if fits else "reference"


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
    return _run("median", rows, valid)


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
    return _run("trimmed_mean", rows, valid, jnp.asarray(trim, jnp.int32))


def _run(statistic: Literal["median", "trimmed_mean"], rows: jax.Array, *others: jax.Array) -> jax.Array:
    form = choose(rows)
    if form != "pallas":
        return getattr(network if form == "network" else reference, statistic)(rows, *others)
    from fedjax_sim_kernels.order import pallas  # where it is not dispatched to, it is not imported

    # A program may be for the CPU of a machine that has a GPU: it sorts.
    return lax.platform_dependent(
        rows, *others, cuda=getattr(pallas, statistic), default=getattr(reference, statistic)
    )
