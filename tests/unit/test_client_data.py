import copy
import pickle

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from fedjax_sim.data import ClientData, Federated, holdout_clients, split

COLUMNS = {"x": np.arange(12, dtype=np.uint8).reshape(6, 2), "y": np.arange(6, dtype=np.int32)}


def example(**changes) -> ClientData:
    return ClientData(**{"columns": COLUMNS, "offsets": [0, 3, 3, 6], "ids": ["ann", "bo", "cy"]} | changes)


owners = st.lists(st.integers(-3, 8), min_size=1, max_size=40)


def assert_equal(a: ClientData, b: ClientData) -> None:
    assert a.ids.tolist() == b.ids.tolist()
    np.testing.assert_array_equal(a.offsets, b.offsets)
    assert a.columns.keys() == b.columns.keys()
    for name in a.columns:
        assert a.columns[name].dtype == b.columns[name].dtype
        np.testing.assert_array_equal(a.columns[name], b.columns[name])


# --- what it is ----------------------------------------------------------------------------------------------


def test_properties():
    data = example()
    assert (data.num_clients, data.num_examples, data.nbytes) == (3, 6, 12 + 24)
    assert data.sizes.dtype == np.int64 and data.sizes.tolist() == [3, 0, 3]
    assert data.columns["x"].dtype == np.uint8
    assert repr(data) == "ClientData(3 clients with 0 to 3 of 6 examples, x: uint8[2], y: int32[], 36 B)"


def test_client_gives_views():
    data = example()
    view = data.client(2)["y"]
    assert view.tolist() == [3, 4, 5] and view.base is data.columns["y"]
    assert data.client("cy")["y"].tolist() == [3, 4, 5]
    assert data.client("bo")["x"].shape == (0, 2)


def test_an_integer_is_a_position_and_index_finds_integer_ids():
    data = example(ids=[2, 1, 0])
    assert data.client(2)["y"].tolist() == [3, 4, 5]
    assert data.client(data.index(2))["y"].tolist() == [0, 1, 2]


def test_caller_keeps_own_arrays():
    offsets, ids = np.array([0, 3, 3, 6]), np.array([5, 6, 7])
    data = example(offsets=offsets, ids=ids)
    offsets[1], ids[0] = 4, 9
    assert data.offsets.tolist() == [0, 3, 3, 6] and data.ids.tolist() == [5, 6, 7]
    with pytest.raises(ValueError, match="read-only"):
        data.ids[0] = 1


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"columns": {}}, ValueError, "columns is empty, expected at least one column"),
        ({"columns": [1]}, TypeError, "columns is list, expected a mapping"),
        ({"columns": {0: np.zeros(6)}}, TypeError, r"name of type int \(0\), expected str"),
        ({"columns": {"mask": np.zeros(6)}}, ValueError, "'mask' has a reserved name.*Rename it"),
        ({"columns": {"x": np.array([{}] * 6)}}, TypeError, "'x' is of dtype object.*pad them"),
        ({"columns": {"x": np.array(["a"] * 6)}}, TypeError, "'x' is of dtype <U1, expected numbers"),
        ({"columns": {"x": np.zeros(6, "datetime64[s]")}}, TypeError, "'x' is of dtype datetime64"),
        ({"columns": {"x": np.zeros(6, [("a", int)])}}, TypeError, "'x' is of dtype .*expected numbers"),
        ({"columns": {"x": np.float32(1)}}, ValueError, r"'x' is a scalar, expected an array \[examples"),
        ({"columns": {"x": np.zeros(6), "y": np.zeros(5)}}, ValueError, "'y' has 5 rows, column 'x' has 6"),
        ({"offsets": [0.0, 3.0, 3.0, 6.0]}, TypeError, r"offsets is float64\[4\], expected integers"),
        ({"offsets": [[0, 3, 3, 6]]}, TypeError, r"offsets is int64\[1, 4\]"),
        ({"offsets": [0, 3, 6]}, ValueError, "offsets has 3 entries for 3 ids, expected 4"),
        ({"offsets": [1, 3, 3, 6]}, ValueError, "offsets run from 1 to 6, expected 0 to 6"),
        ({"offsets": [0, 3, 3, 5]}, ValueError, "offsets run from 0 to 5, expected 0 to 6"),
        ({"offsets": [0, 4, 3, 6]}, ValueError, r"offsets decrease after position 1 \(4 to 3\)"),
        ({"ids": ["a", "b", "a"]}, ValueError, "ids hold 'a' more than once.*from_arrays"),
        ({"ids": ["a", "b\0", "c"]}, ValueError, "ids holds .*, which ends with a zero byte"),
        ({"ids": ["a", 1, "b"]}, TypeError, "ids holds values of type int, str, expected all int or all str"),
        ({"ids": [("Hamlet", "Ghost")] * 3}, TypeError, "ids holds values of type tuple"),
        ({"ids": np.zeros(3)}, TypeError, r"ids is float64\[3\], expected integers or text"),
        ({"ids": [], "offsets": [0]}, ValueError, "ids is empty, expected at least one client"),
    ],
)
def test_bad_input_is_refused(changes, error, match):
    with pytest.raises(error, match=match):
        example(**changes)


# --- clients, subsets ----------------------------------------------------------------------------------------


def test_select():
    data = example()
    picked = data.select(["cy", "ann"])
    assert picked.ids.tolist() == ["cy", "ann"] and picked.columns["y"].tolist() == [3, 4, 5, 0, 1, 2]
    assert_equal(data.select([2, 0]), picked)
    assert_equal(data.select(np.array([2, 0])), picked)
    assert_equal(data.select(range(3)), data)
    assert data.select(data.sizes == 0).num_examples == 0


@pytest.mark.parametrize(
    ("clients", "error", "match"),
    [
        ([3], IndexError, r"client 3 is out of range, expected a position from 0 to 2 .*data.index\(id\)"),
        ([-1], IndexError, "client -1 is out of range"),
        (["dora"], ValueError, "no client has the id 'dora', expected one of the 3 ids 'ann', 'bo', 'cy'"),
        ([], ValueError, "clients names no client"),
        ([0, 0], ValueError, "'ann' more than once"),
        ([0.5], TypeError, "values of type float"),
        ([0, "bo"], TypeError, "values of type int, str"),
        ([True, False], ValueError, r"bool\[2\], expected bool\[3\]"),
    ],
)
def test_select_refuses(clients, error, match):
    with pytest.raises(error, match=match):
        example().select(clients)


def test_index_refuses():
    with pytest.raises(ValueError, match="no client has the id 1"):
        example().index(1)
    with pytest.raises(
        ValueError, match=r"no client has the id 9, expected one of the 4 ids 0, 1, 2, \.\.\."
    ):
        ClientData({"x": np.zeros(0)}, [0] * 5, range(4)).index(9)


def test_filter_refuses():
    with pytest.raises(ValueError, match=r"rows is int64\[6\], expected bool\[6\]"):
        example().filter(np.ones(6, int))


@given(owners, st.randoms())
def test_select_is_client_by_client(owner, random):
    data = ClientData.from_arrays({"row": np.arange(len(owner))}, owner)
    positions = random.sample(range(data.num_clients), random.randint(1, data.num_clients))
    picked = data.select(positions)
    assert picked.ids.tolist() == data.ids[positions].tolist()
    for at, position in enumerate(positions):
        np.testing.assert_array_equal(picked.client(at)["row"], data.client(position)["row"])


# --- ways to make one ----------------------------------------------------------------------------------------


@given(owners)
def test_from_arrays_keeps_every_row_in_order(owner):
    data = ClientData.from_arrays({"row": np.arange(len(owner))}, owner)
    assert data.ids.tolist() == sorted(set(owner))
    for position, client in enumerate(data.ids):
        assert data.client(position)["row"].tolist() == [
            row for row, who in enumerate(owner) if who == client
        ]


@given(owners, st.permutations(range(-3, 9)))
def test_from_arrays_with_all_ids(owner, ids):
    data = ClientData.from_arrays({"row": np.arange(len(owner))}, owner, ids=ids)
    assert data.ids.tolist() == ids
    assert data.sizes.tolist() == [owner.count(client) for client in ids]


@given(owners)
def test_from_clients_inverts_client(owner):
    data = ClientData.from_arrays({"x": np.arange(len(owner), dtype=np.uint8), "y": np.array(owner)}, owner)
    again = ClientData.from_clients({client: data.client(at) for at, client in enumerate(data.ids.tolist())})
    assert_equal(data, again)


@pytest.mark.parametrize(
    ("client", "ids", "error", "match"),
    [
        ([0, 1], None, ValueError, "client has 2 entries, the columns have 3 rows"),
        ([0.0, 1.0, 2.0], None, TypeError, "client holds values of type float"),
        ([0, 1, 7], range(3), ValueError, "no client has the id 7, expected one of the 3 ids"),
        ([0, 1, 2], ["a", "b", "c"], ValueError, "no client has the id 0"),
        ([0, 1, 1], [0, 1, 1], ValueError, "ids hold 1 more than once"),
    ],
)
def test_from_arrays_refuses(client, ids, error, match):
    with pytest.raises(error, match=match):
        ClientData.from_arrays({"x": np.zeros(3)}, client, ids=ids)


@pytest.mark.parametrize(
    ("clients", "match"),
    [
        ({}, "clients is empty"),
        ({"a": {"x": [1]}, "b": {"y": [1]}}, "client 'b' has columns {'y': 'int64.*client 'a' has {'x'"),
        (
            {"a": {"x": np.zeros(2)}, "b": {"x": np.zeros(2, np.float32)}},
            "expected the same names, dtypes and",
        ),
        ({"a": {"x": np.zeros((2, 3))}, "b": {"x": np.zeros((2, 4))}}, r"float64\[4\].*float64\[3\]"),
        (
            {"a": {"x": np.zeros(2), "y": np.zeros(3)}},
            "column 'y' of client 'a' has 3 rows, column 'x' has 2",
        ),
    ],
)
def test_from_clients_refuses(clients, match):
    with pytest.raises(ValueError, match=match):
        ClientData.from_clients(clients)


def test_memory_mapped_columns_stay_so(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.uint8).reshape(6, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    data = ClientData.from_arrays({"x": mapped}, ["a", "a", "b", "c", "c", "c"])
    neighbours = data.select(["b", "c"])
    for array in (data.columns["x"], data.client("b")["x"], neighbours.columns["x"]):
        assert isinstance(array, np.memmap) and np.shares_memory(array, mapped)
    assert data.select(["c", "a"]).columns["x"].tolist() == mapped[[3, 4, 5, 0, 1]].tolist()


# --- pytree --------------------------------------------------------------------------------------------------


def test_pytree_round_trip():
    data = example()
    leaves, structure = jax.tree.flatten(data)
    assert len(leaves) == 3
    assert_equal(jax.tree.unflatten(structure, leaves), data)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(data)]
    assert paths == [".columns['x']", ".columns['y']", ".offsets"]
    assert repr(jax.tree.map(lambda _: None, data)) == "ClientData(3 clients, x: NoneType, y: NoneType)"


def test_device_put_and_jit():
    data = example()
    on_device = jax.device_put(data)
    assert isinstance(on_device, ClientData) and on_device.columns["x"].dtype == jnp.uint8
    assert on_device.client("cy")["y"].tolist() == [3, 4, 5]
    assert on_device.select([2, 0]).columns["y"].tolist() == [3, 4, 5, 0, 1, 2]
    assert "6 examples" in repr(data) and "x: uint8[2]" in repr(on_device)
    train, test = split(on_device, 0.3, seed=0)
    assert train.sizes.tolist() == [2, 0, 2] and test.sizes.tolist() == [1, 0, 1]

    traces = []

    @jax.jit
    def double(data: ClientData) -> ClientData:
        traces.append(repr(data))
        assert data.num_clients == 3 and data.num_examples == 6 and data.sizes.shape == (3,)
        return jax.tree.map(lambda leaf: leaf * 2, data)

    assert double(on_device).columns["y"].tolist() == [0, 2, 4, 6, 8, 10]
    double(example())  # equal ids in another object: no second trace
    assert len(traces) == 1
    double(example(ids=["ann", "bo", "di"]))
    assert len(traces) == 2


def test_shapes_alone():
    shapes = jax.eval_shape(lambda data: data, example())
    assert isinstance(shapes, ClientData) and shapes.columns["x"].shape == (6, 2)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_copies_are_equal_trees(again):
    data = example()
    assert_equal(again(data), data)
    assert jax.tree.structure(again(data)) == jax.tree.structure(data)


# --- split ---------------------------------------------------------------------------------------------------


@given(owners, st.floats(0.001, 0.999), st.integers(0, 5))
def test_split_divides_each_client(owner, test_fraction, seed):
    data = ClientData.from_arrays({"row": np.arange(len(owner))}, owner, ids=range(-3, 9))
    train, test = split(data, test_fraction, seed)
    assert train.ids.tolist() == test.ids.tolist() == data.ids.tolist()
    for at, size in enumerate(data.sizes.tolist()):
        parts = [part.client(at)["row"].tolist() for part in (train, test)]
        assert sorted([*parts[0], *parts[1]]) == data.client(at)["row"].tolist()
        assert all(part == sorted(part) for part in parts)
        assert len(parts[1]) == (0 if size < 2 else min(max(round(test_fraction * size), 1), size - 1))


def test_split_follows_the_seed():
    data = ClientData({"row": np.arange(1000)}, [0, 1000], [0])
    rows = [split(data, 0.5, seed)[1].columns["row"].tolist() for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]


@pytest.mark.parametrize("test_fraction", [0.0, 1.0, -1.0, float("nan")])
def test_split_refuses(test_fraction):
    with pytest.raises(ValueError, match=r"test_fraction is .*expected a number in"):
        split(example(), test_fraction, seed=0)


# --- clients held out ------------------------------------------------------------------------------------------


def population(clients: int) -> Federated:
    """Client ``i`` has ``i`` training rows (so the first has none) and one test row."""
    owner = np.repeat(np.arange(clients), np.arange(clients))
    train = ClientData.from_arrays({"row": np.arange(len(owner))}, owner, ids=range(clients))
    test = ClientData.from_arrays({"row": np.arange(clients)}, np.arange(clients), ids=range(clients))
    return Federated(train, test, "toy", notes=("made up",))


@given(st.integers(2, 30), st.floats(0.001, 0.999), st.integers(0, 5))
def test_held_out_clients_are_whole_and_on_one_side(clients, fraction, seed):
    data = population(clients)
    parts = holdout_clients(data, fraction, seed)
    assert sorted([*parts[0].train.ids, *parts[1].train.ids]) == list(range(clients))
    assert len(parts[1].train.ids) == min(max(round(fraction * clients), 1), clients - 1)
    for part in parts:
        assert part.train.ids.tolist() == part.test.ids.tolist() == sorted(part.train.ids.tolist())
        for mine, whole in ((part.train, data.train), (part.test, data.test)):
            for at, client in enumerate(mine.ids.tolist()):
                assert mine.client(at)["row"].tolist() == whole.client(client)["row"].tolist()


def test_held_out_clients_follow_the_seed_and_are_noted():
    ids = [holdout_clients(population(200), 0.5, seed)[1].train.ids.tolist() for seed in (0, 0, 1)]
    assert ids[0] == ids[1] != ids[2]
    seen, unseen = holdout_clients(population(4), 0.25, seed=3)
    assert (seen.name, seen.notes) == ("toy", ("made up", "1 of 4 clients are held out (seed 3)"))
    assert unseen.notes[1] == "1 of 4 clients, held out from training (seed 3)"


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_held_out_clients_refuse_a_fraction(fraction):
    with pytest.raises(ValueError, match=r"fraction is .*expected a number in"):
        holdout_clients(population(4), fraction, seed=0)


def test_held_out_clients_need_two_clients_with_parts_of_their_own():
    with pytest.raises(ValueError, match="toy has one client, expected at least two"):
        holdout_clients(population(1), 0.5, seed=0)
    central = Federated(example(), example().select([0]), name="toy")
    with pytest.raises(ValueError, match=r"different clients \(3 and 1\).*fs.data.split"):
        holdout_clients(central, 0.5, seed=0)


def test_federated_parts_have_the_same_columns():
    with pytest.raises(ValueError, match=r"toy: train has columns .*uint8\[2\].*test has .*float64\[\]"):
        Federated(example(), example(columns={"x": np.zeros(6)}), name="toy")


def test_memory_mapped_rows_are_read_as_they_are(tmp_path):
    """Also from an array that begins in the middle of its file, and from one that begins in the middle of a map."""
    x = np.arange(6_000, dtype=np.int16).reshape(1_000, 6)
    (tmp_path / "x.bin").write_bytes(b"12345678" + x.tobytes())
    mapped = np.memmap(tmp_path / "x.bin", np.int16, "r", offset=8, shape=(1_000, 6))
    offsets = np.array([0, 1, 1, 400, 900])
    for column, first in ((mapped[:900], 0), (mapped[100:], 100)):
        data = ClientData({"x": column}, offsets, np.arange(4))
        assert isinstance(data.columns["x"], np.memmap)
        out = {"x": np.zeros((1_000, 6), np.int16)}
        data.read(np.array([3, 1, 0]), out)
        rows = first + np.r_[np.arange(400, 900), [0]]
        np.testing.assert_array_equal(out["x"][:501], x[rows])
