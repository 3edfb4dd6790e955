"""The grid of integers on which clients add discrete noise: its fineness, its noise, and the norm after rounding.

Plain numbers, for the layer that adds the noise and for the accountant that prices it: both ask here, so they cannot
disagree. Letters follow Kairouz, Liu and Steinke 2021: ``c`` the clip norm, ``gamma`` the granularity, ``d`` the dimension,
``n`` the clients.
"""

from __future__ import annotations

import math
from typing import NamedTuple

FINEST_STD = 4096.0
"""Deviation of one client's noise on the finest grid, in steps of it. Rounding then adds 10^-8 of the noise's variance, so
that more bits would be of no use; the tables that draw the noise grow with it."""
COARSEST_STD = 0.5
"""Below half a step the sum of discrete Gaussians has no bound (proposition 14)."""


class Grid(NamedTuple):
    """A grid, in units of its own step.

    Attributes:
      levels: ``c / gamma``, the clip norm.
      local_std: standard deviation of the noise that one client adds.
      squared_norm: the largest squared L2 norm of a rounded message.
    """

    levels: float
    local_std: float
    squared_norm: float


class Settings(NamedTuple):
    """What a grid follows from, beside the dimension.

    Attributes:
      noise_multiplier: deviation of the noise of ``min_clients`` clients together over the clip norm.
      min_clients: whose noise is counted on.
      max_clients: for whose sum there is room.
      bits: of the modulus, ``2^bits``.
      deviations: ``k``, how many standard deviations of a coordinate of the sum the modulus holds on either side.
      beta: the chance that a rounded message is rounded again is at most this.
    """

    noise_multiplier: float
    min_clients: int
    max_clients: int
    bits: int
    deviations: float
    beta: float


def grid(settings: Settings, dimension: int) -> Grid:
    """The finest grid on which the sum has room.

    Raises:
      ValueError: too few bits for so many clients.
    """
    levels = _levels(settings, dimension)
    local_std = _local_std(settings, levels)
    if local_std < COARSEST_STD:
        wider = (settings._replace(bits=bits) for bits in range(settings.bits + 1, 33))
        enough = [s.bits for s in wider if _local_std(s, _levels(s, dimension)) >= COARSEST_STD]
        fix = f"Use bits={enough[0]} or more." if enough else "No number of bits is enough: use more noise."
        raise ValueError(
            f"bits is {settings.bits}, too few for a sum over up to {settings.max_clients} clients of {dimension} coordinates: "
            f"one client's noise would have a deviation of {local_std:.2g} steps of the grid, expected at least "
            f"{COARSEST_STD}. {fix}"
        )
    return Grid(levels, local_std, _rounded_norm(levels, settings.beta, dimension) ** 2)


def _levels(settings: Settings, dimension: int) -> float:
    z, n, most, bits, k, _ = settings
    # The modulus holds k deviations on either side (section 4.2, with the transform's flatness rho = 1):
    #   2^bits gamma = 2 k sqrt(c^2 most^2 / d + most gamma^2 / 4 + most sigma^2),  sigma = z c / sqrt(n)
    # the three terms being messages that all point alike, rounding, and noise. Solved for c / gamma:
    room = max(4.0**bits - most * k**2, 0.0)
    levels = math.sqrt(room) / (2 * k * math.sqrt(most**2 / dimension + z**2 * most / n))
    return min(levels, FINEST_STD * math.sqrt(n) / z, 2.0**30)


def _local_std(settings: Settings, levels: float) -> float:
    return settings.noise_multiplier * levels / math.sqrt(settings.min_clients)


def _rounded_norm(levels: float, beta: float, dimension: int) -> float:
    """Theorem 1: the norm that a message of norm ``levels`` keeps when it is rounded until it has it."""
    always = levels + math.sqrt(dimension)
    if beta == 0:
        return always
    squared = levels**2 + dimension / 4
    squared += math.sqrt(2 * math.log(1 / beta)) * (levels + math.sqrt(dimension) / 2)
    return min(always, math.sqrt(squared))
