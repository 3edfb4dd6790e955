"""Noise that is correlated between rounds equals the explicit product and the explicit sums of a tree.

Under any lanes, chunks and devices, in sweeps, and after a checkpoint. The oracles are matrices and loops in float64.
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws.members import ENGINES, FEATURES, LANES, POPULATION, linear, make_data
from laws.noises import tree_nodes

import fedjax_sim as fs
from fedjax_sim import aggregation as agg
from fedjax_sim._src import keys

ROUNDS, CLIP, Z, SEED = 11, 0.5, 0.8, 4
ROOT = Path(__file__).resolve().parents[2]


def private(noise: fs.Transform) -> fs.Transform:
    return agg.chain(agg.clip_by_global_norm(CLIP), agg.mean(over="expected_cohort"), noise)


NOISES = {
    "one band": lambda z=Z: agg.banded_noise(z, bands=1, rounds=ROUNDS),
    "two bands": lambda z=Z: agg.banded_noise(z, bands=2, rounds=ROUNDS),
    "four bands": lambda z=Z: agg.banded_noise(z, bands=4, rounds=ROUNDS),
    "bands of one's own": lambda z=Z: agg.banded_noise(z, 3, 3, coefficients=[2.0, -1.0, 0.5]),
    "as many bands as rounds": lambda z=Z: agg.banded_noise(z, ROUNDS, ROUNDS, "max"),
    "a tree": lambda z=Z: agg.tree_noise(z),
    "a tree that restarts": lambda z=Z: agg.tree_noise(z, restart_every=4),
    "a tree for every round": lambda z=Z: agg.tree_noise(z, restart_every=1),
}
COEFFICIENTS = {
    "one band": [1.0],
    "two bands": agg.banded_coefficients(ROUNDS, 2),
    "four bands": agg.banded_coefficients(ROUNDS, 4),
    "bands of one's own": np.array([2.0, -1.0, 0.5]) / np.sqrt(5.25),
    "as many bands as rounds": agg.banded_coefficients(ROUNDS, ROUNDS, "max"),
}
RESTARTS = {"a tree": ROUNDS, "a tree that restarts": 4, "a tree for every round": 1}


def strategy(name: str) -> np.ndarray:
    """``C``, ``f64[ROUNDS, ROUNDS]``."""
    c = np.zeros(ROUNDS)
    c[: len(COEFFICIENTS[name])] = COEFFICIENTS[name]
    return np.array([[c[i - j] if i >= j else 0.0 for j in range(ROUNDS)] for i in range(ROUNDS)])


def independent(root) -> list[np.ndarray]:
    """``z``, for each leaf ``[ROUNDS, ...]``: what the plain Gaussian layer draws in the same place of the chain."""
    layer = agg.gaussian_noise(Z)
    zeros = {"bias": jnp.zeros(4), "kernel": jnp.zeros((FEATURES, 4))}
    draws = []
    for round_ in range(ROUNDS):
        key = keys.fold(keys.server_key(root, round_, 0), 2)
        context = fs.RoundContext(key, round_, 0, 1.0, 1, None, jnp.float32(CLIP))
        draws.append(jax.tree.leaves(layer.decode(fs.Message(zeros), (), context)[0].value))
    return [np.stack(leaf).astype(np.float64) for leaf in zip(*draws, strict=True)]


def tree_sums(root, restart: int) -> list[np.ndarray]:
    """Noise in the sum of the first 1, 2, ... sums: every tree so far, as the nodes of the binary form of its rounds."""
    shapes = [(4,), (FEATURES, 4)]

    def prefix(start, length):
        key, total, end = keys.fold(keys.server_key(root, start, 0), 2), [0.0, 0.0], 0
        for level in reversed(range(10)):
            if length >> level & 1:
                end += 2**level
                pair = jax.random.split(keys.fold(key, level, end // 2**level))
                total = [
                    t + Z * CLIP * np.asarray(jax.random.normal(k, s), np.float64)
                    for t, k, s in zip(total, pair, shapes, strict=True)
                ]
        return total

    sums = []
    for round_ in range(ROUNDS):
        parts = [prefix(s, min(restart, round_ + 1 - s)) for s in range(0, round_ + 1, restart)]
        sums.append([sum(leaf) for leaf in zip(*parts, strict=True)])
    return [np.stack(leaf) for leaf in zip(*sums, strict=True)]


@functools.cache
def explicit(name: str, seed: int = SEED) -> list[np.ndarray]:
    """Noise in the sum of the first 1, 2, ... sums, for each leaf ``f64[ROUNDS, ...]``."""
    root = keys.root_key(seed)
    if name in RESTARTS:
        return tree_sums(root, RESTARTS[name])
    inverse = np.linalg.inv(strategy(name))
    return [np.cumsum(np.tensordot(inverse, z, 1), axis=0) for z in independent(root)]


def simulation(name: str, engine: fs.Engine, chunk: int = 3) -> fs.Simulation:
    """Clients that change nothing, so that the model is the noise so far, over the expected cohort."""
    return fs.Simulation(
        fs.algorithms.fedavg(linear(), optax.sgd(0.0), aggregate=private(NOISES[name]())),
        make_data(),
        cohort=fs.cohorts.fixed([5, 1]),
        engine=engine,
        rounds_per_chunk=chunk,
    )


def zeros(sim: fs.Simulation, seed: int = SEED) -> fs.SimState:
    variables = jax.tree.map(jnp.zeros_like, sim.init(seed).server.variables)
    return sim.init(seed, variables)


def assert_noise(state: fs.SimState, name: str, seed: int = SEED):
    """All noise so far is what the oracle says, after as many rounds as the state has seen."""
    done = int(np.asarray(state.round).ravel()[0])
    for got, expected in zip(
        jax.tree.leaves(state.server.variables.params), explicit(name, seed), strict=True
    ):
        np.testing.assert_allclose(np.asarray(got) * 2, expected[done - 1], rtol=0, atol=3e-6)


TWO = ("four bands", "a tree that restarts")
"""For laws that hold or fail for a whole kind."""


@pytest.mark.parametrize(
    ("name", "engine"), [(n, e) for n in NOISES for e in ENGINES if n in TWO or e == LANES]
)
def test_the_stream_is_the_explicit_product(name, engine):
    """After every stretch of rounds, whatever the chunks: all rows of ``A C^-1 Z``, and of the tree's sums."""
    sim = simulation(name, ENGINES[engine]())
    state = zeros(sim)
    for rounds in (1, 2, 4, 1, 3):
        state, _ = sim.run(state, rounds=rounds)
        assert_noise(state, name)


@pytest.mark.parametrize("name", TWO)
def test_chunks_change_rounding_alone_and_checkpoints_no_bit(name, tmp_path):
    """Chunks of another length are another program, in which the compiler may add in another order."""
    whole = simulation(name, fs.engines.lanes(2), chunk=2)
    expected, _ = whole.run(zeros(whole), rounds=ROUNDS)
    assert_noise(expected, name)
    longer = simulation(name, fs.engines.lanes(2), chunk=ROUNDS)
    at_once, _ = longer.run(zeros(longer), rounds=ROUNDS)
    for one, other in zip(jax.tree.leaves(at_once.server), jax.tree.leaves(expected.server), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    checkpoints = fs.Checkpoints(tmp_path / "run", every=5)
    first = simulation(name, fs.engines.lanes(2), chunk=2)
    first.run(zeros(first), ROUNDS, checkpoints=checkpoints, callbacks=[lambda progress: progress.done >= 6])
    assert checkpoints.rounds()[-1] < ROUNDS
    second = simulation(name, fs.engines.lanes(2), chunk=2)
    resumed, _ = second.run(zeros(second), ROUNDS, checkpoints=checkpoints)
    same = jax.tree.map(
        lambda a, b: np.asarray(a).tobytes() == np.asarray(b).tobytes(),
        (resumed.server, resumed.aggregate),
        (expected.server, expected.aggregate),
    )
    assert all(jax.tree.leaves(same))


@pytest.mark.parametrize("name", TWO)
def test_replicas_of_a_sweep_have_noise_of_their_own(name):
    """Seeds and traced noise multipliers: each replica adds its own noise, in its own scale."""
    sim, seeds, scales = simulation(name, fs.engines.lanes(2)), [4, 5, 4], [Z, Z, 3 * Z]
    build = lambda z: fs.algorithms.fedavg(linear(), optax.sgd(0.0), aggregate=private(NOISES[name](z)))  # noqa: E731
    swept = sim.sweep(seeds, ROUNDS, algorithm=build, hyperparameters={"z": scales})
    starts = [jax.tree.map(np.asarray, sim.init(seed).server.variables.params) for seed in seeds]
    for seed, scale, start, state in zip(seeds, scales, starts, swept.states, strict=True):
        moved = jax.tree.map(lambda x, y: np.asarray(x) - y, state.server.variables.params, start)
        for got, expected in zip(jax.tree.leaves(moved), explicit(name, seed), strict=True):
            np.testing.assert_allclose(got * 2, expected[-1] * scale / Z, rtol=0, atol=1e-5)


DEVICES = """
import json, jax, numpy as np
from laws import test_correlated_noise as law
from fedjax_sim import engines
for name in law.TWO:
    sim = law.simulation(name, engines.sharded(engines.client_mesh(8), lanes=2))
    state, _ = sim.run(law.zeros(sim), rounds=law.ROUNDS)
    law.assert_noise(state, name)
    print(json.dumps([name, jax.device_count()]))
"""


@pytest.mark.multidevice
def test_one_draw_a_round_under_eight_devices():
    """The same product and sums, so each device adds neither a share nor a noise of its own."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(str(ROOT / folder) for folder in (".", "kernels", "tests")),
        "PYTHONWARNINGS": "error",
    }
    done = subprocess.run(
        [sys.executable, "-c", DEVICES], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)[1] for line in done.stdout.splitlines()] == [8, 8]


# --- variance ---

SIZE = 20_000


def stream(noise: fs.Transform, rounds: int) -> np.ndarray:
    """Noise in the prefix sums over the noise on a node or on ``z``, ``f64[rounds, SIZE]``."""
    chain, state, total, sums = private(noise), None, np.zeros(SIZE), []
    step = jax.jit(
        lambda state, round_: agg.run(
            chain, jnp.zeros((3, SIZE)), key=jax.random.key(0), state=state, round_=round_
        )[:2]
    )
    for round_ in range(rounds):
        update, state = step(state, jnp.int32(round_))
        total = total + np.asarray(update, np.float64) * 3
        sums.append(total / (Z * CLIP))
    return np.stack(sums)


def assert_covariance(sums: np.ndarray, expected: np.ndarray):
    """The rounds' sample covariance, within six standard errors of each entry."""
    got, std = sums @ sums.T / SIZE, np.sqrt(np.diag(expected))
    np.testing.assert_array_less(np.abs(got - expected), 6 * np.outer(std, std) * np.sqrt(2 / SIZE))


@pytest.mark.parametrize("name", ["two bands", "four bands", "bands of one's own"])
def test_the_covariance_of_banded_prefix_sums(name):
    inverse = np.linalg.inv(strategy(name))
    sums = np.tril(np.ones((ROUNDS, ROUNDS))) @ inverse
    assert_covariance(stream(NOISES[name](), ROUNDS), sums @ sums.T)
    np.testing.assert_allclose(
        agg.prefix_std(COEFFICIENTS[name], ROUNDS), np.sqrt(np.diag(sums @ sums.T)), rtol=1e-10
    )


@pytest.mark.parametrize("name", RESTARTS)
def test_the_covariance_of_a_tree_counts_shared_nodes(name):
    """Two prefix sums share the nodes that both are made of; trees that have ended are in all later sums."""
    restart = RESTARTS[name]
    prefix = [tree_nodes(t + 1, restart) for t in range(ROUNDS)]
    expected = [[len(a & b) for b in prefix] for a in prefix]
    assert_covariance(stream(NOISES[name](), ROUNDS), np.array(expected, float))


def test_clients_beside_the_noise_are_summed_as_ever():
    """The layers add to the sum and change nothing else."""
    updates = {"w": jnp.array(np.random.default_rng(0).normal(size=(POPULATION, 6)) * 0.01, jnp.float32)}
    plain = agg.run(private(agg.gaussian_noise(1e-6)), updates, key=jax.random.key(0))[0]
    for noise in (agg.tree_noise(1e-6), agg.banded_noise(1e-6, 3, 10)):
        got = agg.run(private(noise), updates, key=jax.random.key(0))[0]
        np.testing.assert_allclose(got["w"], plain["w"], atol=1e-5)
