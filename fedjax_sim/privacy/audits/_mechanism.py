"""A mechanism-level test: does a chain release what its facts claim, whatever a client sends?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks, tree
from fedjax_sim._src.types import ClientRule, Transform
from fedjax_sim.aggregation import chain
from fedjax_sim.privacy.audits._claims import Cdf, Cohort, claim, cohort_of, stds_of_counts
from fedjax_sim.privacy.audits._counts import count_tests
from fedjax_sim.privacy.audits._noise_laws import IntegerSum
from fedjax_sim.privacy.audits._noise_tests import NoiseTest, lattice_test, noise_tests
from fedjax_sim.privacy.audits._releases import Rounds, program, sizes_of


@dataclasses.dataclass(frozen=True)
class MechanismAudit:
    """What ``audit_mechanism`` found.

    Attributes:
      std: claimed standard deviation of the noise on the sum, of the first round.
      bound: claimed bound on what one client moves the sum by, in L1 for Laplace noise and else in L2.
      tests: of the noise.
      signals: for each thing that the canary sent, the largest norm by which it moved the sum; infinite where the
        release was not finite or the canary moved the noise, too.
      level: probability that a right mechanism fails, over all tests together.
      tolerance: by how much a signal may exceed the bound, relative to bound plus noise.
      draws: numbers of noise that were looked at.
    """

    std: float
    bound: float
    tests: tuple[NoiseTest, ...]
    signals: Mapping[str, float]
    level: float
    tolerance: float
    draws: int

    @property
    def failures(self) -> tuple[str, ...]:
        """Names of the tests and of the signals that contradict the claim."""
        # Written so that NaN fails.
        noise = [test.name for test in self.tests if not test.p_value >= self.level / len(self.tests)]
        largest = self.bound + self.tolerance * (self.bound + self.std)
        return (*noise, *(name for name, norm in self.signals.items() if not norm <= largest))

    @property
    def passed(self) -> bool:
        """Nothing contradicts the claim."""
        return not self.failures

    def __str__(self) -> str:
        failed = self.failures
        lines = [
            f"{'passed' if self.passed else 'FAILED'}: noise of standard deviation {self.std:.4g} on the sum, bound {self.bound:.4g}; "
            f"{self.draws:,} draws, level {self.level:g} over all {len(self.tests)} tests"
        ]
        for test in self.tests:
            lines.append(
                f"  {test.name:<44}p = {test.p_value:<12.3g}{'FAILED' if test.name in failed else ''}"
            )
        for name, norm in self.signals.items():
            lines.append(f"  {name:<44}moved {norm:<10.4g}{'FAILED' if name in failed else ''}")
        return "\n".join(line.rstrip() for line in lines)


def audit_mechanism(
    transform: Transform,
    spec: Any = None,
    *,
    rounds: int = 400,
    level: float = 1e-3,
    tolerance: float = 1e-3,
    seed: int = 0,
    std: float | Callable[[int], float] | None = None,
    cdf: Cdf | None = None,
) -> MechanismAudit:
    """Runs a chain on one canary and silent other clients, and tests what is released against what its facts claim.

    The other clients send zeros. So what comes out is noise and canary; with the same key, the difference of two releases is
    the canary alone.

    - The noise: its variance over all, in each leaf and in each round (chi-square), its law (Kolmogorov-Smirnov), its mean over
      rounds, over coordinates and over leaves (chi-square), and the largest correlation between any two coordinates, between any
      two rounds, of two seeds, and between rounds at any one distance (Bonferroni over the pairs). If the claim is true, a
      p-value is below p with probability p at most; Bonferroni holds the level of all together.
    - The canary: by how much it moves the sum, whatever it sends: a message at the bound, far beyond it, in one leaf alone,
      in one coordinate alone, NaN, infinite, or with squares beyond float32. That must be at most the bound, and the same in every round.
    - Where clients are counted (``adaptive_clip``): variance, law and independence of the noise on the sum of their bits, from
      the other noise, too; no canary may move that sum by more than the half that is paid for, and the layer's next state
      must be a function of what was released.

    The tests are of independent standard Gaussians, which right noise is made into first. Of noise that is correlated over
    rounds (``tree_noise``, ``banded_noise``) two runs are looked at, and the covariance that nodes, restarts and coefficients in the
    facts give makes them white. Laplace noise goes through its distribution function, the sum of several clients' through that of
    the sum. Of distributed noise (``discrete_gaussian_noise``, ``skellam_noise``) the audit sees what the server sees, the sum
    modulo ``2^bits`` over ``min_clients`` clients, at least four: each integer becomes a Gaussian by its probability; remainders
    modulo 16 are tested, too (Pearson's chi-square), a round with a client too few must release nothing, and the
    canary's bound is that of its rounded message.

    Args:
      transform: a chain with noise, such as ``agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"),
        agg.gaussian_noise(1.0))``. Its state is that of a first round in every round, but for noise that is correlated over rounds.
      spec: message of one client, a pytree of arrays or ``ShapeDtypeStruct``; by default three leaves of 60 numbers.
      rounds: how many are drawn, half of them from another seed; at least 8.
      level: probability that a right mechanism fails.
      tolerance: for rounding, in what the canary moves.
      seed: of the noise.
      std: standard deviation of the noise on the sum, a number or a function of the round, for a law of your own; by default read
        off the facts.
      cdf: distribution function of the noise over its standard deviation; that of the law by default, Gaussian where ``std`` is given.

    Raises:
      TypeError: a client rule, whose noise is in its steps.
      ValueError: a chain that adds no noise, noise of another law, or noises of several laws, without ``std`` and ``cdf``;
        fewer rounds than two trees or the bands take; a level outside (0, 1).

    Example:
      >>> from fedjax_sim import aggregation as agg
      >>> from fedjax_sim.privacy import audits
      >>> private = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.8))
      >>> audits.audit_mechanism(private, rounds=100).passed
      True
    """
    return auditor(transform, spec, rounds=rounds, level=level, tolerance=tolerance, std=std, cdf=cdf)(seed)


def auditor(
    transform: Transform,
    spec: Any = None,
    *,
    rounds: int,
    level: float = 1e-3,
    tolerance: float = 1e-3,
    std: Any = None,
    cdf: Cdf | None = None,
) -> Callable[[int], MechanismAudit]:
    """``audit_mechanism`` as a function of the seed, compiled once."""
    checks.fraction("level", level)
    checks.positive("tolerance", tolerance)
    checks.positive_int("rounds", rounds)
    if rounds < 8:
        raise ValueError(f"rounds is {rounds}, expected at least 8, for correlations to mean something.")
    if isinstance(transform, ClientRule):
        raise TypeError(
            "audit_mechanism was given a client rule, expected a chain: the noise of a rule's steps is about single examples. "
            "Audit it end to end, with audits.shadow_members and audits.lira."
        )
    transform, half = chain(transform), rounds // 2
    default = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in _LEAVES.items()}
    spec = default if spec is None else tree.spec(spec)
    cohort = cohort_of(transform)
    claimed = claim(transform, spec, cohort, half, std, cdf)
    count_stds, present = stds_of_counts(transform, cohort), int((sizes_of(cohort.clients) > 0).sum())
    leaves = {f"leaf {i}": math.prod(leaf.shape) for i, leaf in enumerate(jax.tree.leaves(spec))}
    released = program(transform, cohort.clients, cohort.expected, claimed.correlated)
    modulus = None if claimed.integers is None else 2 ** int(_noise_details(transform)["bits"])

    def audit(seed: int) -> MechanismAudit:
        canaries = _canaries(spec, claimed.bound, claimed.order, seed)
        found = released(_rounds(spec, canaries, half, seed))
        seen = found.sums if modulus is None else _unwrapped(found.integers, modulus)
        noise, quiet = seen[: 2 * half], seen[:_AGAIN]
        moved = seen[2 * half :].reshape(len(canaries), _AGAIN, -1)
        slack = tolerance * (claimed.bound + claimed.std)
        if claimed.integers is None:
            signals = {
                name: _moved(sums, quiet, slack, claimed.order)
                for name, sums in zip(canaries, moved, strict=True)
            }
        else:
            # Rounding and rotation differ from round to round, so that what the canary moves does, too.
            changes = _unwrapped(moved - quiet, modulus) * claimed.integers.step
            norms = np.linalg.norm(changes, axis=2).max(axis=1)
            signals = dict(zip(canaries, map(float, norms), strict=True))
        white, parts = claimed.white(noise, np.random.default_rng(seed)), dict(leaves)
        if rest := noise.shape[1] - sum(leaves.values()):
            parts["padding"] = rest
        tests = (*noise_tests(white, parts, runs=2), *too_few)
        if claimed.integers is not None:
            tests += (_remainders(noise, claimed.integers),)
        for counted, count_std in zip(found.counts, count_stds, strict=True):
            shown, again = counted[: 2 * half], counted[2 * half :].reshape(len(canaries), _AGAIN, -1)
            tests += count_tests(shown, again, white, count_std, present, tolerance)
        return MechanismAudit(claimed.std, claimed.bound, tests, signals, level, tolerance, noise.size)

    too_few = () if claimed.integers is None else _discarded(transform, spec, cohort)
    return audit


_DIVISOR = 16


def _remainders(integers: np.ndarray, law: IntegerSum) -> NoiseTest:
    """Of a sum modulo a power of two, as a test that uniform numbers within each integer's probability cannot blur."""
    got = np.bincount(integers.astype(np.int64).ravel() % _DIVISOR, minlength=_DIVISOR)
    return lattice_test(got, integers.size * law.remainders(_DIVISOR))


_AGAIN = 4
"""Rounds in which each canary is sent."""
_LEAVES = {"a": (60,), "b": (6, 10), "c": (3, 4, 5)}


def _rounds(spec, canaries: dict[str, Any], half: int, seed: int) -> Rounds:
    """Silent runs of two seeds, then the first rounds again for each canary."""
    silence = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), spec)
    sent = [(silence, 2 * half), *((canary, _AGAIN) for canary in canaries.values())]
    lengths = [half, half, *[_AGAIN] * len(canaries)]
    return Rounds(
        sent=jax.tree.map(
            lambda *x: np.concatenate(
                [np.repeat(np.asarray(y)[None], n, 0) for y, (_, n) in zip(x, sent, strict=True)]
            ),
            *(one for one, _ in sent),
        ),
        seeds=np.repeat([seed, seed + 1, *[seed] * len(canaries)], lengths).astype(np.uint32),
        index=np.concatenate([np.arange(n) for n in lengths]).astype(np.int32),
        first=np.concatenate([np.arange(n) == 0 for n in lengths]),
    )


def _noise_details(transform: Transform) -> Mapping[str, Any]:
    return next(fact.noise.details for fact in transform.facts if fact.noise is not None)


def _unwrapped(integers, modulus) -> np.ndarray:
    """Remainders to the integers around zero that they stand for."""
    return (integers + modulus // 2) % modulus - modulus // 2


def _discarded(transform: Transform, spec, cohort: Cohort) -> tuple[NoiseTest, ...]:
    """Distributed noise counts on so many clients: with fewer nothing may be released."""
    least = int(_noise_details(transform)["min_clients"])
    if least < 2:
        return ()
    silence = jax.tree.map(lambda x: np.zeros((1, *x.shape), x.dtype), spec)
    one = Rounds(silence, np.zeros(1, np.uint32), np.zeros(1, np.int32), np.ones(1, bool))
    kept = program(transform, least - 1, cohort.expected, False)(one).sums
    return (NoiseTest("nothing is released of too few clients", float(not kept.any())),)


def _moved(sums: np.ndarray, quiet: np.ndarray, slack: float, order: int) -> float:
    """Norm of what a canary changed; infinite where it is not finite or not the same in every round."""
    if not np.isfinite(sums).all() or not np.isfinite(quiet).all():
        return math.inf
    change = sums - quiet
    same = np.max(np.abs(change - change[0])) <= slack
    return float(np.linalg.norm(change, order, axis=1).max()) if same else math.inf


def _canaries(spec, bound: float, order: int, seed: int) -> dict[str, Any]:
    """What a client may send, by name."""
    generator = np.random.default_rng(seed)
    direction = jax.tree.map(lambda x: generator.normal(size=x.shape), spec)
    length = float(np.linalg.norm(np.concatenate([np.ravel(x) for x in jax.tree.leaves(direction)]), order))
    leaves, structure = jax.tree.flatten(direction)

    def of(scale: float):
        return [x * scale * bound / length for x in leaves]

    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    first = [np.arange(x.size).reshape(x.shape) == 0 for x in leaves]
    bad = lambda value: [np.where(here, value, x / length) for x, here in zip(leaves, first, strict=True)]  # noqa: E731
    sent = {
        "canary at the bound": of(1.0),
        "canary a million times beyond": of(1e6),
        "canary in one leaf alone": [x * 1e3 * (i == largest) for i, x in enumerate(of(1.0))],
        "canary in one coordinate alone": [
            1e3 * bound * here * (i == largest) for i, here in enumerate(first)
        ],
        "canary with NaN": bad(np.nan),
        "canary with infinity": bad(-np.inf),
        "canary whose squares overflow": [np.full(x.shape, 1e30) for x in leaves],
    }
    with np.errstate(over="ignore"):  # narrow types make infinity of it, which is as good
        return {
            name: jax.tree.map(
                lambda x, s: jnp.asarray(x, s.dtype), jax.tree.unflatten(structure, value), spec
            )
            for name, value in sent.items()
        }
