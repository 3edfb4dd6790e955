"""Canary clients: they send random directions instead of updates, and the released model is asked for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks, keys, tree
from fedjax_sim._src.types import Algorithm, ClientRule, Delta, Message, PyTree, Stage, Variables
from fedjax_sim.aggregation._reduce import as_message

_COINS, _DIRECTIONS = 140, 142
"""Purposes, above those of ``keys``: also with the run's seed, no direction shares a stream with what the run draws."""


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
      seed: of directions and coins.
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
        key = keys.fold(keys.root_key(self.seed), _DIRECTIONS, index)
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
        beside it by zeros. Of a client that trains a part of every parameter (HeteroFL), it is that part of the direction.

        Raises:
          TypeError: while a simulation is made, of an algorithm with a stage whose clients send no ``Delta``, or several. IFCA
            is one: which model a client chose is sent beside the update, as it is, and no bound about the update covers it.
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
            message = as_message(sent)
            value = message.value
            number = jnp.clip(ctx.client - self.first, 0, self.count - 1)
            ours = ctx.client - self.first == number
            length = self.norm * jnp.asarray(self.included, jnp.float32)[number]
            coverage = message.aux.get("coverage")
            value = tree.where(ours, self._instead(value, number, length, coverage, name), value)
            return (sent._replace(value=value) if isinstance(sent, Message) else value), state, metrics

        return rule._replace(finish=finish)

    def _instead(self, value: PyTree, number, length, coverage: PyTree, name: str) -> PyTree:
        found = []

        def replaced(part):
            if not isinstance(part, Delta):
                return jnp.zeros_like(part)
            found.append(part)
            sent = tree.scale(self.direction(number, part.params), length)
            if coverage is not None:
                sent = jax.tree.map(lambda x, part: x * part.astype(x.dtype), sent, coverage.params)
            return Delta(sent, tree.zeros_like(part.stats))

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


def _flat(params: PyTree) -> np.ndarray:
    """All parameters, ``f64[...]``; integer leaves as zeros, which no direction has a part in."""
    return np.concatenate(
        [
            np.asarray(x, np.float64).ravel() * bool(jnp.issubdtype(x.dtype, jnp.inexact))
            for x in jax.tree.leaves(params)
        ]
    )
