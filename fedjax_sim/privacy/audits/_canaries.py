"""Canary clients: they send random directions instead of updates, and the released model is asked for them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from fedjax_sim._src import checks, keys, tree
from fedjax_sim._src.types import Algorithm, ClientRule, Delta, Message, PyTree, Stage, Variables
from fedjax_sim.aggregation._reduce import as_message
from fedjax_sim.data import ClientData
from fedjax_sim.privacy._accounting import Guarantee
from fedjax_sim.privacy._gaussian import check_delta
from fedjax_sim.privacy.audits._bounds import (
    check_confidence,
    clopper_pearson,
    one_run_lower_bound,
    rates_epsilon,
    two_gaussians_epsilon,
)

_COINS = 140
"""Purpose of the generator of coins; above those of ``keys``, so that no two decisions share a stream."""
_FALSE_RATES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-6, 1e-9, 1e-15, 1e-30)
"""False positive rates of the thresholds that are tried; fixed before anybody looks at a score."""
_GUESS_RATES = (0.3, 0.1, 1e-2, 1e-3)


@dataclasses.dataclass(frozen=True)
class Canaries:
    """Clients ``first`` to ``first + count - 1`` of a population, who send directions instead of updates.

    A canary's direction is drawn from the seed and its number: uniform on the unit sphere over all of the model's parameters,
    and the same in every round in which it is drawn into the cohort. A fair coin decides whether it sends that, or zeros: the sum over
    clients then differs by the direction, as when a client with data is added, removed, or loses them.

    Attributes:
      first: position of the first one.
      count: how many; some tens at least.
      norm: L2 norm of what one sends: the clip norm, or anything above it.
      seed: of directions and coins; another one than the run's.
      share: probability that a canary sends its direction; 1 for all of them, as in the paper. Then no bound without
        assumptions can be given.

    Example:
      >>> from fedjax_sim.privacy import audits
      >>> canaries = audits.Canaries(first=100, count=50, norm=1.0)
      >>> canaries.included.shape
      (50,)
    """

    first: int
    count: int
    norm: float
    seed: int = 0
    share: float = 0.5

    def __post_init__(self) -> None:
        checks.not_negative_int("first", self.first)
        checks.positive_int("count", self.count)
        checks.positive("norm", self.norm)
        checks.fraction("share", self.share)

    @property
    def included(self) -> np.ndarray:
        """Who sends its direction, ``bool[count]``: one coin for each."""
        generator = keys.host_generator((self.seed,), _COINS)
        return generator.random(self.count) < self.share

    def direction(self, index: Any, like: PyTree) -> PyTree:
        """The unit direction of one canary, in the shapes and dtypes of a model's parameters; zero in integer leaves.

        Numbers from ``count`` on are nobody's: directions that no run has seen.
        """
        leaves, structure = jax.tree.flatten(like)
        key = keys.fold(keys.root_key(self.seed), index)
        drawn = [
            jax.random.normal(keys.fold(key, place), jnp.shape(x), jnp.float32)
            if jnp.issubdtype(jnp.result_type(x), jnp.inexact)
            else jnp.zeros(jnp.shape(x), jnp.float32)
            for place, x in enumerate(leaves)
        ]
        length = tree.global_norm(drawn)
        unit = [(d / length).astype(jnp.result_type(x)) for d, x in zip(drawn, leaves, strict=True)]
        return jax.tree.unflatten(structure, unit)

    def join(self, algorithm: Algorithm) -> Algorithm:
        """The algorithm with these clients as canaries; for all others it is what it was.

        A canary trains as everybody does, and what it would send is replaced: the ``Delta`` in it by the direction, everything
        beside it by zeros.

        Raises:
          TypeError: while a simulation is made, of an algorithm whose clients send no ``Delta`` in any stage.
        """
        return algorithm._replace(
            stages=tuple(self._stage(stage, algorithm.name) for stage in algorithm.stages)
        )

    def _stage(self, stage: Stage, name: str) -> Stage:
        if isinstance(stage.client, ClientRule):
            return stage._replace(client=self._rule(stage.client, name))
        assert isinstance(stage.client, Mapping)
        return stage._replace(client={group: self._rule(rule, name) for group, rule in stage.client.items()})

    def _rule(self, rule: ClientRule, name: str) -> ClientRule:
        def finish(broadcast, work, state, ctx):
            sent, state, metrics = rule.finish(broadcast, work, state, ctx)
            value = as_message(sent).value
            number = jnp.clip(ctx.client - self.first, 0, self.count - 1)
            ours = ctx.client - self.first == number
            length = self.norm * jnp.asarray(self.included, jnp.float32)[number]
            value = tree.where(ours, self._instead(value, number, length, name), value)
            return (sent._replace(value=value) if isinstance(sent, Message) else value), state, metrics

        return rule._replace(finish=finish)

    def _instead(self, value: PyTree, number, length, name: str) -> PyTree:
        found = []

        def replaced(part):
            if not isinstance(part, Delta):
                return jnp.zeros_like(part)
            found.append(part)
            return Delta(tree.scale(self.direction(number, part.params), length), tree.zeros_like(part.stats))

        value = jax.tree.map(replaced, value, is_leaf=lambda part: isinstance(part, Delta))
        if len(found) != 1:
            raise TypeError(
                f"{name}: what its clients send has {len(found)} parts of type Delta, expected one, the change of the model, which a "
                "canary replaces by its direction. Audit the algorithm's chain with audit_mechanism instead."
            )
        return value

    def scores(self, models: Sequence[Variables], count: int) -> np.ndarray:
        """Of the first ``count`` directions, the largest cosine with a model's change from one to the next, ``f64[count]``.

        Raises:
          ValueError: fewer than two models, models of other shapes, or one that did not move.
        """
        params = [model.params if isinstance(model, Variables) else model for model in models]
        if len(params) < 2:
            raise ValueError(
                f"models has {len(params)} models, expected two at least: the first and the last one."
            )
        if len({str(jax.tree.map(jnp.shape, p)) for p in params}) > 1:
            raise ValueError("models are of different shapes, expected those of one run.")
        like, vectors = params[0], np.stack([_flat(p) for p in params])
        changes = np.diff(vectors, axis=0)
        lengths = np.linalg.norm(changes, axis=1)
        if not (lengths > 0).all() or not np.isfinite(lengths).all():
            place = int(np.argmin(np.where(np.isfinite(lengths), lengths, -1)))
            raise ValueError(f"model {place + 1} does not differ from the one before it, or is not finite.")
        unit = jnp.asarray(changes / lengths[:, None], jnp.float32)

        @jax.jit
        def cosines(numbers):
            def one(number):
                direction = self.direction(number, like)
                parts = [jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(direction)]
                with jax.default_matmul_precision("highest"):
                    return jnp.max(unit @ jnp.concatenate(parts))

            return jax.lax.map(one, numbers)

        return np.asarray(cosines(jnp.arange(count)), np.float64)


@dataclasses.dataclass(frozen=True)
class CanaryAudit:
    """What ``audit_canaries`` found.

    Attributes:
      epsilon: estimate, from Gaussians fitted to the cosines; it has no confidence.
      lower_bound: epsilon is at least this, with the confidence, if the canaries' scores are independent of one another. They nearly are
        where their directions are nearly orthogonal, in a model with far more parameters than there are canaries.
      one_run_bound: epsilon is at least this, with the confidence, whatever the canaries do to one another; ``None`` where no coin decided.
        It cannot exceed about the logarithm of the number of canaries.
      delta: that all three are for.
      confidence: of each of the bounds.
      included: cosines of the canaries that sent their direction, ``f64[...]``.
      excluded: of those that sent zeros.
      unobserved: of directions that nobody had.
      null_std: standard deviation of the cosine of a direction that the run has not seen; known, not fitted, for one change.
    """

    epsilon: float
    lower_bound: float
    one_run_bound: float | None
    delta: float
    confidence: float
    included: np.ndarray
    excluded: np.ndarray
    unobserved: np.ndarray
    null_std: float

    def contradicts(self, claim: Guarantee | float) -> bool:
        """Whether a bound exceeds a claimed epsilon, which a right claim does with probability ``1 - confidence`` at most for each.

        Args:
          claim: what ``Simulation.privacy`` gives, at the audit's delta; or an epsilon.

        Raises:
          ValueError: a claim at another delta, or one for a simulated cohort, which is not about the run.
        """
        if isinstance(claim, Guarantee):
            if claim.simulated:
                raise ValueError(
                    "the claim is that of a simulated cohort, not of this run, whose noise is smaller: it cannot be audited here."
                )
            if claim.delta != self.delta:
                raise ValueError(
                    f"the claim is at delta {claim.delta}, the audit at {self.delta}: ask for both at the same delta."
                )
            claim = claim.epsilon
        return max(self.lower_bound, self.one_run_bound or 0.0) > claim

    def __str__(self) -> str:
        percent = f"{100 * self.confidence:g} %"
        lines = [
            f"epsilon is about {self.epsilon:.3g}, and at least {self.lower_bound:.3g} with {percent} confidence, at delta {self.delta:.3g}"
        ]
        if self.one_run_bound is not None:
            lines.append(f"at least {self.one_run_bound:.3g} also if canaries depend on one another")
        deviations = f"{self.included.mean() / self.null_std:.2f} standard deviations"
        lines.append(
            f"{len(self.included)} canaries with a mean cosine of {self.included.mean():.4f}, {deviations} above those of nobody"
        )
        return "\n".join(lines)


def add_canaries(data: ClientData, count: int) -> tuple[ClientData, int]:
    """A population with ``count`` more clients at its end, each with a copy of the first example, which it will not use.

    Args:
      data: the clients that train.
      count: how many canaries join them.

    Returns:
      The larger population, and the position of the first canary.

    Raises:
      TypeError: data that are no ``ClientData``.
      ValueError: data without an example.

    Example:
      >>> import fedjax_sim as fs
      >>> from fedjax_sim.privacy import audits
      >>> data = fs.data.load("digits", clients=20, alpha=1.0, seed=0)
      >>> population, first = audits.add_canaries(data.train, 30)
      >>> population.num_clients, first
      (50, 20)
    """
    checks.positive_int("count", count)
    if not isinstance(data, ClientData):
        raise TypeError(
            f"data is {type(data).__name__}, expected ClientData, such as data.train or source.in_memory."
        )
    if data.num_examples == 0:
        raise ValueError("data has no example that a canary could hold.")
    columns = {
        name: np.concatenate([column, np.repeat(column[:1], count, axis=0)])
        for name, column in data.columns.items()
    }
    offsets = np.concatenate([data.offsets, data.num_examples + 1 + np.arange(count)])
    if data.ids.dtype.kind == "U":
        more = np.array([f"canary-{number}" for number in range(count)])
    else:
        more = data.ids.max() + 1 + np.arange(count, dtype=data.ids.dtype)
    return ClientData(columns, offsets, np.concatenate([data.ids, more])), data.num_clients


def audit_canaries(
    canaries: Canaries,
    models: Sequence[Variables],
    delta: float,
    *,
    confidence: float = 0.95,
    unobserved: int = 1000,
) -> CanaryAudit:
    """What a run's models say about who took part: an estimate of epsilon and lower bounds, from a single run.

    The statistic of a canary is the cosine between its direction and the change of the model, or the largest one if models of
    several rounds are given. A direction that the run has not seen is independent of the model, so the law of its cosine is known exactly.

    Args:
      canaries: those that were in the run: it ran ``canaries.join(algorithm)``.
      models: the first and the last model, ``sim.algorithm.params(state.server)``; or those of all rounds, in order, from
        the first on, for an attacker who sees them all.
      delta: in (0, 1); that of the claim.
      confidence: of each bound.
      unobserved: directions of nobody, to look at beside the canaries.

    Raises:
      ValueError: fewer than two canaries that sent their direction; models that did not move.

    Source: Andrew et al. 2024, "One-shot Empirical Privacy Estimation for Federated Learning", algorithms 1 and 2; the bound that needs no
    independence: Steinke et al. 2023, "Privacy Auditing with One (1) Training Run".

    Example:
      >>> import fedjax_sim as fs, optax
      >>> from fedjax_sim import aggregation as agg
      >>> from fedjax_sim.privacy import audits
      >>> data = fs.data.load("digits", clients=10, alpha=1.0, seed=0)
      >>> population, first = audits.add_canaries(data.train, 30)
      >>> canaries = audits.Canaries(first, 30, norm=1.0)
      >>> private = agg.chain(agg.clip_by_global_norm(1.0), agg.mean(over="expected_cohort"), agg.gaussian_noise(2.0))
      >>> task = fs.tasks.classification(fs.models.linear(classes=10))
      >>> algorithm = fs.algorithms.fedavg(task, optax.sgd(0.01), aggregate=private)
      >>> sim = fs.Simulation(canaries.join(algorithm), population, cohort=fs.cohorts.poisson(0.5))
      >>> start = sim.init(seed=1)
      >>> end, _ = sim.run(start, rounds=5)
      >>> audit = audits.audit_canaries(canaries, [algorithm.params(s.server) for s in (start, end)], delta=1e-3)
      >>> audit.contradicts(sim.privacy(rounds=5, delta=1e-3))
      False
    """
    check_delta(delta)
    check_confidence(confidence)
    checks.positive_int("unobserved", unobserved)
    took_part = canaries.included
    if took_part.sum() < 2:
        raise ValueError(
            f"{took_part.sum()} of {canaries.count} canaries sent their direction, expected two at least: take more canaries."
        )
    scores = canaries.scores(models, canaries.count + unobserved)
    own, nobody = scores[: canaries.count], scores[canaries.count :]
    included, excluded = own[took_part], own[~took_part]
    changes, size = len(models) - 1, _dimension(models[0])
    mean_out, std_out = 0.0, 1 / math.sqrt(size)
    if changes > 1:
        null = np.concatenate([excluded, nobody])
        mean_out, std_out = float(null.mean()), float(null.std(ddof=1))
    estimate = two_gaussians_epsilon(
        float(included.mean()), float(included.std(ddof=1)), mean_out, std_out, delta
    )
    guesses = None if canaries.share != 0.5 else _one_run(own, took_part, changes, size, delta, confidence)
    bound = _threshold_bound(included, changes, size, delta, confidence)
    return CanaryAudit(estimate, bound, guesses, delta, confidence, included, excluded, nobody, std_out)


def _threshold(false_rate: float, changes: int, size: int) -> float:
    """The cosine that a direction of nobody exceeds with at most this probability, in the largest of so many changes.

    ``(cosine + 1) / 2`` of a uniform direction in n dimensions is Beta((n - 1) / 2, (n - 1) / 2); changes by the union bound.
    """
    half = (size - 1) / 2
    return float(1 - 2 * special.betaincinv(half, half, false_rate / changes))  # by symmetry, the lower tail


def _threshold_bound(included: np.ndarray, changes: int, size: int, delta: float, confidence: float) -> float:
    """The best of several fixed thresholds, whose false positive rates are known; Bonferroni keeps the confidence."""
    each = 1 - (1 - confidence) / len(_FALSE_RATES)
    found = []
    for rate in _FALSE_RATES:
        caught = int(np.sum(included > _threshold(rate, changes, size)))
        true_rate, _ = clopper_pearson(caught, len(included), each)
        found.append(rates_epsilon(true_rate, rate, delta))
    return max(found)


def _one_run(
    scores: np.ndarray, took_part: np.ndarray, changes: int, size: int, delta: float, confidence: float
) -> float:
    """Guesses by fixed rules: who is above a threshold took part; whoever is below it did not, or is left out."""
    each = 1 - (1 - confidence) / (2 * len(_GUESS_RATES))
    found = []
    for rate in _GUESS_RATES:
        above = scores > _threshold(rate, changes, size)
        hits, rights = int(np.sum(above & took_part)), int(np.sum(above == took_part))
        found.append(one_run_lower_bound(hits, int(above.sum()), len(scores), delta, each))
        found.append(one_run_lower_bound(rights, len(scores), len(scores), delta, each))
    return max(found)


def _dimension(model: Any) -> int:
    params = model.params if isinstance(model, Variables) else model
    return sum(x.size for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.inexact))


def _flat(params: PyTree) -> np.ndarray:
    """All parameters, ``f64[...]``; integer leaves as zeros, which no direction has a part in."""
    return np.concatenate(
        [
            np.asarray(x, np.float64).ravel() * bool(jnp.issubdtype(x.dtype, jnp.inexact))
            for x in jax.tree.leaves(params)
        ]
    )
