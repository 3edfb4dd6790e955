"""The settings of a pooling."""

from __future__ import annotations

from typing import Literal, NamedTuple

from fedjax_sim_kernels.windows import Ints, Pads

Kind = Literal["max", "min", "sum"]


class PoolSpec(NamedTuple):
    """Settings of ``lax.reduce_window``, one entry per axis of the array, batch and channels included; hashable.

    Attributes:
      kind: what is taken of each window.
      window: extents.
      strides: steps.
      padding: ``(low, high)`` per axis; padding never wins and adds nothing.
      base_dilation: elements lie so far apart, with padding between them.
      window_dilation: elements of the window lie so far apart.
    """

    kind: Kind
    window: Ints
    strides: Ints
    padding: Pads
    base_dilation: Ints
    window_dilation: Ints
