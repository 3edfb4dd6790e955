"""TensorFlow Federated's SQLite files, and clients of either kind that are read when they are wanted."""

import lzma
import sqlite3
from contextlib import closing

import jax
import numpy as np
import optax
import pytest
from unit.tff_files import digits, example, field, varint, windows, write_hdf5, write_sqlite

import fedjax_sim as fs
from fedjax_sim.data import load, tff
from fedjax_sim.data.formats._tf_example import parse_example

# --- examples ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packed", [True, False])
def test_an_example(packed):
    raw = example(packed, a=[0.5, -2.0], b=[1, -1, 2**62], c=[b"\xff", "ü"], d="one", e=7)
    found = parse_example(raw)
    assert found["a"].dtype == np.float32 and found["a"].tolist() == [0.5, -2.0]
    assert found["b"].dtype == np.int64 and found["b"].tolist() == [1, -1, 2**62]
    assert found["c"] == [b"\xff", "ü".encode()] and found["d"] == [b"one"] and found["e"].tolist() == [7]
    assert parse_example(b"") == {}


@pytest.mark.parametrize(
    ("raw", "match"),
    [
        (example(a=[1.0])[:-1], "no tf.train.Example, or was cut off"),
        (varint(1 << 3 | 2) + varint(2**40), "no tf.train.Example"),
        (b"\xff" * 30, "no tf.train.Example"),
        (
            field(1, field(1, field(1, b"a") + field(2, b""))),
            "feature 'a' of an example has no list of values",
        ),
        (field(1, field(1, field(1, b"\xff") + field(2, b""))), "no tf.train.Example"),
        (None, "an example is of type NoneType, expected bytes"),
        ("text", "an example is of type str, expected bytes"),
    ],
)
def test_an_example_that_is_none(raw, match):
    with pytest.raises(ValueError, match=match):
        parse_example(raw)


# --- SQLite --------------------------------------------------------------------------------------------------


def digit(label: int, value: float = 1.0) -> bytes:
    return example(pixels=np.full((28, 28), value, np.float32), label=label)


EMNIST = {
    "train": {"f1": [digit(3), digit(1, 0.5)], "f0": [digit(2)]},
    "test": {"f0": [digit(9)], "f1": [digit(0)]},
}


@pytest.mark.parametrize("name", ["emnist.sqlite", "emnist.sqlite.lzma"])
def test_sqlite(tmp_path, name):
    path = write_sqlite(tmp_path / name, EMNIST)
    for data in (tff(path), load(f"tff:{path}", test="test")):
        assert (data.name, data.classes, data.notes) == ("emnist", 10, ())
        assert data.train.ids.tolist() == data.test.ids.tolist() == ["f0", "f1"]
        assert data.train.sizes.tolist() == [1, 2] and data.test.sizes.tolist() == [1, 1]
        x, y = data.train.client("f1")["x"], data.train.client("f1")["y"]
        assert x.dtype == np.float32 and x.shape == (2, 28, 28) and x[1, 5, 5] == 0.5
        assert y.dtype == np.int32 and y.tolist() == [3, 1]
    assert tff(path, channel_axis="x").test.columns["x"].shape == (2, 28, 28, 1)
    assert list(tmp_path.iterdir()) == [path]


def test_rows_in_any_order(tmp_path):
    path = write_sqlite(tmp_path / "a.sqlite", EMNIST)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE t AS SELECT * FROM examples ORDER BY hex(serialized_example_proto)")
        connection.execute("DELETE FROM examples")
        connection.execute("INSERT INTO examples SELECT * FROM t")
    assert sorted(tff(path).train.client("f1")["y"].tolist()) == [1, 3]


def test_other_splits_are_noted(tmp_path):
    splits = {f"{kind}_{part}": clients for kind in ("all", "digits") for part, clients in EMNIST.items()}
    path = write_sqlite(tmp_path / "a.sqlite", splits)
    with pytest.raises(
        ValueError, match=r"a.sqlite: no part is called 'train', there are 'all_test', 'all_train'"
    ):
        tff(path)
    data = tff(path, train="all_train", test="all_test")
    assert data.notes == ("part 'digits_train' is left out", "part 'digits_test' is left out")
    alone = tff(path, train="all_train")
    assert alone.test.num_examples == 0 and alone.test.ids.tolist() == ["f0", "f1"]
    halves = tff(path, train="all_train", test_fraction=0.5)
    assert halves.train.sizes.tolist() == [1, 1] and halves.test.sizes.tolist() == [0, 1]
    with pytest.raises(ValueError, match="has a test part, expected no test_fraction"):
        tff(path, train="all_train", test="all_test", test_fraction=0.5)


def test_parts_keep_their_own_clients(tmp_path):
    path = write_sqlite(
        tmp_path / "a.sqlite", {"train": {"a": [digit(0)]}, "test": {"b": [digit(1)], "c": [digit(2)]}}
    )
    data = tff(path)
    assert data.train.ids.tolist() == ["a"] and data.test.ids.tolist() == ["b", "c"]


def test_images_become_bytes(tmp_path):
    pixels = np.arange(32 * 32 * 3) % 256
    cifar = {"train": {"0": [example(image=pixels, coarse_label=4, label=51)]}}
    data = tff(write_sqlite(tmp_path / "a.sqlite", cifar))
    assert data.train.columns["x"].dtype == np.uint8 and data.train.columns["x"].shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(data.train.columns["x"].ravel(), pixels)
    assert data.train.columns["coarse_label"].tolist() == [4] and data.classes == 52
    coarse = tff(tmp_path / "a.sqlite", columns={"x": "image", "y": "coarse_label"})
    assert coarse.train.columns["y"].dtype == np.int32 and coarse.classes == 5
    celeba = {"train": {"0": [example(image=np.zeros(84 * 84 * 3, int), male=1)]}}
    data = tff(write_sqlite(tmp_path / "b.sqlite", celeba), label="male")
    assert data.train.columns["x"].shape == (1, 84, 84, 3) and data.classes == 2


def test_shapes(tmp_path):
    path = write_sqlite(tmp_path / "a.sqlite", {"train": {"a": [example(z=[0.0, 1.0, 2.0, 3.0], w=[5])]}})
    assert tff(path).train.columns["z"].shape == (1, 4) and tff(path).train.columns["w"].shape == (1,)
    found = tff(path, shapes={"z": [2, 2], "w": [1]}).train.columns
    assert found["z"].tolist() == [[[0, 1], [2, 3]]] and found["w"].shape == (1, 1)
    with pytest.raises(
        ValueError, match=r"client 'a': field 'z' has examples of shape \[4\], 4 values, expected \[3\]"
    ):
        tff(path, shapes={"z": [3]})
    with pytest.raises(ValueError, match="shapes names 'q', expected one of w, z"):
        tff(path, shapes={"q": [3]})
    with pytest.raises(ValueError, match=r"shapes\['z'\] is -2"):
        tff(path, shapes={"z": [-2, -2]})


SHAKESPEARE = {
    "train": {"A": [example(snippets="to be"), example(snippets="or not")], "B": [example(snippets="ay")]},
    "test": {"A": [example(snippets="to")]},
}


def test_text_is_given_to_a_function_by_client(tmp_path):
    path = write_sqlite(tmp_path / "a.sqlite", SHAKESPEARE)
    with pytest.raises(
        ValueError, match=r"client 'A': field 'snippets' holds text, such as 'to be', .*decode=\{'snip"
    ):
        tff(path)
    data = tff(path, decode={"snippets": windows})
    assert data.train.sizes.tolist() == [5, 1] and data.test.sizes.tolist() == [1]
    assert data.train.client("B")["x"].tolist() == [[97, 121]]
    few = tff(path, decode={"snippets": lambda texts: {"y": np.zeros(texts.count("ay"), int)}})
    assert few.train.sizes.tolist() == [0, 1] and few.test.sizes.tolist() == [0]
    with pytest.raises(ValueError, match="decode names 'text', expected one of the columns snippets"):
        tff(path, decode={"text": windows})
    with pytest.raises(ValueError, match=r"a.sqlite: client 'A': .*unhashable"):
        tff(path, decode={"snippets": lambda texts: {[]: 1}})
    with pytest.raises(
        ValueError, match=r"a.sqlite: client 'B' has columns .*float64.*, another has .*int64"
    ):
        tff(path, decode={"snippets": lambda texts: np.zeros(1) if "ay" in texts else np.zeros(1, int)})


def test_text_beside_numbers(tmp_path):
    raw = [example(tokens="a b", score=3, words=["a", "b"]), example(tokens=b"\xff", score=4, words=["c"])]
    path = write_sqlite(tmp_path / "a.sqlite", {"train": {"7": raw}})
    assert tff(path, columns=["score"]).train.columns["score"].tolist() == [3, 4]
    seen = []
    decode = {
        "tokens": lambda values: (seen.append(values), np.ones(2))[1],
        "words": lambda values: [len(v) for v in values],
    }
    data = tff(path, decode=decode)
    assert seen[0] == ["a b", b"\xff"] and data.train.columns["words"].tolist() == [2, 1]
    with pytest.raises(ValueError, match=r"client '7': columns are of lengths \{'score': 2, 'tokens': 1\}"):
        tff(path, columns=["score", "tokens"], decode={"tokens": lambda values: [1]})


def test_ragged_fields(tmp_path):
    path = write_sqlite(
        tmp_path / "a.sqlite", {"train": {"a": [example(z=[1, 2], y=0), example(z=[1], y=0)]}}
    )
    with pytest.raises(
        ValueError, match="field 'z' has 1 to 2 values in an example, expected as many in each: choose"
    ):
        tff(path)
    assert tff(path, columns=["y"]).train.num_examples == 2
    assert tff(path, decode={"z": lambda rows: [sum(row) for row in rows]}).train.columns["z"].tolist() == [
        3,
        1,
    ]


@pytest.mark.parametrize(
    ("splits", "options", "sizes", "match"),
    [
        (
            {"train": {"a": [digit(0)[:-9]]}},
            {},
            {},
            "client 'a': an example of .* bytes is no tf.train.Example",
        ),
        ({"train": {"a": [digit(0)]}}, {}, {"a": 2}, "client 'a' has 1 examples .* client_metadata says 2"),
        (
            {"train": {"a": [digit(0)] * 2}},
            {},
            {"a": 1},
            "client 'a' has .* examples .* client_metadata says 1",
        ),
        ({"train": {"a": [digit(0)], "b": [digit(0)]}}, {}, {"b": None}, "client 'b' has more .* says 0"),
        (
            {"train": {"a": [digit(0)]}},
            {},
            {"a": "many"},
            "client_metadata holds 'train', 'a', 'many', expected",
        ),
        ({"train": {"a": [digit(0)]}}, {}, {"a": -1}, "client_metadata holds 'train', 'a', -1"),
        ({"train": {"a": [digit(0)]}}, {}, {"a": 1000}, "client 'a' has 1 examples"),
        ({"train": {"a": [digit(0)], "b": []}}, {}, {"b": 1000}, "client 'b' has 0 examples"),
        (
            {"train": {"a": [digit(0)], "b": []}},
            {},
            {"b": 2**62},
            "counts 4611.* examples, more than a file of",
        ),
        ({"train": {"a": ["text"]}}, {}, {}, "client 'a': an example is of type str, expected bytes"),
        ({"train": {"a\0": [digit(0)]}}, {}, {}, "ends with a zero byte"),
        ({"train": {"a": []}}, {}, {}, "no client has an example"),
        ({}, {}, {}, "client_metadata is empty"),
        ({"train": {"a": [digit(0), example(label=0)]}}, {}, {}, "field 'pixels' has 0 to 784 values"),
        (
            {"train": {"a": [digit(0)], "b": [example(label=0)]}},
            {},
            {},
            "client 'b': no field is called 'pixels'",
        ),
        (
            {"train": {"a": [digit(0)], "b": [example(pixels=[1.0], label=0)]}},
            {},
            {},
            r"client 'b' has columns .*'x': 'float32\[\]'\}, another has .*'x': 'float32\[28, 28\]",
        ),
        (
            {"train": {"a": [example(image=[300] * 3072)]}},
            {},
            {},
            "field 'image' holds numbers from 300 to 300",
        ),
        (
            {"train": {"a": [example(label=2**40)]}},
            {},
            {},
            "client 'a': label column 'y' holds numbers from 1099",
        ),
        (EMNIST, {"columns": ["digits"]}, {}, "client 'f0': no field is called 'digits', .* label, pixels"),
        (
            EMNIST,
            {"channel_axis": "y"},
            {},
            r"column 'y' has shape \[1\], expected \[examples, height, width\]",
        ),
        (EMNIST, {"test": "dev"}, {}, "no part is called 'dev', there are 'test', 'train'"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path, splits, options, sizes, match):
    path = write_sqlite(tmp_path / "bad.sqlite", splits, **sizes)
    with pytest.raises(ValueError, match=match) as caught:
        tff(path, **options)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("statement", "match"),
    [
        ("DROP TABLE examples", "no table is called 'examples', the file has client_metadata"),
        ("DROP TABLE client_metadata", "no table is called 'client_metadata', the file has examples"),
        (
            "ALTER TABLE examples DROP COLUMN serialized_example_proto",
            "table 'examples' has the columns split_name, client_id",
        ),
        (
            "ALTER TABLE examples RENAME TO e; CREATE VIEW examples AS SELECT * FROM e",
            "no table is called 'examples'",
        ),
        (
            "INSERT INTO client_metadata SELECT * FROM client_metadata",
            "names client 'f1' twice in split 'train'",
        ),
        ("UPDATE examples SET client_id = x'ff00'", "client 'f0' has 0 examples in split 'train'"),
        (
            "INSERT INTO examples SELECT split_name, x'ff00', serialized_example_proto FROM examples",
            r"client b'\\xff\\x00' has more examples",
        ),
        ("UPDATE client_metadata SET client_id = x'ff'", r"client_metadata holds 'train', b'\\xff', 2"),
        ("UPDATE client_metadata SET client_id = CAST(x'ff' AS TEXT)", "Could not decode to UTF-8"),
        ("DELETE FROM examples WHERE client_id = 'f0'", "client 'f0' has 0 examples in split 'train'"),
        (
            "CREATE TABLE g (client_id, split_name, num_examples AS (1 + 1)); DROP TABLE client_metadata; "
            "ALTER TABLE g RENAME TO client_metadata",
            "table 'client_metadata' has the columns client_id, split_name, num_examples, expected",
        ),
    ],
)
def test_tables_that_are_not_as_they_should_be(tmp_path, statement, match):
    path = write_sqlite(tmp_path / "bad.sqlite", EMNIST, index=False)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executescript(statement)
    with pytest.raises(ValueError, match=match) as caught:
        tff(path)
    assert str(path) in str(caught.value)


def test_files_of_another_kind(tmp_path):
    whole = write_sqlite(tmp_path / "a.sqlite", EMNIST).read_bytes()
    path = tmp_path / "bad.sqlite"
    for content, match in (
        (b"", "neither an SQLite file nor an HDF5 file"),
        (b"hello", "neither an SQLite file nor an HDF5 file"),
        (whole[:100], "damaged, or of another kind"),
        (whole[: len(whole) // 2], "damaged, or of another kind"),
        (whole[:-1], "damaged, or of another kind"),
        (whole[:-4096], "damaged, or of another kind"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=match) as caught:
            tff(path)
        assert str(path) in str(caught.value)
    path = tmp_path / "bad.sqlite.lzma"
    packed = lzma.compress(whole)
    for content in (b"", b"hello", packed[: len(packed) // 2], packed[:-2]):
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"bad.sqlite.lzma: the compressed file was cut off|lzma is neither"
        ):
            tff(path)
    with pytest.raises(FileNotFoundError, match=r"absent.sqlite does not exist"):
        tff(tmp_path / "absent.sqlite")
    with pytest.raises(ValueError, match=r"holds no .h5 or .hdf5 file.*For an SQLite file, give the file"):
        tff(tmp_path)


def test_a_file_that_is_being_written(tmp_path):
    path = write_sqlite(tmp_path / "a.sqlite", EMNIST)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("DELETE FROM examples")
        connection.commit()
        with pytest.raises(ValueError, match=r"a.sqlite has unfinished changes in a.sqlite-wal"):
            tff(path)


def test_a_file_that_is_being_written_is_found_through_a_link(tmp_path):
    path, link = write_sqlite(tmp_path / "a.sqlite", EMNIST), tmp_path / "elsewhere" / "b.sqlite"
    link.parent.mkdir()
    link.symlink_to(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("DELETE FROM examples")
        connection.commit()
        with pytest.raises(ValueError, match=r"b.sqlite has unfinished changes in a.sqlite-wal"):
            tff(link)


def test_a_file_whose_writer_was_killed(tmp_path):
    path = write_sqlite(tmp_path / "a.sqlite", EMNIST)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA journal_mode=PERSIST").fetchone() == ("persist",)
        connection.execute("CREATE TABLE another (x)")
        connection.commit()
        assert (tmp_path / "a.sqlite-journal").stat().st_size
        tff(path)  # it begins with zeros: nothing is under way
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("INSERT INTO another VALUES (1)")
        with pytest.raises(ValueError, match=r"a.sqlite has unfinished changes in a.sqlite-journal"):
            tff(path)


def test_a_file_is_not_changed(tmp_path):
    path = write_sqlite(tmp_path / "odd name #%?.sqlite", EMNIST)
    path.chmod(0o444)
    before = path.read_bytes(), path.stat().st_mtime_ns
    assert tff(path).name == "odd name #%?"
    assert (path.read_bytes(), path.stat().st_mtime_ns) == before and list(tmp_path.iterdir()) == [path]


# --- lazily --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sqlite", "hdf5"])
def test_lazy_reads_the_same(tmp_path, kind):
    if kind == "sqlite":
        path = write_sqlite(tmp_path / "a.sqlite", EMNIST)
    else:
        path = tmp_path / "set"
        write_hdf5(path / "train.h5", {"f1": digits(3, 1), "f0": digits(2), "f2": digits()})
        write_hdf5(path / "test.h5", {"f0": digits(9)})
    lazy, whole = (tff(path, channel_axis="x", lazy=lazy, classes=10) for lazy in (True, False))
    assert lazy.classes == 10 and "LazyPart" in repr(lazy.train)
    for part in ("train", "test"):
        one, other = getattr(lazy, part), getattr(whole, part)
        assert one.ids.tolist() == other.ids.tolist()
        jax.tree.map(np.testing.assert_array_equal, one.in_memory.columns, other.columns)


def test_lazy_clients_train(tmp_path):
    path = write_sqlite(tmp_path / "a.sqlite", EMNIST)
    algorithm = fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=10)), optax.sgd(0.1))
    losses = []
    for lazy in (True, False):
        train = tff(path, lazy=lazy).train
        sim = fs.Simulation(algorithm, train, cohort=fs.cohorts.uniform(2), local=fs.LocalWork(batch_size=2))
        losses.append(sim.run(sim.init(seed=0), rounds=2)[1].metrics["loss"])
    np.testing.assert_array_equal(*losses)


def test_lazy_refuses(tmp_path):
    path = write_sqlite(tmp_path / "a.sqlite", EMNIST, index=False)
    with pytest.raises(ValueError, match=r"a.sqlite: the table 'examples' has no index.*CREATE INDEX"):
        tff(path, lazy=True)
    with pytest.raises(ValueError, match="test_fraction needs all examples in memory"):
        tff(path, lazy=True, test_fraction=0.5)
    with pytest.raises(ValueError, match=r"b.sqlite.lzma is compressed.*Unpack it first"):
        tff(write_sqlite(tmp_path / "b.sqlite.lzma", EMNIST), lazy=True)
    lazy = tff(write_sqlite(tmp_path / "c.sqlite", EMNIST, f1=3), lazy=True)
    with pytest.raises(ValueError, match=r"c.sqlite: client 'f1' has 2 examples .* client_metadata says 3"):
        lazy.train.client("f1")
    small = {"train": {"a": [digit(0)], "b": [example(pixels=[1.0], label=0)]}}
    lazy = tff(write_sqlite(tmp_path / "e.sqlite", small), lazy=True)
    with pytest.raises(
        ValueError, match=r"e.sqlite: client 'b' has columns .*another has .*float32\[28, 28\]"
    ):
        lazy.train.client("b")
    plays = tff(write_sqlite(tmp_path / "d.sqlite", SHAKESPEARE), lazy=True, decode={"snippets": windows})
    with pytest.raises(
        ValueError, match=r"client 'A' has int32\[5, 2\] in column 'x', expected int32\[2, 2\]"
    ):
        plays.train.select([0]).in_memory  # noqa: B018
