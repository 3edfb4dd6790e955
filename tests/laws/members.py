"""The families that the laws run over. A new algorithm or engine joins all laws by joining its list here."""

from __future__ import annotations

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import fedjax_sim as fs
from fedjax_sim import _feed, algorithms, engines, models, tasks
from fedjax_sim import aggregation as agg
from fedjax_sim._feed import Resident

# --- data ----------------------------------------------------------------------------------------------------

SIZES = (0, 1, 3, 7, 20, 41, 5, 0, 12, 2)
"""Skewed, with empty clients at the start and inside."""
FEATURES, CLASSES = 8, 4
POPULATION = len(SIZES)
EXPECTED_COHORT = 5.0


def make_data(sizes: Sequence[int] = SIZES, seed: int = 0) -> fs.ClientData:
    """Gaussian features whose class depends on them, differently for each client."""
    generator = np.random.default_rng(seed)
    total = int(np.sum(sizes))
    x = generator.normal(size=(total, FEATURES)).astype(np.float32)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    y = (np.argmax(x[:, :CLASSES], axis=1) + owner % 2) % CLASSES
    return fs.ClientData(
        {"x": x, "y": y.astype(np.int32)},
        np.concatenate([[0], np.cumsum(sizes)]),
        ids=np.arange(len(sizes)) + 100,
    )


# --- cohorts -------------------------------------------------------------------------------------------------


class Script:
    """A cohort sampler that a test rewrites: round ``r`` has cohort ``r`` of a list. One compiled program sees them all."""

    def __init__(self):
        self.cohorts: Sequence[Sequence[int]] = [range(POPULATION)]
        self.cohort = fs.cohorts.uniform(1)._replace(
            sample=lambda generator, round_, population: np.asarray(
                self.cohorts[round_ % len(self.cohorts)], np.int64
            ),
            cap=lambda population: population,
            expected=lambda population: EXPECTED_COHORT,
            sampling="fixed",
        )


COHORTS = {
    "all": tuple(range(POPULATION)),
    "one": (5,),
    "one empty": (0,),
    "nobody": (),
    "some": (8, 1, 5, 0, 4),
}

# --- algorithms ----------------------------------------------------------------------------------------------


class Member(NamedTuple):
    """An algorithm and what a simulation of it needs.

    Attributes:
      build: makes the algorithm; may be called again.
      local: local work; the variety is on purpose.
      groups: group of each client, for algorithms that have groups.
      keyed: clients draw random numbers, so that renaming them changes the result.
    """

    name: str
    build: Callable[[], fs.Algorithm]
    local: fs.LocalWork = fs.LocalWork(epochs=2, batch_size=4, shuffle=False)
    groups: tuple | None = None
    keyed: bool = False


class Normed(nn.Module):
    """BatchNorm that looks at the rows that exist."""

    @nn.compact
    def __call__(self, x, mask=None, *, train: bool):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(
            x, mask=None if mask is None else mask[:, None]
        )
        return nn.Dense(CLASSES)(x)


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, train: bool):
        return nn.Dense(CLASSES)(nn.Dropout(0.5, deterministic=not train)(x))


def linear() -> fs.Task:
    return tasks.classification(models.linear(CLASSES))


def mlp(width: int) -> fs.Task:
    return tasks.classification(models.mlp(CLASSES, hidden=(width,)), sample_input=(1, FEATURES))


def normed(policy) -> fs.Task:
    return tasks.from_flax(
        Normed(), loss="softmax_cross_entropy", batch_stats=policy, row_mask="mask", classes=CLASSES
    )


def private_examples(module, **options) -> fs.Algorithm:
    task = tasks.classification(module, classes=CLASSES)
    return algorithms.fedavg_dp_sgd(
        task, SGD, clip_norm=0.5, noise_multiplier=0.7, expected_batch_size=4, **options
    )


def odd_rows(generator: np.random.Generator, size: int) -> np.ndarray:
    """Explicit rows: two steps, drawn with replacement, one of them with padding."""
    rows = generator.integers(0, size, (2, 3))
    rows[1, 2] = -1
    return rows


SGD = optax.sgd(0.1)
PRIVATE = agg.chain(agg.clip_by_global_norm(0.5), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.3))
ADAPTIVE = agg.chain(
    agg.adaptive_clip(0.3, count_noise_std=0.2), agg.mean(over="expected_cohort"), agg.gaussian_noise(0.3)
)
TREE = agg.chain(agg.clip_by_global_norm(0.5), agg.mean(over="expected_cohort"), agg.tree_noise(0.3))
BANDED = agg.chain(
    agg.clip_by_global_norm(0.5), agg.mean(over="expected_cohort"), agg.banded_noise(0.3, 3, 8)
)
LOCAL = agg.chain(
    agg.zero_out(100.0, norm="l1"),
    agg.clip_by_l1_norm(0.5),
    agg.mean(over="expected_cohort"),
    agg.local_laplace_noise(0.3),
)
WIDTHS = tuple("wide" if c % 2 else "narrow" for c in range(POPULATION))
work = fs.LocalWork

ALGORITHMS = [
    Member("fedavg", lambda: algorithms.fedavg(linear(), SGD)),
    Member(
        "fedavg_shuffled", lambda: algorithms.fedavg(linear(), SGD), work(epochs=2, batch_size=4), keyed=True
    ),
    Member(
        "fedavg_continued",
        lambda: algorithms.fedavg(linear(), SGD),
        work(epochs=None, max_steps=3, batch_size=4, continue_epochs=True, stragglers=0.4),
        keyed=True,
    ),
    Member(
        "fedavg_explicit_rows",
        lambda: algorithms.fedavg(linear(), SGD),
        work(batch_size=3, max_steps=2, rows=odd_rows),
        keyed=True,
    ),
    Member("fedavg_client_adam", lambda: algorithms.fedavg(linear(), optax.adam(0.01))),
    Member("fedsgd", lambda: algorithms.fedsgd(linear())),
    Member(
        "fedavgm",
        lambda: algorithms.fedavgm(linear(), SGD),
        work(epochs=None, max_steps=3, batch_size=4, shuffle=False),
    ),
    Member("fedadam", lambda: algorithms.fedadam(linear(), SGD)),
    Member("fedyogi", lambda: algorithms.fedyogi(linear(), SGD)),
    Member(
        "fedadagrad",
        lambda: algorithms.fedadagrad(linear(), SGD),
        work(batch_size=4, shuffle=False, drop_remainder=True),
    ),
    Member(
        "fedprox",
        lambda: algorithms.fedprox(linear(), SGD, mu=0.5),
        work(epochs=2, batch_size=2, batches_per_step=2, shuffle=False),
    ),
    Member("scaffold", lambda: algorithms.scaffold(linear(), 0.1)),
    Member("mime", lambda: algorithms.mime(linear(), optax.sgd(0.1, momentum=0.9))),
    Member("ifca", lambda: algorithms.ifca(linear(), SGD, models=3)),
    Member(
        "ifca_clipped",
        lambda: algorithms.ifca(
            linear(), SGD, models=3, aggregate=agg.chain(agg.adaptive_clip(0.1), agg.mean_by_model())
        ),
    ),
    Member(
        "top_k", lambda: algorithms.fedavg(linear(), SGD, aggregate=agg.chain(agg.top_k(0.25), agg.mean()))
    ),
    Member("clip_and_noise", lambda: algorithms.fedavg(linear(), SGD, aggregate=PRIVATE)),
    Member(
        "fedavg_dp_sgd",
        lambda: private_examples(Dropped()),
        work(poisson_rate=0.3, max_steps=3, batch_size=6),
        keyed=True,
    ),
    Member(
        "fedavg_dp_sgd_in_blocks",
        lambda: private_examples(models.linear(CLASSES), block_size=3, aggregate=PRIVATE),
        work(epochs=2, batch_size=2, batches_per_step=2, shuffle=False),
        keyed=True,
    ),
    Member("adaptive_clip_and_noise", lambda: algorithms.fedavg(linear(), SGD, aggregate=ADAPTIVE)),
    Member("tree_noise", lambda: algorithms.fedavg(linear(), SGD, aggregate=TREE)),
    Member("banded_noise", lambda: algorithms.fedavg(linear(), SGD, aggregate=BANDED)),
    Member("local_noise", lambda: algorithms.fedavg(linear(), SGD, aggregate=LOCAL), keyed=True),
    Member("coordinate_median", lambda: algorithms.fedavg(linear(), SGD, aggregate=agg.coordinate_median())),
    Member("trimmed_mean", lambda: algorithms.fedavg(linear(), SGD, aggregate=agg.trimmed_mean(0.3))),
    Member("frozen_layers", lambda: algorithms.fedavg(tasks.trainable(mlp(6), "Dense_1"), SGD)),
    Member(
        "heterofl",
        lambda: algorithms.heterofl({"wide": mlp(6), "narrow": mlp(3)}, SGD),
        groups=WIDTHS,
    ),
    Member(
        "heterofl_clipped",
        lambda: algorithms.heterofl(
            {"wide": mlp(6), "narrow": mlp(3)},
            SGD,
            aggregate=agg.chain(agg.clip_by_global_norm(0.1), agg.coverage_mean()),
        ),
        groups=WIDTHS,
    ),
    Member("batch_norm_averaged", lambda: algorithms.fedavg(normed("averaged"), SGD)),
    Member("batch_norm_local", lambda: algorithms.fedavg(normed("local"), SGD)),
    Member(
        "dropout",
        lambda: algorithms.fedavg(tasks.classification(Dropped(), classes=CLASSES), SGD),
        keyed=True,
    ),
]
NAMES = [member.name for member in ALGORITHMS]


def narrow(member: Member, dtype) -> Member:
    """The same algorithm with parameters of another dtype; statistics keep theirs, as flax's layers do."""

    def build() -> fs.Algorithm:
        algorithm = member.build()

        def init(key, sample=None):
            variables = algorithm.task.init(key, sample)
            return variables._replace(params=jax.tree.map(lambda x: x.astype(dtype), variables.params))

        return algorithm._replace(task=algorithm.task._replace(init=init))

    return member._replace(build=build)


# --- engines -------------------------------------------------------------------------------------------------

MESHES = (1, 2, 8)
"""Devices of the sharded engine, which ``tests/multidevice`` runs."""
ELSEWHERE = ("scaffold", "top_k")
"""Algorithms whose client state lies in the host's memory there, too: the rule's, the chain's."""
ENGINES = {
    "sequential": engines.sequential,
    "lanes(1)": lambda: engines.lanes(1),
    "lanes(3, compact)": lambda: engines.lanes(3, finish="compact"),
    "lanes(5, masked)": lambda: engines.lanes(5, finish="masked"),
}
COMPILING = [name for name in ENGINES if name != "sequential"]
LANES = "lanes(3, compact)"
"""The engine of laws that are not about engines."""

# --- simulations ---------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """A simulation whose cohort a test chooses from round to round, and the state that laws start from."""

    sim: fs.Simulation
    script: Script


def named(name: str) -> Member:
    return next(member for member in ALGORITHMS if member.name == name)


def new_trial(member: Member, engine: engines.Engine, data: Any = None, **options: Any) -> Trial:
    """``options``: further ones of a simulation."""
    script = Script()
    sim = fs.Simulation(
        member.build(),
        make_data() if data is None else data,
        cohort=script.cohort,
        local=member.local,
        engine=engine,
        groups=member.groups,
        rounds_per_chunk=2,
        **options,
    )
    return Trial(sim, script)


@functools.cache
def trial(name: str, engine: str) -> Trial:
    """One simulation, and so one compilation, for all laws."""
    return new_trial(named(name), ENGINES[engine]())


@functools.cache
def warm_state(name: str) -> fs.SimState:
    """A state that every client has taken part in once: controls, memories and statistics are not zero."""
    return one_round(trial(name, "sequential"), trial(name, "sequential").sim.init(seed=3), COHORTS["all"])[0]


def one_round(trial: Trial, state: fs.SimState, cohort: Sequence[int]):
    """State and metrics after one round of the given clients."""
    trial.script.cohorts = [cohort]
    state, history = trial.sim.run(state, rounds=1)
    return state, {name: values[0] for name, values in history.metrics.items()}


@functools.cache
def oracle(name: str, cohort: Sequence[int]):
    """State and metrics of the sequential engine after one round from ``warm_state``."""
    return one_round(trial(name, "sequential"), warm_state(name), cohort)


def with_data(trial: Trial, data: fs.ClientData, order: np.ndarray | None = None) -> Trial:
    """The same compiled program on other data of the same shape: data is an argument of it, never a constant.

    ``order``: the clients' old indices, where they have moved, for their groups to move along.
    """
    sim = copy.copy(trial.sim)
    sim.data, sim._feed = data, Resident(data)
    if order is not None:
        sim._group = sim._group[order]
    return Trial(sim, trial.script)


@contextlib.contextmanager
def written_over():
    """Host arrays hold nonsense from the moment in which they may be written again: who still read them would see it."""
    gather = _feed._OfStreamed._gather

    def spoiled(self, clients, arrays, ended):
        for column in arrays.values():
            column.array.view(np.uint8)[...] = 0xFF  # NaN, and a label that no class has
        time.sleep(0.005)  # for whoever reads to come by
        return gather(self, clients, arrays, ended)

    with mock.patch.object(_feed._OfStreamed, "_gather", spoiled):
        yield


# --- comparison ----------------------------------------------------------------------------------------------


def comparable(state: fs.SimState):
    """What a round has made, without the rows that pad the client table to the devices."""
    clients = jax.tree.map(lambda x: x[:POPULATION], state.clients)
    return jax.tree.map(np.asarray, (state.server, clients, state.aggregate, state.round))


TOLERANCE = 5e-6
"""Of ``largest_error`` after one round: some 20 steps of float32 (6e-8 each) in another order of summation, through
optimizers that divide by roots of small numbers. Measured: at most 2e-7 on CPU."""

BFLOAT16 = 2.0**-7
"""A unit in the last place of bfloat16 is at most this share of a number; float32 sums may round to its neighbour."""


def largest_error(got, expected) -> float:
    """Largest difference between two trees, relative to the largest element of each leaf."""
    if jax.tree.structure(got) != jax.tree.structure(expected):
        raise AssertionError(
            f"structures differ: {jax.tree.structure(got)} and {jax.tree.structure(expected)}"
        )
    errors = [0.0]
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        if a.shape != b.shape or a.dtype != b.dtype:
            raise AssertionError(f"leaves differ: {a.dtype}{a.shape} and {b.dtype}{b.shape}")
        if a.size:
            a, b = a.astype(np.float64), b.astype(np.float64)
            errors.append(float(np.max(np.abs(a - b)) / max(np.max(np.abs(b)), 1e-3)))
    return np.inf if np.isnan(errors).any() else max(errors)


def metrics_error(got: dict, expected: dict) -> float:
    """Largest relative difference between a round's metrics; what nobody measured is NaN, or absent."""
    errors = [0.0]
    for name in got.keys() | expected.keys():
        a, b = got.get(name, np.nan), expected.get(name, np.nan)
        both_absent = np.isnan(a) and np.isnan(b)
        errors.append(0.0 if both_absent else abs(a - b) / max(abs(b), 1e-3))
    return np.inf if np.isnan(errors).any() else max(errors)


def bits_equal(a, b) -> bool:
    """Two trees are equal bit for bit, NaN included."""
    keep = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x  # noqa: E731
    same = jax.tree.map(lambda x, y: np.asarray(keep(x)).tobytes() == np.asarray(keep(y)).tobytes(), a, b)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(jax.tree.leaves(same))
