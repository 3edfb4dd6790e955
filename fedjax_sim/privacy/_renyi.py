"""Renyi curves: the price of one release as a function of the order alpha, and what chance in who takes part makes of it.

For laws of noise that ``dp_accounting`` has no event for. Its import stands where it is used.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fedjax_sim._src.grid import Settings, grid
from fedjax_sim.privacy._ledger import Entry, Sampling

Curve = Callable[[float], float]
"""Order, above 1, to the Renyi divergence between what two neighbours release."""


def gaussian(entry: Entry, moves: float) -> Curve:
    """Mironov 2017, proposition 7."""
    return lambda alpha: alpha * (moves / entry.multiplier) ** 2 / 2


def laplace(entry: Entry, moves: float) -> Curve:
    """Mironov 2017, proposition 6."""
    b = entry.multiplier / moves

    def curve(alpha: float) -> float:
        up = math.log(alpha / (2 * alpha - 1)) + (alpha - 1) / b
        down = math.log((alpha - 1) / (2 * alpha - 1)) - alpha / b
        return float(np.logaddexp(up, down)) / (alpha - 1)

    return curve


def discrete_gaussian(entry: Entry, moves: float) -> Curve:
    """Kairouz, Liu and Steinke 2021, proposition 14: the sum of ``n`` discrete Gaussians, moved by a vector of integers.

    More clients than ``min_clients`` add noise of their own, which is post-processing.
    """
    l1, l2, std, dimension = _on_the_grid(entry, moves)
    n = int(entry.details["min_clients"])
    k = np.arange(1, n, dtype=np.float64)
    tau = 10 * float(np.sum(np.exp(-2 * math.pi**2 * std**2 * k / (k + 1))))
    total = math.sqrt(n) * std

    def curve(alpha: float) -> float:
        return min(
            alpha * (l2 / total) ** 2 / 2 + tau * dimension,
            alpha / 2 * ((l2 / total) ** 2 + 2 * l1 / total * tau + tau**2 * dimension),
            alpha / 2 * (l2 / total + tau * math.sqrt(dimension)) ** 2,
        )

    return curve


def skellam(entry: Entry, moves: float) -> Curve:
    """Agarwal, Kairouz and Liu 2021, theorem 3.5, for whole orders; the divergence never falls with the order."""
    l1, l2, std, _ = _on_the_grid(entry, moves)
    variance = int(entry.details["min_clients"]) * std**2

    def curve(alpha: float) -> float:
        alpha = math.ceil(alpha)
        more = min(
            ((2 * alpha - 1) * l2**2 + 6 * l1) / (4 * variance**2),
            3 * l1 / (2 * variance),
        )
        return alpha * l2**2 / (2 * variance) + more

    return curve


def _on_the_grid(entry: Entry, moves: float) -> tuple[float, float, float, int]:
    """By how much one client moves the sum of integers, in L1 and L2; the deviation of a client's noise; the dimension."""
    details = dict(entry.details)
    dimension = details.pop("dimension", None)
    if dimension is None:
        raise ValueError(
            f"the price of {entry.law} noise depends on the size of the message: use Simulation.privacy, which knows it, or "
            "give the message of one client as epsilon(..., message=params)."
        )
    fields = {name: details[name] for name in Settings._fields if name != "noise_multiplier"}
    made = grid(Settings(entry.multiplier, **fields), dimension)
    norm = math.sqrt(made.squared_norm)
    # Integers are no larger than their squares.
    l1 = min(math.sqrt(dimension) * norm, made.squared_norm)
    return moves * l1, moves * norm, made.local_std, dimension


CURVES: dict[str, Callable[[Entry, float], Curve]] = {
    "gaussian": gaussian,
    "laplace": laplace,
    "discrete_gaussian": discrete_gaussian,
    "skellam": skellam,
}
"""Law of noise to its curve, when one client moves the sum by so many of its bounds: 1, or 2 when it is replaced."""


def drawn(curve: Curve, rate: float) -> Curve:
    """What is left of a price when a client takes part with probability ``rate``, whatever else depends on who came.

    Let P and Q be what neighbours release. Given the cohort they are equal where the client is not in it, and ``curve`` bounds
    them where it is. ``E_Q[(P / Q)^alpha]`` is jointly convex in P and Q, so that over cohorts it is at most
    ``(1 - rate) + rate exp((alpha - 1) curve(alpha))``. It needs the cohort to be independent of the data alone. The bounds
    for sampled Gaussians are smaller, by squares of the rate, but theirs is noise that does not depend on who came: here a client
    brings its share, so that its absence shows.
    """

    def amplified(alpha: float) -> float:
        inside = math.log(rate) + (alpha - 1) * curve(alpha)
        outside = math.log1p(-rate) if rate < 1 else -math.inf
        return float(np.logaddexp(inside, outside)) / (alpha - 1)

    return amplified


def rate_of(sampling: Sampling) -> float | None:
    """The probability that a client is in a round's cohort, of laws that draw every round anew and look at no data."""
    if sampling.law in ("poisson", "truncated_poisson"):
        return sampling.rate
    if sampling.law == "without_replacement" and sampling.population and sampling.size:
        return sampling.size / sampling.population
    return None


def events(entries: list[Entry], moves: float) -> list[tuple[Any, int]]:
    """Events, and how many of each, of all entries: what is released in the same round is added up before it is amplified."""
    make = renyi_event()
    found = []
    for sampling in dict.fromkeys(entry.sampling for entry in entries):
        mine = [entry for entry in entries if entry.sampling == sampling]
        edges = sorted({edge for entry in mine for edge in (entry.first, entry.first + entry.rounds)})
        for start, stop in itertools.pairwise(edges):
            curves = [
                CURVES[e.law](e, moves) for e in mine if e.first <= start and stop <= e.first + e.rounds
            ]
            if not curves:
                continue
            whole = functools.partial(_total, tuple(curves))
            rate = rate_of(sampling)
            if rate is None:
                found.append((make(whole), sampling.participations(start, stop - start)))
            else:
                found.append((make(drawn(whole, rate)), stop - start))
    return found


def _total(curves: tuple[Curve, ...], alpha: float) -> float:
    return math.fsum(curve(alpha) for curve in curves)


@functools.cache
def renyi_event() -> type:
    """A ``DpEvent`` that is a curve."""
    import attr
    import dp_accounting as dp

    @attr.s(frozen=True, slots=True, auto_attribs=True)
    class RenyiDpEvent(dp.DpEvent):
        curve: Any

    return RenyiDpEvent


@functools.cache
def rdp_accountant() -> type:
    """dp-accounting's RDP accountant, which knows curves as well."""
    import dp_accounting as dp

    event_type = renyi_event()

    class Accountant(dp.rdp.RdpAccountant):
        def _maybe_compose(self, event, count, do_compose):
            if not isinstance(event, event_type):
                return super()._maybe_compose(event, count, do_compose)
            if do_compose:
                curve: Curve = getattr(event, "curve")  # noqa: B009
                self._rdp += count * np.array([curve(float(alpha)) for alpha in self._orders])
            return None

    return Accountant
