"""A mechanism-level test: does a chain release what its facts claim, whatever a client sends?"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks, keys, tree
from fedjax_sim._src.types import Message, Transform
from fedjax_sim.aggregation import chain, run
from fedjax_sim.privacy.audits._noise_tests import NoiseTest, noise_tests

CLIENTS, EXPECTED = 4, 8.0
"""Messages of a round, and the public divisor: another number, so that dividing by the wrong one shows."""
SIZES = (50, 1, 3, 7)
"""Examples of the clients. The canary, the first, has many: with noise the weights are uniform."""


@dataclasses.dataclass(frozen=True)
class MechanismAudit:
    """What ``audit_mechanism`` found.

    Attributes:
      std: claimed standard deviation of the noise on the sum, of the first round.
      bound: claimed L2 bound of one client's message.
      tests: exact tests of the noise.
      signals: for each thing that the canary sent, the largest L2 norm by which it moved the sum; infinite where the
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
    cdf: Callable[[np.ndarray], np.ndarray] | None = None,
) -> MechanismAudit:
    """Runs a chain on one canary and silent other clients, and tests what is released against what its facts claim.

    The other clients send zeros. So what comes out is noise and canary; with the same key, the difference of two releases is
    the canary alone.

    - The noise: its variance over all and in each leaf (chi-square), its law (Kolmogorov-Smirnov), its mean over rounds, over
      coordinates and over leaves (chi-square), and the largest correlation between any two coordinates and between any two
      rounds, of two seeds (Student's t, by Bonferroni over the pairs). If the claim is true, a p-value is below p with
      probability p at most; Bonferroni holds the level of all together.
    - The canary: by how much it moves the sum, whatever it sends: a message at the bound, far beyond it, in one leaf alone,
      NaN, infinite, or with squares beyond float32. That must be at most the bound, and the same in every round.

    Args:
      transform: a chain with noise, such as ``agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"),
        agg.gaussian_noise(1.0))``. Its state is that of a first round in every round.
      spec: message of one client, a pytree of arrays or ``ShapeDtypeStruct``; by default three leaves of 60 numbers.
      rounds: how many are drawn, half of them from another seed; at least 8.
      level: probability that a right mechanism fails.
      tolerance: for rounding, in what the canary moves.
      seed: of the noise.
      std: standard deviation of the noise on the sum, a number or a function of the round; by default read off the facts,
        which name it for Gaussian and Laplace noise on the sum, and for local Gaussian noise.
      cdf: distribution function of the noise over its standard deviation; that of the law by default, Gaussian where ``std`` is given.

    Raises:
      ValueError: a chain that adds no noise, noise of another law without ``std`` and ``cdf``, a level outside (0, 1).

    Example:
      >>> from fedjax_sim import aggregation as agg
      >>> from fedjax_sim.privacy import audits
      >>> private = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.8))
      >>> audits.audit_mechanism(private, rounds=100).passed
      True
    """
    checks.fraction("level", level)
    checks.positive("tolerance", tolerance)
    checks.positive_int("rounds", rounds)
    if rounds < 8:
        raise ValueError(f"rounds is {rounds}, expected at least 8, for correlations to mean something.")
    transform = chain(transform)
    default = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in _LEAVES.items()}
    spec = default if spec is None else tree.spec(spec)
    server, _ = transform.init(Message(spec))
    claimed, bound, cdf = _claim(transform, server, std, cdf)

    half = rounds // 2
    silence = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), spec)
    canaries = _canaries(spec, bound, seed)
    # All in one program: silent rounds of two seeds, then the first rounds again for each canary.
    seeds = [*np.repeat([seed, seed + 1], half), *[seed] * (_AGAIN * len(canaries))]
    indices = np.array([*np.tile(np.arange(half), 2), *np.tile(np.arange(_AGAIN), len(canaries))])
    sent = [(silence, 2 * half), *((canary, _AGAIN) for canary in canaries.values())]
    rows = jax.tree.map(lambda *x: np.concatenate([np.repeat(y[None], n, 0) for y, (_, n) in zip(x, sent, strict=True)]),
                        *(jax.tree.map(np.asarray, one) for one, _ in sent))  # fmt: skip
    roots = jax.vmap(lambda s: jax.random.key(s, impl="threefry2x32"))(np.array(seeds))
    # One round after the other: vmap would unroll the generator of each layer's numbers, which takes long to compile.
    release = lambda row: _release(transform, *row)  # noqa: E731
    released = _rows(jax.jit(lambda *all_rows: jax.lax.map(release, all_rows))(rows, roots, indices))
    noise, moved = released[: 2 * half], released[2 * half :].reshape(len(canaries), _AGAIN, -1)
    stds = np.array([claimed(int(index)) for index in indices[: 2 * half]])

    slack = tolerance * (bound + stds[:_AGAIN].max())
    signals = {name: _moved(sums, noise[:_AGAIN], slack) for name, sums in zip(canaries, moved, strict=True)}
    sizes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(spec)]
    tests = noise_tests(noise / stds[:, None], sizes, cdf)
    return MechanismAudit(float(stds[0]), bound, tests, signals, level, tolerance, noise.size)


_AGAIN = 4
"""Rounds in which each canary is sent."""
_LEAVES = {"a": (60,), "b": (6, 10), "c": (3, 4, 5)}


def _laplace_cdf(x: np.ndarray) -> np.ndarray:
    """Of unit variance."""
    tail = np.exp(-math.sqrt(2) * np.abs(x)) / 2
    return np.where(x < 0, tail, 1 - tail)


_KNOWN: dict[str, tuple[float, Callable[[np.ndarray], np.ndarray] | None]] = {
    "gaussian": (1.0, None),
    "filtered_gaussian": (1.0, None),
    "laplace": (math.sqrt(2), _laplace_cdf),
    "local_gaussian": (math.sqrt(CLIENTS), None),
}
"""Law of noise to the standard deviation on the sum over multiplier times bound, and the distribution function; Gaussian: none."""


def _claim(transform: Transform, server, std: Any, cdf):
    """By the facts: deviation of the noise on the sum by round, bound of one message, distribution function of the noise."""
    limit = bound = np.inf
    laws: list[str] = []
    scales: list[tuple[Any, float]] = []
    for layer, part in zip(transform.parts or (transform,), server, strict=True):
        noise = layer.facts[0].noise
        if noise is not None:
            if std is None and noise.law not in _KNOWN:
                raise ValueError(
                    f"{layer.facts[0].name} adds noise by the law {noise.law!r}, whose standard deviation the audit does not know: "
                    "give std=... and cdf=..."
                )
            deployed = layer.facts[0].deployment
            share = 1.0 if deployed is None else EXPECTED / deployed[0].expected(deployed[1])
            laws.append(noise.law)
            scales.append((noise.multiplier, share * limit * _KNOWN.get(noise.law, (1.0, None))[0]))
            bound = min(bound, limit)  # what local noise sends has none
        limit = float(layer.bound(part, limit))
    if not laws and std is None:
        raise ValueError(
            "the chain adds no noise, so there is nothing to audit: use for example "
            "agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over='expected_cohort'), agg.gaussian_noise(0.8))."
        )
    bound = min(bound, limit)
    if not math.isfinite(bound):
        raise ValueError("the chain has no bound on a client's message: clip first.")
    if cdf is None and std is None:
        functions = {_KNOWN[law][1] for law in laws}
        if len(functions) > 1 or (len(laws) > 1 and functions != {None}):
            raise ValueError(
                f"the noise is a sum by the laws {', '.join(laws)}, whose law the audit does not know: give cdf=..."
            )
        (cdf,) = functions

    def of_round(index: int) -> float:
        numbers = [_at(z, index) * scale for z, scale in scales]
        return math.hypot(*numbers) if std is None else _at(std, index)

    return of_round, bound, cdf


def _at(value: Any, index: int) -> float:
    """A number, or a schedule's in a round."""
    return float(value(index) if callable(value) else value)  # type: ignore[arg-type]


def _release(transform: Transform, canary, key, index):
    """The decoded sum over the clients of one round: what is released, times the public divisor."""
    silent = jax.tree.map(
        lambda x: jnp.concatenate([x[None], jnp.zeros((CLIENTS - 1, *x.shape), x.dtype)]), canary
    )
    released, _, _ = run(
        transform,
        silent,
        key=keys.fold(key, 0),
        num_examples=np.array(SIZES),
        expected_clients=EXPECTED,
        round_=index,
    )
    return jax.tree.map(lambda x: x * EXPECTED, released)


def _rows(released) -> np.ndarray:
    """A tree of ``[rounds, ...]`` as ``f64[rounds, coordinates]``, leaf after leaf."""
    leaves = [np.asarray(x, np.float64) for x in jax.tree.leaves(released)]
    return np.concatenate([x.reshape(len(x), -1) for x in leaves], axis=1)


def _moved(sums: np.ndarray, quiet: np.ndarray, slack: float) -> float:
    """Norm of what a canary changed; infinite where it is not finite or not the same in every round."""
    if not np.isfinite(sums).all() or not np.isfinite(quiet).all():
        return math.inf
    change = sums - quiet
    same = np.max(np.abs(change - change[0])) <= slack
    return float(np.linalg.norm(change, axis=1).max()) if same else math.inf


def _canaries(spec, bound: float, seed: int) -> dict[str, Any]:
    """What a client may send, by name."""
    generator = np.random.default_rng(seed)
    direction = jax.tree.map(lambda x: generator.normal(size=x.shape), spec)
    length = math.sqrt(sum(float(np.sum(x**2)) for x in jax.tree.leaves(direction)))
    leaves, structure = jax.tree.flatten(direction)

    def of(scale: float):
        return [x * scale * bound / length for x in leaves]

    largest = max(range(len(leaves)), key=lambda i: leaves[i].size)
    bad = lambda value: [np.where(np.arange(x.size).reshape(x.shape) == 0, value, x / length) for x in leaves]  # noqa: E731
    sent = {
        "canary at the bound": of(1.0),
        "canary a million times beyond": of(1e6),
        "canary in one leaf alone": [x * 1e3 * (i == largest) for i, x in enumerate(of(1.0))],
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
