"""Runs in which nothing but the noise moves the model: every mechanism, under any engine and any length of chunks."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from laws import members

import fedjax_sim as fs
from fedjax_sim import aggregation as agg

SIZE, CLIP, MULTIPLIER, ROUNDS = 2**14, 0.7, 1.3, 3
COHORT = (0, 5, 6, 8, 3, 1)
"""One of them holds nothing, and adds its share of noise all the same."""
CAME = len(COHORT)

_L2 = (agg.clip_by_global_norm(CLIP), agg.mean(over="expected_cohort"))
_L1 = (agg.clip_by_l1_norm(CLIP), agg.mean(over="expected_cohort"))


class Mechanism(NamedTuple):
    """A chain with noise.

    Attributes:
      transform: the chain.
      variance: of its noise on the sum over the cohort, in each coordinate; of noise that is correlated over rounds the share
        of one round in that of all.
      exact: whether the model is the same bit for bit however it is compiled, and in any order of the sum.
    """

    transform: fs.Transform
    variance: float
    exact: bool = True


_UNIT = (MULTIPLIER * CLIP) ** 2
MECHANISMS = {
    "gaussian": Mechanism(agg.chain(*_L2, agg.gaussian_noise(MULTIPLIER)), _UNIT, exact=False),
    "filtered_gaussian": Mechanism(
        agg.chain(*_L2, agg.filtered_gaussian_noise(MULTIPLIER, 0.5)), _UNIT, exact=False
    ),
    # Two nodes of a tree are in the sum of three rounds.
    "tree_gaussian": Mechanism(agg.chain(*_L2, agg.tree_noise(MULTIPLIER)), _UNIT * 2 / ROUNDS, exact=False),
    "banded_gaussian": Mechanism(
        agg.chain(*_L2, agg.banded_noise(MULTIPLIER, 2, ROUNDS)),
        _UNIT * float(agg.prefix_std(agg.banded_coefficients(ROUNDS, 2), ROUNDS)[-1]) ** 2 / ROUNDS,
        exact=False,
    ),
    "laplace": Mechanism(agg.chain(*_L1, agg.laplace_noise(MULTIPLIER)), 2 * _UNIT),
    # Six clients bring the noise of six, where four were counted on.
    "discrete_gaussian": Mechanism(
        agg.chain(
            *_L2,
            agg.hadamard_rotation(),
            agg.discrete_gaussian_noise(MULTIPLIER, min_clients=4, max_clients=CAME),
        ),
        _UNIT * CAME / 4,
    ),
    "skellam": Mechanism(
        agg.chain(
            *_L2, agg.hadamard_rotation(), agg.skellam_noise(MULTIPLIER, min_clients=4, max_clients=CAME)
        ),
        _UNIT * CAME / 4,
    ),
    "local_gaussian": Mechanism(
        agg.chain(*_L2, agg.local_gaussian_noise(MULTIPLIER)), _UNIT * CAME, exact=False
    ),
    "local_laplace": Mechanism(
        agg.chain(*_L1, agg.local_laplace_noise(MULTIPLIER)), 2 * _UNIT * CAME, exact=False
    ),
}


def noise_of_a_run(name: str, engine: fs.engines.Engine, rounds_per_chunk: int) -> np.ndarray:
    """What the model is after three rounds from zero, ``f32[SIZE]``, times the divisor: three draws of noise on the sum."""
    script = members.Script()
    script.cohorts = [COHORT]
    task = fs.Task(
        lambda key, sample=None: fs.Variables(jnp.zeros(SIZE)),
        lambda variables, batch, key, *, train: (
            0 * variables.params[0] * jnp.ones_like(batch["mask"], jnp.float32),
            variables.stats,
        ),
        lambda outputs, batch: outputs,
    )
    sim = fs.Simulation(
        fs.algorithms.fedavg(task, optax.sgd(1.0), optax.sgd(1.0), aggregate=MECHANISMS[name].transform),
        members.make_data(),
        cohort=script.cohort,
        local=fs.LocalWork(epochs=1, batch_size=20, shuffle=False),
        engine=engine,
        rounds_per_chunk=rounds_per_chunk,
    )
    state, _ = sim.run(sim.init(seed=3), rounds=ROUNDS)
    return np.asarray(jax.device_get(sim.algorithm.params(state.server).params)) * members.EXPECTED_COHORT


def check(name: str, noise: np.ndarray, like: np.ndarray) -> None:
    """The stated variance, and the very draws of another engine."""
    mechanism = MECHANISMS[name]
    variance, measured = ROUNDS * mechanism.variance, noise.astype(np.float64)
    # Five standard errors; the fourth moment of a sum of three Laplace draws is 5 squares of its variance.
    assert abs(measured.mean()) < 5 * np.sqrt(variance / SIZE)
    assert abs(np.mean(measured**2) / variance - 1) < 5 * np.sqrt(4 / SIZE)
    if mechanism.exact:
        np.testing.assert_array_equal(noise, like)
    else:
        np.testing.assert_allclose(noise, like, atol=1e-5)


def tree_nodes(done: int, restart: int) -> set[tuple[int, int, int]]:
    """The nodes that a prefix of ``done`` rounds is a sum of, in trees that begin anew every ``restart`` rounds."""
    found = set()
    for start in range(0, done, restart):
        length, end = min(restart, done - start), 0
        for level in reversed(range(10)):
            if length >> level & 1:
                end += 2**level
                found.add((start, level, end))
    return found
