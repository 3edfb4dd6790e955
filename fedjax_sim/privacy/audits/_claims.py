"""What a chain's facts claim of the noise that it adds, as a test of what it releases."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import scipy

from fedjax_sim._src import tree
from fedjax_sim._src.types import Facts, Message, Noise, Transform
from fedjax_sim.aggregation._chain import specs_of
from fedjax_sim.privacy.audits import _noise_laws as laws
from fedjax_sim.privacy.audits._counts import counts_clients

Cdf = Callable[[np.ndarray], np.ndarray]


class Cohort(NamedTuple):
    """Who sends: ``clients`` of them, and the public divisor, another number, so that dividing by the wrong one shows."""

    clients: int = 4
    expected: float = 8.0


class Claim(NamedTuple):
    """What the facts say.

    Attributes:
      std: of the noise on the sum in the first round.
      bound: on what one client moves the sum by.
      white: makes standard Gaussians of ``[2 * rounds, coordinates]`` that two runs released, with a generator.
      integers: law of the integers that are seen instead of the sum; ``None`` without.
      correlated: rounds of a run share noise, so that a run carries the state from one to the next.
      order: of the norm that is bounded, 1 or 2.
    """

    std: float
    bound: float
    white: Callable[[np.ndarray, np.random.Generator], np.ndarray]
    integers: laws.IntegerSum | None = None
    correlated: bool = False
    order: int = 2


class _Added(NamedTuple):
    """Noise of a layer, the bound and the size of the message that it gets, the factor of a simulated deployment."""

    facts: Facts
    bound: float
    dimension: int
    share: float

    @property
    def noise(self) -> Noise:
        noise = self.facts.noise
        assert noise is not None
        return noise

    def scale(self, round_: int) -> float:
        """Multiplier times bound."""
        z = self.noise.multiplier
        return _at(z, round_) * self.bound * self.share


def _at(value: Any, round_: int) -> float:
    """A number, or a schedule's in a round."""
    return float(value(round_) if callable(value) else value)  # type: ignore[arg-type]


def cohort_of(transform: Transform) -> Cohort:
    """As many clients as distributed noise counts on."""
    least = [f.noise.details.get("min_clients", 0) for f in transform.facts if f.noise is not None]
    clients = max(4, *least) if least else 4
    return Cohort(clients, 2.0 * clients)


def claim(transform: Transform, spec: Any, cohort: Cohort, rounds: int, std: Any, cdf: Cdf | None) -> Claim:
    """Reads a chain's facts.

    Args:
      transform: the chain.
      spec: message of one client.
      cohort: who sends.
      rounds: of each of two runs.
      std: standard deviation of the noise on the sum, or a function of the round, to take the facts' place.
      cdf: of the noise over its deviation, likewise.

    Raises:
      ValueError: no noise, no bound, or noise whose law is not known.
    """
    added, bound = _added(transform, spec, cohort)
    if not added and std is None:
        raise ValueError(
            "the chain adds no noise, so there is nothing to audit: use for example "
            "agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over='expected_cohort'), agg.gaussian_noise(0.8))."
        )
    if not math.isfinite(bound):
        raise ValueError("the chain has no bound on a client's message: clip first.")
    order = 1 if added and all(each.facts.norm == "l1" for each in added) else 2
    if std is not None:
        stds = np.array([_at(std, t) for t in range(rounds)])
        return Claim(float(stds[0]), bound, _independent(stds, cdf), order=order)
    for each in added:
        _check(each, rounds)
    found = {each.noise.law for each in added}
    if found <= laws.WHITENING.keys():
        return _gaussian(added, bound, cohort, rounds, cdf)
    if len(added) > 1:
        raise ValueError(
            f"the noise is a sum by the laws {', '.join(each.noise.law for each in added)}, whose law the audit does not know: "
            "give std=... and cdf=..., or audit each noise in a chain of its own."
        )
    (only,) = added
    if only.noise.law in laws.INTEGER_LAWS:
        law = laws.integer_sum(only.noise, bound, cohort.clients, only.dimension)
        return Claim(law.std, law.bound, law.gaussian, integers=law)
    terms = cohort.clients if only.noise.law == "local_laplace" else 1
    stds = np.array([only.scale(t) * math.sqrt(2 * terms) for t in range(rounds)])
    own = cdf or (lambda x: laws.laplace_cdf(x, terms))
    return Claim(float(stds[0]), bound, _independent(stds, own), order=order)


_LAWS = {*laws.WHITENING, *laws.INTEGER_LAWS, "laplace", "local_laplace"}


def _added(transform: Transform, spec: Any, cohort: Cohort) -> tuple[list[_Added], float]:
    server, _ = transform.init(Message(spec))
    limit = bound = math.inf
    found = []
    layers = transform.parts or (transform,)
    for layer, part, sent in zip(layers, server, specs_of(transform, Message(spec)), strict=False):
        facts = layer.facts[0]
        if facts.noise is not None:
            found.append(_Added(facts, limit, tree.size(sent.value), _share(facts, cohort)))
            bound = min(bound, limit)  # what local and distributed noise send has none
        limit = float(layer.bound(part, limit))
    return found, min(bound, limit)


def _share(facts: Facts, cohort: Cohort) -> float:
    """Factor of the noise that a simulated deployment leaves."""
    deployed = facts.deployment
    return 1.0 if deployed is None else cohort.expected / deployed[0].expected(deployed[1])


def stds_of_counts(transform: Transform, cohort: Cohort) -> list[float]:
    """Standard deviations of the noise on the sums of bits, of the layers that count clients."""
    facts = [layer.facts[0] for layer in transform.parts or (transform,) if counts_clients(layer)]
    return [float(each.count_noise_std) * _share(each, cohort) for each in facts]


def _check(added: _Added, rounds: int) -> None:
    """Of a known law, and not longer than the audit looks."""
    name, noise = added.facts.name, added.noise
    if noise.law not in _LAWS:
        raise ValueError(
            f"{name} adds noise by the law {noise.law!r}, whose standard deviation the audit does not know: "
            "give std=... and cdf=..."
        )
    restart, bands = noise.details.get("restart_every") or 0, noise.details.get("bands", 0)
    for period, what in (
        (2 * restart, f"begins a tree every {restart}"),
        (bands, f"is correlated over {bands}"),
    ):
        if period > rounds:
            raise ValueError(
                f"{name} {what} rounds, but each of the audit's two runs has {rounds}: give rounds={2 * period} or more."
            )


def _gaussian(added: list[_Added], bound: float, cohort: Cohort, rounds: int, cdf: Cdf | None) -> Claim:
    """The noises' joint law over rounds is Gaussian; the triangular root of its covariance makes white noise of it."""
    total = np.zeros((rounds, rounds))
    for each in added:
        clients = cohort.clients if each.noise.trust == "local" else 1
        stds = np.array([each.scale(t) * math.sqrt(clients) for t in range(rounds)])
        total += laws.covariance(each.noise, stds)
    root = np.linalg.cholesky(total)
    correlated = any(each.facts.one_bound for each in added)

    def white(released, generator):
        runs = [np.linalg.solve(root, run) for run in np.split(released, 2)]
        return _as_gaussian(np.concatenate(runs), cdf)

    return Claim(float(root[0, 0]), bound, white, correlated=correlated)


def _independent(stds: np.ndarray, cdf: Cdf | None):
    return lambda released, generator: _as_gaussian(released / np.tile(stds, 2)[:, None], cdf)


def _as_gaussian(noise: np.ndarray, cdf: Cdf | None) -> np.ndarray:
    """By its distribution function, that of unit variance."""
    if cdf is None:
        return noise
    with np.errstate(divide="ignore", invalid="ignore"):
        return scipy.special.ndtri(cdf(noise))
