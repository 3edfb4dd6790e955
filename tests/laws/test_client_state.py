"""Client state in the host's memory: the same run, bit for bit, as with all of it on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws.members import (
    ENGINES,
    LANES,
    NAMES,
    SGD,
    SIZES,
    Member,
    bits_equal,
    linear,
    make_data,
    mlp,
    named,
    narrow,
    new_trial,
    trial,
)

import fedjax_sim as fs
from fedjax_sim import _client_state, engines
from fedjax_sim import aggregation as agg
from fedjax_sim._client_state import OnDevice, OnHost
from fedjax_sim.engines._problem import keeps_client_state

STATEFUL = ["scaffold", "ifca", "ifca_clipped", "top_k", "batch_norm_local"]
SPARSE_GROUPS = named("heterofl")._replace(
    name="heterofl_top_k",
    build=lambda: fs.algorithms.heterofl(
        {"wide": mlp(6), "narrow": mlp(3)}, SGD, aggregate=agg.chain(agg.top_k(0.5), agg.coverage_mean())
    ),
)
MEMBERS = [*map(named, STATEFUL), SPARSE_GROUPS, narrow(named("scaffold"), jnp.bfloat16)]
COHORTS = [(8, 1, 5, 0, 4), (5,), (), tuple(range(len(SIZES))), (2, 3), (0,), (9, 8, 7)]
"""Of chunks of two rounds: clients that come again in the chunk or in the next, nobody, everybody."""


def simulation(member: Member, where: str | None, engine: str = LANES, **options) -> fs.Simulation:
    made = new_trial(member, ENGINES[engine](), client_state=where, **options)
    made.script.cohorts = COHORTS
    # Never everybody: a chunk's table is smaller than the population.
    return made.sim


def in_numpy(state: fs.SimState) -> bool:
    return all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(state.clients))


def same_metrics(a: fs.History, b: fs.History) -> bool:
    return a.metrics.keys() == b.metrics.keys() and all(
        np.array_equal(a.metrics[key], b.metrics[key], equal_nan=True) for key in a.metrics
    )


def test_these_are_all_that_keep_state():
    assert [name for name in NAMES if keeps_client_state(trial(name, LANES).sim._template)] == STATEFUL


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_where_it_lies_changes_nothing(member):
    runs = []
    for where in ("device", "host"):
        sim = simulation(member, where)
        start = sim.init(seed=3)
        snapshots = []
        keep = lambda progress, snapshots=snapshots: snapshots.append(progress.snapshot())  # noqa: E731
        runs.append((start, *sim.run(start, len(COHORTS), callbacks=[keep]), snapshots))
        assert sim.compilations == 1
    (*expected, history, before), (*got, other, after) = runs
    assert isinstance(sim._clients, OnHost)
    assert all(map(in_numpy, [*got, *after])) and not in_numpy(expected[1])
    # Starts and snapshots are compared when all has run: what others wrote into them would show.
    assert bits_equal([*got, *after], [*expected, *before])
    assert same_metrics(history, other)
