"""Sets on disk: written a client at a time, read back the same, refused when they are damaged."""

import json
import re
import subprocess
import sys
import time

import hypothesis.strategies as st
import jax
import numpy as np
import optax
import pytest
from hypothesis import given, settings

import fedjax_sim as fs
from fedjax_sim._feed import Streamed
from fedjax_sim.data import stored, write


def clients(count: int = 6, start: int = 0):
    rng = np.random.default_rng(0)
    for client in range(start, start + count):
        size = client % 4
        x = rng.integers(0, 255, (size, 2, 3)).astype(np.uint8)
        yield f"person {client}", {"x": x, "y": np.arange(size, dtype=np.int32)}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / "set", clients(), clients(4, 10), name="toy", classes=3)
    return tmp_path / "set"


def test_it_comes_back_as_it_was(folder):
    data = stored(folder, verify=True)
    assert (data.name, data.classes) == ("toy", 3)
    for part, pairs in ((data.train, clients()), (data.test, clients(4, 10))):
        pairs = dict(pairs)
        assert part.ids.tolist() == list(pairs)
        for client, columns in pairs.items():
            for name, column in columns.items():
                found = part.client(client)[name]
                np.testing.assert_array_equal(found, column)
                assert found.dtype == column.dtype and isinstance(part.columns[name], np.memmap)


def test_without_a_test_part(tmp_path):
    data = write(tmp_path / "deep" / "set", clients())
    assert data.test.num_examples == 0 and data.test.ids.tolist() == data.train.ids.tolist()


def test_it_trains_from_disk_as_from_memory(tmp_path):
    digits = fs.data.digits(clients=12).train
    on_disk = write(tmp_path / "digits", ((int(c), digits.client(int(c))) for c in range(12))).train
    states = []
    for data, stream in ((digits, False), (on_disk, True)):
        sim = fs.Simulation(
            fs.algorithms.fedavg(fs.tasks.classification(fs.models.linear(classes=10)), optax.sgd(0.1)), data,
            cohort=fs.cohorts.uniform(4), rounds_per_chunk=2, stream=stream,
        )  # fmt: skip
        states.append(sim.run(sim.init(seed=0), rounds=5)[0])
    assert isinstance(sim._feed, Streamed)
    jax.tree.map(np.testing.assert_array_equal, states[0].server, states[1].server)


def test_a_writer_that_fails_leaves_nothing(tmp_path):
    def breaks():
        yield from clients(3)
        raise RuntimeError("the source broke")

    with pytest.raises(RuntimeError, match="the source broke"):
        write(tmp_path / "set", breaks())
    assert list(tmp_path.iterdir()) == []


def test_a_writer_that_is_killed_leaves_nothing_of_that_name(tmp_path):
    folder = tmp_path / "set"
    endless = f"""
import itertools, numpy as np
from fedjax_sim.data import write
write({str(folder)!r}, ((i, {{"x": np.zeros((100, 100))}}) for i in itertools.count()))
"""
    with subprocess.Popen([sys.executable, "-c", endless]) as process:
        while not (begun := list(tmp_path.glob(".set.*/train.0.bin"))) or not begun[0].stat().st_size:
            assert process.poll() is None, "it ended before it could be killed"
            time.sleep(0.01)
        process.kill()
    assert not folder.exists()
    with pytest.raises(FileNotFoundError, match=r"manifest.json does not exist"):
        stored(folder)
    write(folder, clients())
    assert stored(folder, verify=True).train.num_clients == 6


@pytest.mark.parametrize(
    ("pairs", "match"),
    [
        ([], "train has no client"),
        ([(1, {"x": np.zeros(2)}), (1, {"x": np.zeros(1)})], "client 1 comes more than once"),
        ([(1, {"x": np.zeros(2)}), (2, {"x": np.zeros(1, int)})], r"client 2 has columns .*client 1 has .*float64"),
        ([(1, {"x": np.zeros(2), "y": np.zeros(1)})], "column 'y' of client 1 has 1 rows"),
    ],
)  # fmt: skip
def test_what_cannot_be_written(tmp_path, pairs, match):
    with pytest.raises(ValueError, match=match):
        write(tmp_path / "set", pairs)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"name": 3}, TypeError, "name is int"),
        ({"classes": "3"}, ValueError, "classes is '3'"),
        ({"classes": 0}, ValueError, "classes is 0"),
        ({"test": [(1, {"x": np.zeros((1, 2))})]}, ValueError, "client 1 has columns .* those of the training part have"),
        ({"test": [(1, {"x": np.zeros((1, 0))})], "train": [(1, {"x": np.zeros((1, 0))})]}, ValueError, r"client 1 has rows of"),
        ({"train": [(1, {"x": np.zeros(1, "V3")})]}, ValueError, "no manifest"),
    ],
)  # fmt: skip
def test_what_could_not_be_read_again_is_not_there(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        write(tmp_path / "set", **({"train": clients()} | options))
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_numpy_and_types_of_others(tmp_path):
    x = np.arange(4).astype(jax.numpy.bfloat16)
    data = write(tmp_path / "set", [(0, {"x": x})], classes=np.int64(3))
    assert data.classes == 3 and data.train.columns["x"].dtype == x.dtype
    np.testing.assert_array_equal(data.train.columns["x"], x)


def test_others_may_read_it_as_they_may_read_any_folder(folder, tmp_path):
    (tmp_path / "usual").mkdir()
    assert folder.stat().st_mode == (tmp_path / "usual").stat().st_mode


def test_nothing_is_overwritten(folder):
    with pytest.raises(FileExistsError, match="exists already and is not overwritten"):
        write(folder, clients())


def test_the_second_of_two_writers_is_told_so(tmp_path):
    def while_another_writes():
        yield from clients(3)
        write(tmp_path / "set", clients(2))

    with pytest.raises(FileExistsError, match="exists already and is not overwritten"):
        write(tmp_path / "set", while_another_writes())
    assert stored(tmp_path / "set").train.num_clients == 2 and len(list(tmp_path.iterdir())) == 1


def test_a_link_to_nowhere_is_seen_before_anything_is_written(tmp_path):
    (tmp_path / "set").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="exists already"):
        write(tmp_path / "set", iter(lambda: pytest.fail("a client was asked for"), None))


@pytest.mark.parametrize("shape", ["2", ["2"], [2.0], [1] * 100, None])
def test_a_shape_that_is_none_is_refused_by_name(folder, shape):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["parts"]["train"]["columns"]["x"]["shape"] = shape
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))}: this is no manifest"):
        stored(folder)


def test_a_manifest_has_a_checksum_of_its_own(folder):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    before = stored(folder)
    del manifest["crc32"]
    path.write_text(json.dumps(manifest))  # as it was written before there was one
    assert stored(folder).train.ids.tolist() == before.train.ids.tolist()
    manifest = json.loads(path.read_text()) | {"crc32": 1}
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest.json: this is no manifest .*checksum"):
        stored(folder)


@pytest.mark.parametrize("entry", ["ids", "offsets", "y"])
def test_another_type_in_the_manifest_is_seen(folder, entry):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    about = manifest["parts"]["train"]
    about = about["columns"][entry] if entry == "y" else about[entry]
    about["dtype"] = about["dtype"].replace("<", ">")
    path.write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"manifest.json: this is no manifest .*checksum"):
        stored(folder)


def test_damage_is_named(folder):
    path = folder / "train.0.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"train.0.bin has \d+ bytes, the manifest says .*cut off"):
        stored(folder)
    path.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    stored(folder)
    with pytest.raises(ValueError, match=r"train.0.bin is damaged: its checksum"):
        stored(folder, verify=True)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"train.0.bin does not exist"):
        stored(folder)


def test_a_path_that_is_no_set(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"manifest.json does not exist"):
        stored(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"manifest.json does not exist"):
        stored(tmp_path)


VALUES = st.one_of(
    st.none(), st.integers(-(2**40), 2**40), st.text(max_size=5), st.lists(st.integers(-2, 3), max_size=2)
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_hostile_manifests_are_refused(tmp_path_factory, data):
    """Any value of the manifest replaced by any other: a clear error, or the same set; never anything else."""
    base = tmp_path_factory.getbasetemp() / "hostile"
    if not base.exists():
        write(base, clients(), name="toy", classes=3)
    path = base / "manifest.json"
    kept = path.read_text()
    try:
        manifest = json.loads(kept)
        node, keys = manifest, []
        while isinstance(node, dict):
            keys.append(data.draw(st.sampled_from(sorted(node))))
            node = node[keys[-1]]
        target = manifest
        for key in keys[:-1]:
            target = target[key]
        if data.draw(st.booleans()):
            del target[keys[-1]]
        else:
            target[keys[-1]] = data.draw(VALUES)
        path.write_text(json.dumps(manifest))
        try:
            found = stored(base, verify=True)
        except (ValueError, TypeError, FileNotFoundError, IsADirectoryError) as error:
            assert str(base) in str(error)
        else:
            assert found.train.num_clients == 6
            assert keys == ["crc32"] or manifest == json.loads(kept)
    finally:
        path.write_text(kept)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_changed_bytes_are_refused(tmp_path_factory, data):
    """Any bytes of any file, or its length: an error that names the file. Columns need ``verify``, ids and offsets do not."""
    base = tmp_path_factory.getbasetemp() / "changed"
    if not base.exists():
        write(base, clients(), clients(4, 10), name="toy", classes=3)
    path = data.draw(st.sampled_from(sorted(base.glob("*.bin"))))
    kept = path.read_bytes()
    start = data.draw(st.integers(0, len(kept)))
    stop = data.draw(st.integers(start, min(len(kept), start + 9)))
    new = kept[:start] + data.draw(st.binary(max_size=9)) + kept[stop:]
    try:
        path.write_bytes(new)
        is_column = path.name.split(".")[1] not in ("ids", "offsets")
        if new == kept:
            stored(base, verify=True)
            return
        with pytest.raises(ValueError, match=re.escape(str(path))):
            stored(base, verify=is_column)
        if is_column and len(new) == len(kept):
            assert stored(base).train.sizes.sum() == sum(len(columns["y"]) for _, columns in clients())
    finally:
        path.write_bytes(kept)
