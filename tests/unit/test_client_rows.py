"""The client table in a store and in checkpoints: it holds what arrays hold, costs what was written, and errors are told apart."""

from __future__ import annotations

import errno
import functools
import gc
import json
import re
import shutil
import socket
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.small import make_data, simulation

import fedjax_sim as fs
from fedjax_sim import _client_item, _client_layout, _client_store
from fedjax_sim._client_layout import RowLayout
from fedjax_sim._client_rows import Opener, moved, row_table, used_rows
from fedjax_sim._client_store import ScratchError, StoreTable
from fedjax_sim.engines._state import ClientTable

SIZES = (3, 1, 5, 9, 4, 2)
TASK = fs.tasks.classification(fs.models.linear(classes=2))


def table_of(lead, seed=0, used=0.3) -> ClientTable:
    """Some rows of odd sizes and types, zeros else; a leaf without elements."""
    generator = np.random.default_rng(seed)
    some = generator.random(lead) < used

    def leaf(shape, dtype):
        values = generator.normal(size=(*lead, *shape)).astype(dtype)
        values[generator.random(values.shape) < 0.1] = -0.0
        return np.where(some.reshape(*lead, *[1] * len(shape)), values, np.zeros((), dtype)).astype(dtype)

    state = {"a": leaf((3,), np.float32), "b": leaf((), jnp.bfloat16), "none": leaf((0, 2), np.float32)}
    return ClientTable((state,), (leaf((2, 1), np.int8),), some)


def same(a: ClientTable, b: ClientTable) -> bool:
    equal = lambda x, y: x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()  # noqa: E731
    return jax.tree.all(jax.tree.map(equal, jax.tree.map(np.asarray, a), jax.tree.map(np.asarray, b)))


LEADS = st.one_of(st.tuples(st.integers(1, 40)), st.tuples(st.integers(1, 3), st.integers(1, 20)))


def stored(folder: Path) -> Opener:
    return functools.partial(StoreTable, folder)


@given(
    lead=LEADS,
    seed=st.integers(0, 10**6),
    used=st.sampled_from([0.0, 0.2, 1.0]),
    piece=st.sampled_from([1, 100, 10**6]),
)
@settings(max_examples=60, deadline=None)
def test_a_table_survives_every_way(tmp_path_factory, lead, seed, used, piece):
    """Out of memory, from one place outside into another, into a checkpoint and back to both, in pieces of any size."""
    folder, table = tmp_path_factory.getbasetemp(), table_of(lead, seed, used)
    layout, opener = RowLayout(table, len(lead) - 1), stored(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_client_layout, "PIECE", piece)
        first = moved(table, layout, lead[-1], opener)
        second = moved(first, layout, lead[-1], opener)
        assert same(first, table) and same(second, table)
        for source in (table, second):
            _client_item.write(folder / "rows", source, layout)
            for where in (None, opener):
                assert same(_client_item.read(folder / "rows", layout, where), table)
        assert row_table(first) is not row_table(second) is not None
        more = moved(first, layout, lead[-1] + 5, opener)
        assert same(moved(more, layout.with_rows(lead[-1] + 5), lead[-1], opener), table)
        parts = list(used_rows(first, layout))
        assert sum(len(part.raw) for part in parts) == int(np.sum(table.seen))


def test_rows_are_read_and_written_at_their_places(tmp_path):
    layout = RowLayout(table_of((50,)), 0)
    outside, expected = stored(tmp_path)(layout), np.zeros((50, layout.row_bytes), np.uint8)
    generator = np.random.default_rng(0)
    whole = outside.table()
    for _ in range(20):
        places = np.sort(generator.choice(50, generator.integers(0, 12), replace=False))
        expected[places] = raw = generator.integers(0, 256, (len(places), layout.row_bytes), np.uint8)
        outside.put(places, raw)
        assert (outside.gather(places) == raw).all()
        assert same(whole, layout.split(expected)), "leaves made before see it, too"


def test_a_table_outside_is_not_written_through_its_leaves(tmp_path):
    leaf = jax.tree.leaves(stored(tmp_path)(RowLayout(table_of((8,)), 0)).table())[0]
    with pytest.raises((ValueError, TypeError), match=r"read-only|does not support item assignment"):
        leaf[0] = 1


def test_a_part_of_a_table_is_no_table(tmp_path):
    table = table_of((8,))
    whole = moved(table, RowLayout(table, 0), 8, stored(tmp_path))
    assert row_table(whole) is not None
    for part in (
        jax.tree.map(lambda x: x[:4], whole),
        jax.tree.map(lambda x: x[::-1], whole),
        whole._replace(seen=np.array(whole.seen)),
        table,
        ClientTable((), (), ()),
    ):
        assert row_table(part) is None


# --- space and time of life ----------------------------------------------------------------------------------


def test_what_nobody_wrote_costs_nothing(tmp_path):
    """100 GB of rows, and a checkpoint of them, which also goes on."""
    specs = ClientTable((), (), jax.ShapeDtypeStruct((100_000, 250_000), np.float32))
    layout, opener = RowLayout(specs, 0), stored(tmp_path)
    first = opener(layout)
    first.put(np.array([7, 99_999]), np.ones((2, layout.row_bytes), np.uint8))
    copy = moved(first.table(), layout, 100_000, opener)
    _client_item.write(tmp_path / "rows", copy, layout)
    again = row_table(_client_item.read(tmp_path / "rows", layout, opener))
    assert again is not None
    for one in (first, row_table(copy), again):
        assert one.gather(np.array([6, 7, 99_999])).max(axis=1).tolist() == [0, 1, 1]
    assert sum(path.stat().st_size for path in tmp_path.glob("*/*/*")) == 3 * 2 * layout.row_bytes
    assert (tmp_path / "rows").stat().st_size < 2 * layout.row_bytes + 100


# --- runs ----------------------------------------------------------------------------------------------------


def small(where) -> fs.Simulation:
    cohort = fs.cohorts.uniform(3)
    algorithm, data = fs.algorithms.scaffold(TASK, 0.1), make_data(SIZES)
    return simulation(algorithm, data, cohort=cohort, rounds_per_chunk=2, client_state=where)


@functools.cache
def shared(where: str) -> fs.Simulation:
    """One program for many tests."""
    return small(where)


def bits(state) -> list[bytes]:
    return [np.asarray(x).tobytes() for x in jax.tree.leaves((state.server, state.clients, state.round))]


def test_simulations_share_a_folder_and_leave_nothing(tmp_path):
    one, two = small(tmp_path), small(tmp_path)
    first, second = one.init(0), two.init(1)
    for _ in range(2):
        first, _ = one.run(first, 2)
        second, _ = two.run(second, 2)
        assert len(list(tmp_path.iterdir())) == 2
    assert bits(first) == bits(one.run(one.init(0), 4)[0])
    assert bits(second) == bits(two.run(two.init(1), 4)[0])
    del first, second
    gc.collect()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_used_is_said_at_once(tmp_path):
    (tmp_path / "file").touch()
    for folder, reason in ((tmp_path / "none", "No such file"), (tmp_path / "file", "Not a directory")):
        with pytest.raises(
            ScratchError, match=f"client state cannot be kept in {folder}: {reason}.*client_state="
        ):
            small(folder)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        ("tape://drive", "unsupported URL scheme"),
        ("gs://x", "Invalid GCS bucket name"),
        ("file:///dev/null/a [b]/folder", r"Not a directory"),
        ({"driver": "tape"}, '"tape" is not a registered KvStore'),
        ({"driver": len}, "not"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_at_once(place, reason):
    message = rf"client state cannot be kept in {re.escape(str(place))}: .*{reason}.*\. Name a place that exists and has room for 2\.4e-07 GB, .*Simulation\(client_state"
    with pytest.raises(ScratchError, match=message):
        small(place)


def test_a_store_that_does_not_answer_is_given_up(tmp_path, monkeypatch):
    """When it is made, and when it is removed."""
    monkeypatch.setattr(_client_store, "_PATIENCE", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        with pytest.raises(ScratchError, match=f"client state cannot be kept in {place}: no answer in 0.2 s"):
            small(place)


def test_a_run_in_a_store_that_has_no_folder_is_the_same():
    """As in a bucket."""
    sim = small("memory://")
    half, _ = sim.run(sim.init(0), 2)
    end, _ = sim.run(half, 2)
    assert isinstance(row_table(end.clients), StoreTable)
    assert bits(end) == bits(shared("device").run(shared("device").init(0), 4)[0])


def test_runs_in_a_store_leave_nothing(tmp_path):
    """In a folder whose name a URL has to quote; where a state is kept, its rows are."""
    folder = tmp_path / "a b%20ü"
    folder.mkdir()
    sim = small(folder.as_uri())
    half, _ = sim.run(sim.init(0), 2)
    assert [path for path in folder.rglob("*") if path.is_file()]
    assert bits(sim.run(half, 2)[0]) == bits(shared("device").run(shared("device").init(0), 4)[0])
    del half
    gc.collect()
    assert not list(folder.iterdir())


def test_a_store_may_be_specified(tmp_path):
    """As one is that no URL describes."""
    sim = small({"driver": "file", "path": f"{tmp_path}/"})
    state, _ = sim.run(sim.init(0), 4)
    assert list(tmp_path.iterdir())
    assert bits(state) == bits(shared("device").run(shared("device").init(0), 4)[0])


def full(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_the_run_and_not_the_state_it_began_with(tmp_path, monkeypatch):
    """A file stands where the folder was, whose name has what tensorstore's own remarks begin with; when it is gone, the run goes on."""
    tmp_path = tmp_path / "a [b='c']"
    tmp_path.mkdir()
    sim = small(tmp_path)
    half, _ = sim.run(sim.init(0), 2)
    before = bits(half)
    start, folders = StoreTable.__init__, set(tmp_path.iterdir())

    def broken(self, url, layout):
        start(self, url, layout)
        for folder in set(tmp_path.iterdir()) - folders:
            shutil.rmtree(folder)
            folder.touch()

    with monkeypatch.context() as patch:
        patch.setattr(StoreTable, "__init__", broken)
        with pytest.raises(
            ScratchError,
            match=f"client state cannot be kept in {re.escape(str(tmp_path))}: .*Not a directory\\. Name",
        ):
            sim.run(half, 2)
    assert bits(half) == before
    assert bits(sim.run(half, 2)[0]) == bits(sim.run(sim.init(0), 4)[0])


@pytest.mark.parametrize("where", ["host", "disk"])
def test_a_full_disk_under_the_checkpoints(tmp_path, monkeypatch, where):
    sim, checkpoints = shared(where), fs.Checkpoints(tmp_path / "a", every=2)
    sim.run(sim.init(0), 2, checkpoints=checkpoints)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left on device"):
            sim.run(sim.init(0), 4, checkpoints=checkpoints)
    assert checkpoints.rounds() == [2]
    state, _ = sim.run(sim.init(0), 4, checkpoints=checkpoints)
    assert bits(state) == bits(sim.run(sim.init(0), 4)[0])


def test_a_full_disk_is_no_damage(tmp_path, monkeypatch):
    """While a checkpoint is read into a table on disk."""
    sim, checkpoints = shared("disk"), fs.Checkpoints(tmp_path / "a", every=2)
    sim.run(sim.init(0), 2, checkpoints=checkpoints)
    start = sim.init(0)
    monkeypatch.setattr(StoreTable, "_at", full)
    with pytest.raises(ScratchError, match="No space left"):
        sim.run(start, 4, checkpoints=checkpoints)
    assert checkpoints.rounds() == [2]


# --- damage --------------------------------------------------------------------------------------------------


def test_every_damaged_byte_is_found(tmp_path):
    table = table_of((6,), used=0.5)
    layout, path = RowLayout(table, 0), tmp_path / "rows"
    _client_item.write(path, table, layout)
    whole = path.read_bytes()
    for at in range(len(whole)):
        for damaged in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x80]) + whole[at + 1 :]):
            path.write_bytes(damaged)
            for opener in (None, stored(tmp_path)):
                with pytest.raises(ValueError, match="is damaged"):
                    _client_item.read(path, layout, opener)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="is damaged"):
        _client_item.read(path, layout, None)


def halved(folder):
    path = folder / "clients" / "rows"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flipped(folder):
    path = folder / "clients" / "rows"
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)


def without(folder):
    shutil.rmtree(folder / "clients")


@pytest.mark.parametrize("where", ["device", "host", "disk"])
@pytest.mark.parametrize("damage", [halved, flipped, without])
def test_damaged_rows_are_set_aside_with_their_checkpoint(tmp_path, damage, where):
    sim, checkpoints = shared(where), fs.Checkpoints(tmp_path / "a", every=2)
    whole, _ = sim.run(sim.init(0), 6)
    sim.run(sim.init(0), 4, checkpoints=checkpoints)
    damage(tmp_path / "a" / "4")
    with pytest.warns(
        RuntimeWarning, match="cannot be read and is now 4.damaged; going on from the one before"
    ):
        state, _ = sim.run(sim.init(0), 6, checkpoints=checkpoints)
    assert bits(state) == bits(whole)


@pytest.mark.parametrize("where", ["device", "host", "disk"])
def test_checkpoints_with_the_table_among_the_arrays_are_read(tmp_path, where):
    """Format 1, as it was written before rows had a file of their own."""
    sim, checkpoints = shared("host"), fs.Checkpoints(tmp_path / "a", every=2)
    expected, _ = sim.run(sim.init(0), 6)
    state, _ = sim.run(sim.init(0), 2, checkpoints=checkpoints)
    folder = tmp_path / "a" / "2"
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = checkpointer.restore(folder / "arrays")
        for path, leaf in jax.tree.leaves_with_path(state.clients):
            arrays["clients/" + jax.tree_util.keystr(path, simple=True, separator="/")] = leaf
        checkpointer.save(folder / "arrays", arrays, force=True)
    shutil.rmtree(folder / "clients")
    about = folder / "about" / "metadata"
    about.write_text(json.dumps(json.loads(about.read_text()) | {"format": 1}))
    sim = shared(where)
    got, _ = sim.run(sim.init(0), 6, checkpoints=checkpoints)
    assert bits(got) == bits(expected)


def test_rows_that_begin_with_more_than_zeros():
    """A layer whose clients keep something else at first: they have it on disk, too."""
    plain = fs.aggregation.top_k(0.5)
    ones = plain._replace(init=lambda spec: jax.tree.map(lambda x: x + 1, plain.init(spec)))
    chain = fs.aggregation.chain(ones, fs.aggregation.mean(over="clients"))
    found = []
    for where in ("device", "disk"):
        sim = simulation(
            fs.algorithms.fedavg(TASK, optax.sgd(0.1), aggregate=chain),
            make_data(SIZES),
            cohort=fs.cohorts.uniform(2),
            client_state=where,
        )
        start = sim.init(0)
        assert all((np.asarray(leaf) == 1).all() for leaf in jax.tree.leaves(start.clients.parts))
        found.append(bits(start) + bits(sim.run(start, 2)[0]))
    assert found[0] == found[1]
