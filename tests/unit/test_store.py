"""Sets of tables written to disk in pieces: as the readers that hold everything, in little memory."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim import experiment
from fedjax_sim.data import Federated, decoders, huggingface, parquet, stored
from fedjax_sim.data.formats import _placed

datasets.disable_progress_bars()


@pytest.fixture(autouse=True, scope="module")
def small_pieces():
    """A row or a few at a time."""
    before, _placed.PIECE = _placed.PIECE, 40
    yield
    _placed.PIECE = before


def assert_same(found: Federated, expected: Federated) -> None:
    assert (found.name, found.classes, found.notes) == (expected.name, expected.classes, expected.notes)
    for one, other in ((found.train, expected.train), (found.test, expected.test)):
        assert one.ids.dtype == other.ids.dtype and one.ids.tolist() == other.ids.tolist()
        np.testing.assert_array_equal(one.offsets, other.offsets)
        assert list(one.columns) == list(other.columns)
        for name, column in other.columns.items():
            assert one.columns[name].dtype == column.dtype
            np.testing.assert_array_equal(one.columns[name], column)


def write(path: Path, content: pa.Table, rows: int) -> Path:
    """Parquet or Arrow, with so many rows in a group."""
    if path.suffix == ".parquet":
        pq.write_table(content, path, row_group_size=rows)
    else:
        kind = pa.ipc.new_stream if path.name.startswith("stream") else pa.ipc.new_file
        with kind(path, content.schema) as writer:
            writer.write_table(content, max_chunksize=rows)
    return path


@st.composite
def sets(draw) -> tuple[pa.Table, dict]:
    """A table, and options to read it by."""
    rows = draw(st.integers(1, 12))
    clients = draw(st.sampled_from([["bo", "ann", "a longer name"], [7, -2, 30]]))
    column = lambda values: [draw(st.sampled_from(values)) for _ in range(rows)]  # noqa: E731
    content = {
        "who": column(clients),
        "image": np.arange(rows * 4, dtype=np.int16).reshape(rows, 2, 2).tolist(),
        "label": pa.array(column([0, 1, 2, draw(st.integers(-1, 5))]), pa.int8()),
        "text": column(["to be", "or", ""]),
    }
    options: dict = {"decode": {"text": decoders.padded_words(["to", "be"], length=2)}}
    how = draw(st.sampled_from(["whole", "numbers", "names", "fraction"]))
    if how == "numbers":
        content["split"] = column([0, 1])
    elif how == "names":
        content["split"] = ["train", *column(["train", "validation", "other"])[1:]]
    elif how == "fraction":
        options |= {"test_fraction": draw(st.sampled_from([0.1, 0.5])), "seed": draw(st.integers(0, 3))}
    if draw(st.booleans()):
        options["client"] = "who"
    else:
        options["columns"] = {"x": "image", "y": "label", "words": "text"}
    if draw(st.booleans()):
        options["channel_axis"] = "x"
    if "client" in options and isinstance(clients[0], int) and draw(st.booleans()):
        options["columns"] = ["who", "image"]
        options.pop("channel_axis", None)
        options.pop("decode")
    elif "client" not in options and draw(st.booleans()):
        content.pop("who")
    return pa.table(content), options


@settings(max_examples=40, deadline=None)
@given(sets(), st.integers(1, 5), st.sampled_from(["a.parquet", "a.arrow", "stream.arrow"]))
def test_a_stored_set_is_the_one_in_memory(content_and_options, rows, name):
    content, options = content_and_options
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / name, content, rows)
        found = parquet(path, **options, store=folder + "/set")
        for column in found.train.columns.values():
            assert isinstance(column, np.memmap) or not len(column)
        assert_same(found, parquet(path, **options))
        # Made once, and then there; the checksums are true.
        assert_same(parquet(path, **options, store=folder + "/set"), found)
        assert_same(stored(folder + "/set", verify=True), found)


@settings(max_examples=15, deadline=None)
@given(sets(), st.integers(1, 5))
def test_objects_and_folders_of_the_datasets_package(content_and_options, shards):
    content, options = content_and_options
    whole = datasets.Dataset(content)
    chosen = whole.select(list(range(whole.num_rows))[::-1])
    with tempfile.TemporaryDirectory() as folder:
        assert_same(huggingface(chosen, **options, store=folder + "/a"), huggingface(chosen, **options))
        with pytest.raises(FileExistsError, match="a exists already"):
            huggingface(chosen, **options, store=folder + "/a")
        chosen.save_to_disk(folder + "/saved", num_shards=min(shards, whole.num_rows))
        found = huggingface(folder + "/saved", **options, store=folder + "/b")
        assert_same(found, huggingface(folder + "/saved", **options))


def rows(**changes) -> pa.Table:
    return pa.table({"client": ["b", "a", "b"], "x": [[1.0], [2.0], [3.0]], "y": [0, 1, 2]} | changes)


def test_files_by_part(tmp_path):
    for name, content in (
        ("train-0", rows()),
        ("train-1", rows(client=["c", "a", "c"])),
        ("test-0", rows(client=["d"] * 3)),
        ("other", rows()),
    ):
        write(tmp_path / f"{name}.parquet", content, 2)
    assert_same(parquet(tmp_path, store=tmp_path / "set"), parquet(tmp_path))
    # The stored set is no part of the folder that it was made of.
    assert_same(parquet(tmp_path, store=tmp_path / "set"), parquet(tmp_path))


def test_a_class_label_declares_the_classes(tmp_path):
    features = datasets.Features({"x": datasets.Value("int32"), "label": datasets.ClassLabel(num_classes=7)})
    whole = datasets.Dataset.from_dict({"x": [1, 2], "label": [0, 3]}, features=features)
    assert huggingface(whole, store=tmp_path / "set").classes == 7


def test_a_configuration_says_it(tmp_path):
    write(tmp_path / "a.parquet", rows(), 1)
    (tmp_path / "run.toml").write_text('[data]\nname = "parquet"\npath = "a.parquet"\nstore = "set"\n')
    for _ in range(2):
        found = experiment.load(tmp_path / "run.toml").federated
        assert_same(found, parquet(tmp_path / "a.parquet"))
    assert (tmp_path / "set" / "manifest.json").is_file()


def test_what_is_made_of_something_else_is_refused(tmp_path):
    path, store = write(tmp_path / "a.parquet", rows(), 1), tmp_path / "set"
    scaled = lambda scale: lambda values: np.asarray(values) * scale  # noqa: E731
    parquet(path, decode={"x": scaled(2)}, store=store)
    parquet(path, decode={"x": scaled(2)}, store=store)
    for options, what in (
        ({"decode": {"x": scaled(3)}}, "decode"),
        ({"decode": {"x": lambda values: np.asarray(values) * 2}}, "decode"),
        ({"decode": {"x": functools.partial(scaled(2))}}, "decode"),
        ({"decode": {"x": scaled(2)}, "test_fraction": 0.5}, "test_fraction"),
        ({"decode": {"x": scaled(2)}, "columns": ["x"]}, "columns"),
    ):
        with pytest.raises(
            ValueError, match=rf"manifest.json: the set was made of something else \({what}\)"
        ):
            parquet(path, **options, store=store)
    write(path, rows(y=[0, 0, 0]), 1)
    with pytest.raises(ValueError, match=r"something else \(files\).*name another one by store="):
        parquet(path, decode={"x": scaled(2)}, store=store)
    (tmp_path / "own").mkdir()
    with pytest.raises(FileNotFoundError, match=r"manifest.json does not exist"):
        parquet(path, store=tmp_path / "own")


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        ({"y": pa.array([0, 1, None])}, {}, r"a.parquet from row 2 on: column 'y' is null in row 0"),
        ({"client": ["a", None, "b"]}, {}, r"a.parquet from row 1 on: column 'client' is null in row 0"),
        ({"x": [[1.0], [2.0], [3.0, 4.0]]}, {}, r"what begins at row 2: column 'x' is float64\[2\], in row 0 it is float64\[1\]"),
        ({"x": ["a", "b", "c"]}, {}, "column 'x' is of type string, expected numbers"),
        ({"y": [0, 1, 2**40]}, {}, "label column 'y' holds numbers from 1099511627776"),
        ({"split": [0, 1, 2]}, {}, "column 'split' is int64.* expected .* of 0"),
        ({"split": [0, 1, 1]}, {"test_fraction": 0.5}, "there is a split already"),
        ({}, {"test_fraction": 1.5}, "test_fraction is 1.5"),
        ({}, {"client": "who"}, "no column is called 'who'"),
        ({}, {"columns": ["z"]}, "no column is called 'z'"),
        ({}, {"channel_axis": "x"}, r"column 'x' has shape \[1, 1\], expected"),
        ({}, {"decode": {"x": lambda values: [0] * 2}}, r"column 'x' has shape \[2\], expected 1 rows"),
        ({}, {"decode": {"z": len}}, "decode names 'z'"),
        ({"client": [], "x": pa.array([], pa.float32()), "y": pa.array([], pa.int32())}, {}, "there are no rows"),
        ({"mask": [1, 1, 1]}, {}, "'mask' has a reserved name"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "stream.arrow"])
def test_what_cannot_be_read_leaves_nothing(tmp_path, changes, options, match, name):
    path = write(tmp_path / name, rows(**changes), 1)
    with pytest.raises(ValueError, match=match.replace("a.parquet", name)):
        parquet(path, **options, store=tmp_path / "set")
    assert [one.name for one in tmp_path.iterdir()] == [name]


def test_shards_with_other_columns(tmp_path):
    write(tmp_path / "part-0.parquet", rows(), 1)
    write(tmp_path / "part-1.parquet", rows().drop_columns(["y"]), 1)
    with pytest.raises(
        ValueError, match=r"part-1.parquet: it has the columns client, x, .* expected the same"
    ):
        parquet(tmp_path, store=tmp_path / "set")
    assert_same(parquet(tmp_path, columns=["x"], store=tmp_path / "set"), parquet(tmp_path, columns=["x"]))


LITTLE = """
import json, resource, sys
import pyarrow as pa
pa.set_cpu_count(1), pa.set_io_thread_count(1)
from fedjax_sim.data import parquet

path, warm, store, megabytes = sys.argv[1:]
parquet(warm, store=warm + ".set" + store[-3:])  # what imports and pools take, before the limit
held = dict(line.split(":") for line in open("/proc/self/status"))["VmData"]
limit = int(held.split()[0]) * 1024 + int(megabytes) * 1_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
data = parquet(path, store=store or None)
print(json.dumps([data.train.num_examples, int(data.train.client("client 3")["x"][:, 0].sum())]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_DATA counts memory on Linux alone")
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_set_larger_than_memory(tmp_path, name):
    """160 MB by clients that take turns, in 48 MB; the reader that holds everything does not get by with them."""
    group, groups, width = 1000, 40, 1000
    schema = pa.schema({"client": pa.string(), "x": pa.list_(pa.float32(), width)})
    who = [f"client {row % 7}" for row in range(group)]
    path, expected = tmp_path / name, 0
    kind = pq.ParquetWriter if path.suffix == ".parquet" else pa.ipc.new_file
    generator = np.random.default_rng(0)
    with kind(path, schema) as writer:
        for _ in range(groups):
            x = generator.integers(256, size=(group, width)).astype(np.float32)
            expected += int(x[3::7, 0].sum())
            columns = [who, pa.FixedSizeListArray.from_arrays(x.reshape(-1), width)]
            writer.write_table(pa.table(columns, schema=schema))
    (tmp_path / "warm").mkdir()
    warm = write(tmp_path / "warm" / name, pa.table(columns, schema=schema).slice(0, 200), 100)

    def run(store: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", LITTLE, str(path), str(warm), store, "48"]
        environment = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "JAX_PLATFORMS": "cpu"}
        environment["PYTHONPATH"] = os.pathsep.join(entry for entry in sys.path if entry)
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)

    done = run(str(tmp_path / "set"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == [group * groups, expected]
    assert "alloc" in run("").stderr
