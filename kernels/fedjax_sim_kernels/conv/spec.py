"""A convolution's settings, and the plain form that every implementation works on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fedjax_sim_kernels.windows import Ints, Pads


class ConvSpec(NamedTuple):
    """Settings of ``lax.conv_general_dilated``, all of them explicit; hashable.

    Attributes:
      strides: steps of the window, one per spatial axis.
      padding: ``(low, high)`` per spatial axis; negative ones crop.
      lhs_dilation: elements of the image lie so far apart, with zeros between them (a transposed convolution).
      rhs_dilation: elements of the kernel lie so far apart.
      dimension_numbers: ``lax.ConvDimensionNumbers``, where batch, channels and space stand.
      feature_group_count: groups of channels that do not mix.
      batch_group_count: groups of rows; only gradients of grouped convolutions have more than one.
      precision: of the products, as JAX has it.
      preferred_element_type: of the sums, ``None`` for the arguments' own.
    """

    strides: Ints
    padding: Pads
    lhs_dilation: Ints
    rhs_dilation: Ints
    dimension_numbers: lax.ConvDimensionNumbers
    feature_group_count: int = 1
    batch_group_count: int = 1
    precision: Any = None
    preferred_element_type: Any = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> ConvSpec:
        """Those of an equation of a traced program."""
        return cls(
            settings["window_strides"],
            tuple(settings["padding"]),
            settings["lhs_dilation"],
            settings["rhs_dilation"],
            settings["dimension_numbers"],
            settings["feature_group_count"],
            settings["batch_group_count"],
            settings["precision"],
            settings["preferred_element_type"],
        )


class Plain(NamedTuple):
    """A convolution with its channels last and its padding done.

    Attributes:
      x: ``[batch, *space, in_channels]``; padded, unless ``transposed`` is asked for.
      kernel: ``[*window, in_channels / groups, out_channels]``.
    """

    x: jax.Array
    kernel: jax.Array


def window_of(kernel: jax.Array, spec: ConvSpec) -> Ints:
    """Extents of the window."""
    return tuple(kernel.shape[axis] for axis in spec.dimension_numbers.rhs_spec[2:])


def plain(lhs: jax.Array, rhs: jax.Array, spec: ConvSpec, pad: bool = True) -> Plain:
    """Channels last, and the image dilated and padded."""
    (batch, channels, *space), (out, into, *window) = spec.dimension_numbers[:2]
    x = lax.transpose(lhs, (batch, *space, channels))
    kernel = lax.transpose(rhs, (*window, into, out))
    if pad:
        config = [
            (low, high, apart - 1) for (low, high), apart in zip(spec.padding, spec.lhs_dilation, strict=True)
        ]
        if any(item != (0, 0, 0) for item in config):
            x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *config, (0, 0, 0)])
    return Plain(x, kernel)


def restored(out: jax.Array, spec: ConvSpec) -> jax.Array:
    """``[batch, *positions, out_channels]`` in the order that the convolution's output has."""
    batch, channels, *space = spec.dimension_numbers.out_spec
    now = (batch, *space, channels)
    return lax.transpose(out, tuple(now.index(axis) for axis in range(len(now))))
