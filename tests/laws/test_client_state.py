"""Client state in the host's memory or on disk: the same run, bit for bit, as with all of it on the device."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
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
    trial,
)

import fedjax_sim as fs
from fedjax_sim import _client_layout, _client_state
from fedjax_sim import aggregation as agg
from fedjax_sim._client_rows import row_table
from fedjax_sim._client_state import OnDevice, OnHost, Outside
from fedjax_sim._feed import turns_of_queue
from fedjax_sim.data.plans import Planner
from fedjax_sim.engines._problem import keeps_client_state

STATEFUL = ["scaffold", "ifca", "ifca_clipped", "top_k", "batch_norm_local"]
SPARSE_GROUPS = named("heterofl")._replace(
    name="heterofl_top_k",
    build=lambda: fs.algorithms.heterofl(
        {"wide": mlp(6), "narrow": mlp(3)}, SGD, aggregate=agg.chain(agg.top_k(0.5), agg.coverage_mean())
    ),
)


def sparse_controls(rate) -> fs.Algorithm:
    """State of the rule and of the chain."""
    return fs.algorithms.scaffold(
        linear(), rate, aggregate=agg.chain(agg.top_k(0.5), agg.mean(over="clients"))
    )


SPARSE_CONTROLS = named("scaffold")._replace(
    name="scaffold_top_k", build=lambda: sparse_controls(0.1), local=fs.LocalWork(epochs=2, batch_size=4)
)
MEMBERS = [
    *map(named, STATEFUL),
    SPARSE_GROUPS,
    SPARSE_CONTROLS,
    narrow(named("scaffold"), jnp.bfloat16)._replace(name="scaffold in bfloat16"),
]
COHORTS = [(8, 1, 5), (5, 4, 0), (), (4,), (2, 3, 9), (7,), (9, 8, 7)]
"""Clients that come again in their chunk of two rounds or in the next, clients without examples, nobody."""
ROUNDS = len(COHORTS)
ROWS = 6
"""The most clients of a chunk, of a population of ten."""
SCRIPTED = fs.cohorts.uniform(3)._replace(
    sample=lambda generator, round_, population: np.array(COHORTS[round_ % ROUNDS], np.int64)
)


PLACES = {"device": OnDevice, "host": OnHost, "disk": Outside}
PAIRS = list(itertools.permutations(PLACES, 2))


def simulation(where, member: Member = named("scaffold"), engine: str = LANES, **options):  # noqa: B008
    given = {
        "data": make_data(),
        "cohort": SCRIPTED,
        "local": member.local,
        "groups": member.groups,
        "engine": ENGINES[engine](),
        "rounds_per_chunk": 2,
    }
    return fs.Simulation(member.build(), client_state=where, **given | options)


@functools.cache
def shared(where: str) -> fs.Simulation:
    """One program for many tests."""
    return simulation(where)


def lies(state: fs.SimState) -> str:
    if row_table(state.clients) is not None:
        return "disk"
    return "device" if any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state.clients)) else "host"


def same_metrics(a: fs.History, b: fs.History) -> bool:
    return a.metrics.keys() == b.metrics.keys() and all(
        np.array_equal(a.metrics[key], b.metrics[key], equal_nan=True) for key in a.metrics
    )


def test_these_are_all_that_keep_state():
    assert [name for name in NAMES if keeps_client_state(trial(name, LANES).sim._template)] == STATEFUL


def assert_same_runs(*args, **options) -> None:
    """Start, result, metrics and the snapshots of all chunks, compared when all has run: what was written into would show."""
    runs = []
    for where, kind in PLACES.items():
        sim = simulation(where, *args, **options)
        start, snapshots = sim.init(seed=3), []
        keep = lambda progress, snapshots=snapshots: snapshots.append(progress.snapshot())  # noqa: E731
        end, history = sim.run(start, ROUNDS, callbacks=[keep])
        runs.append(([start, end, *snapshots], history, sim.compilations))
        assert type(sim._clients) is kind
        assert {lies(state) for state in runs[-1][0]} == {where}
    (expected, expected_history, _), *others = runs
    for got, history, compilations in others:
        assert bits_equal(got, expected)
        assert same_metrics(history, expected_history)
        assert compilations == 1


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_where_it_lies_changes_nothing(member):
    assert_same_runs(member)


@pytest.mark.parametrize("engine", ["sequential", "lanes(5, masked)"])
def test_under_every_engine(engine):
    assert_same_runs(SPARSE_CONTROLS, engine)


def test_beside_examples_that_come_along():
    assert_same_runs(stream=True)


def test_row_by_row(monkeypatch):
    """Rows of a table on disk that are larger than a piece."""
    monkeypatch.setattr(_client_layout, "PIECE", 1)
    assert_same_runs()


@pytest.mark.parametrize("engine", [LANES, "sequential"])
def test_in_sweeps(engine):
    """Replicas draw cohorts of their own: each has rows for its own clients."""
    device, *others = [
        simulation(where, engine=engine, cohort=fs.cohorts.uniform(3)).sweep(
            [5, 6], 3, algorithm=sparse_controls, hyperparameters={"rate": [0.1, 0.2]}
        )
        for where in PLACES
    ]
    assert {lies(state) for state in device.states} == {"device"}
    for other in others:
        assert {lies(state) for state in other.states} == {"host"}  # a part of a table elsewhere
        assert bits_equal(device.states, other.states)
        assert all(map(same_metrics, device, other))


@pytest.mark.parametrize("where", PLACES)
def test_sweeps_go_on_from_a_checkpoint(tmp_path, where):
    def sweep(place: str, rounds: int, **options):
        sim = simulation(place, cohort=fs.cohorts.uniform(3))
        return sim.sweep([5, 6], rounds, algorithm=sparse_controls, hyperparameters=rates, **options)

    rates, checkpoints = {"rate": [0.1, 0.2]}, fs.Checkpoints(tmp_path / "a", every=2)
    sweep("disk", 3, checkpoints=checkpoints)
    got = sweep(where, 5, checkpoints=checkpoints)
    expected = sweep("device", 5)
    assert bits_equal(got.states, expected.states) and all(map(same_metrics, got, expected))


# --- states and checkpoints of the other kind ----------------------------------------------------------------


@pytest.mark.parametrize(("where", "other"), PAIRS)
def test_a_run_goes_on_where_its_state_did_not_lie(where, other):
    """From a state, and from a checkpoint, which is written the same by all."""
    one, two = shared(where), shared(other)
    half, _ = one.run(one.init(seed=3), 3)
    before = jax.tree.map(lambda x: x.copy(), half)
    expected, _ = one.run(half, 4)
    got, _ = two.run(half, 4)
    assert bits_equal(got, expected)
    assert bits_equal(half, before)
    assert lies(got) == other


@pytest.mark.parametrize(("where", "other"), PAIRS)
def test_a_checkpoint_goes_on_where_its_run_did_not_lie(tmp_path, where, other):
    one, two = shared(where), shared(other)
    checkpoints = fs.Checkpoints(tmp_path / "a", every=2)
    expected, whole = one.run(one.init(seed=3), 5)
    one.run(one.init(seed=3), 3, checkpoints=checkpoints)
    got, history = two.run(two.init(seed=3), 5, checkpoints=checkpoints)
    assert bits_equal(got, expected) and same_metrics(history, whole)
    read, _ = one.run(one.init(seed=3), None, checkpoints=checkpoints)
    assert bits_equal(read, expected) and lies(read) == where


@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_table_padded_for_a_mesh_fits(where):
    sim = shared(where)
    state, _ = sim.run(sim.init(seed=3), 2)
    expected, _ = sim.run(state, 2)
    grow = lambda x: np.pad(x, [(0, 6)] + [(0, 0)] * (x.ndim - 1))  # noqa: E731
    padded = dataclasses.replace(state, clients=jax.tree.map(grow, state.clients))
    assert bits_equal(sim.run(padded, 2)[0], expected)
    with pytest.raises(ValueError, match="keeps state of 8 clients, the data has 10"):
        short = jax.tree.map(lambda x: x[:8], state.clients)
        sim.run(dataclasses.replace(state, clients=short), 2)


@pytest.mark.parametrize("name", ["ifca", "batch_norm_local"])
def test_models_of_clients_own(name):
    """Personalised in blocks of three, whose rows alone cross; also by a simulation of the other kind."""
    sims = [simulation(where, named(name), "sequential") for where in PLACES]
    test, found = make_data(seed=1), []
    states = [sim.run(sim.init(seed=3), 3)[0] for sim in sims]
    for sim, state in zip((*sims, sims[0]), (*states, states[2]), strict=True):
        found.append(sim.personalised(state, test, block_size=3))
        assert sim.evaluate(state, test).num_examples == sum(SIZES)
        assert sim.describe(state)["data"]["clients"] == len(SIZES)
    for one in found[1:]:
        for got, expected in ((one.before, found[0].before), (one.after, found[0].after)):
            assert bits_equal(dict(got.per_client), dict(expected.per_client))


# --- what crosses --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["host", "disk"])
def test_rows_of_a_chunk_alone_cross(monkeypatch, where):
    """Every chunk's table has room for its worst cohorts; the initial state of many clients is never on the device."""
    sim, placed = shared(where), []
    rounds = sim._rounds
    place = rounds.place_clients
    monkeypatch.setattr(rounds, "place_clients", lambda table: placed.append(table) or place(table))
    sim.run(sim.init(seed=3), ROUNDS)
    assert {len(leaf) for table in placed for leaf in jax.tree.leaves(table)} == {ROWS}
    assert [int(table.seen.sum()) for table in placed] == [
        0,
        1,
        0,
        3,
    ]  # client 4 comes again, then 7, 8 and 9

    many = simulation(where, data=make_data([1] * 5000))
    made = many._initialise.lower((), jax.random.key(0), None).compile().memory_analysis()
    assert made.output_size_in_bytes < 1000


@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_chunk_may_be_looked_at_and_measured(where):
    sim, state = simulation(where), shared("device").init(seed=3)
    text = sim.lower(state).as_text()
    assert f"tensor<{ROWS}x8x4xf32>" in text and "tensor<10x8x4xf32>" not in text
    before = jax.tree.map(lambda x: x.copy(), state)
    assert sim.tune(state, layouts=[fs.engines.Layout(1, "compact")], repeats=1, keep=False).timings
    assert bits_equal(state, before)


@given(
    seed=st.integers(0, 10**6),
    population=st.integers(1, 40),
    devices=st.integers(1, 4),
    replicas=st.integers(1, 3),
    rounds=st.integers(1, 4),
    rate=st.sampled_from([0.02, 0.3, 1.0]),
)
@settings(max_examples=60, deadline=None)
def test_every_turn_finds_its_own_row(seed, population, devices, replicas, rounds, rate):
    """On every device and in every replica: one row for each client, within the capacity, none for anybody else."""
    group = np.arange(population) % 2
    planner = Planner(
        np.full(population, 3), 3 * np.arange(population), fs.cohorts.poisson(rate), (fs.LocalWork(),), group,
        groups=2, replicas=replicas, devices=devices, homes=devices > 1,
    )  # fmt: skip
    plan = planner.plan([(seed, index) for index in range(replicas)], 0, rounds, rounds)
    states = OnHost(planner, True, 1)
    capacity = states.capacity(rounds)
    moved, rows = _client_state.compacted(plan, population, capacity)
    clients = dict(zip(zip(rows.replica.tolist(), rows.row.tolist(), strict=True), rows.client, strict=True))
    assert len(clients) == len(rows.client)
    met = set()
    for before, after in zip(plan.queues, moved.queues, strict=True):
        for index, device, place in np.argwhere(turns_of_queue(before)):
            entry = jax.tree.map(lambda x, at=(index, device, place): x[at], after.entries)
            assert 0 <= entry.slot < capacity
            key = int(entry.replica), int(device * capacity + entry.slot)
            assert clients[key] == entry.client
            met.add(key)
        same = before.entries._replace(slot=after.entries.slot)
        assert jax.tree.all(jax.tree.map(np.array_equal, same, after.entries))
    assert met == set(clients)


def test_a_copy_without_its_zeros_is_a_copy():
    generator = np.random.default_rng(0)
    large = np.zeros((5000, 7, 3), np.float32)
    large[[0, 41, 4999]] = generator.normal(size=(3, 7, 3))
    large[100, 2, 2], large[3000, 0, 0] = -0.0, np.nan
    for array in (large, large[1:9], large[:, ::2], large > 0, large[:0], large[:9].astype(jnp.bfloat16)):
        copy = _client_state.copied(array)
        assert bits_equal(copy, array) and copy.dtype == array.dtype
        assert not np.shares_memory(copy, array) and copy.flags.writeable


# --- where it lies by default --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("device", "host", "kind"),
    [
        (None, None, OnDevice),
        (10**6, None, OnDevice),
        (1000, None, OnHost),
        (1000, 10**6, OnHost),
        (1000, 1000, Outside),
        (None, 1000, OnDevice),
    ],
)
def test_size_decides(monkeypatch, device, host, kind):
    monkeypatch.setattr(_client_state, "device_bytes", lambda: device)
    monkeypatch.setattr(_client_state, "host_bytes", lambda: host)
    assert type(simulation(None)._clients) is kind
    for where in (None, "host", "disk"):
        assert type(simulation(where, named("fedavg"))._clients) is OnDevice  # there is nothing to keep


def test_chunks_are_as_long_as_their_rows_fit(monkeypatch):
    """A quarter of a device holds nine of these rows, of 145 bytes: three cohorts of three."""
    monkeypatch.setattr(_client_state, "device_bytes", lambda: 4 * 9 * 145)
    assert simulation(None, rounds_per_chunk=50).rounds_per_chunk == 3
    assert simulation("device", rounds_per_chunk=50).rounds_per_chunk == 50
    monkeypatch.setattr(_client_state, "device_bytes", lambda: 100)
    assert simulation("host", rounds_per_chunk=50).rounds_per_chunk == 1


def test_another_place_is_refused():
    with pytest.raises(
        ValueError,
        match=r"client_state is 'tape', expected None, 'device', 'host', 'disk', a pathlib.Path .*a folder",
    ):
        simulation("tape")
