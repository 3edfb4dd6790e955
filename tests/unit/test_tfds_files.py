"""Files of TensorFlow Datasets: missing, damaged, of another kind, and their checksums."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit.tfds_sets import both_kinds, change, framed, library, prepare, shard

from fedjax_sim.data import tfds
from fedjax_sim.data.formats._tfrecord import crc32c, read_tfrecord


@pytest.fixture(scope="module")
def masters(tmp_path_factory) -> dict[str, Path]:
    return both_kinds(tmp_path_factory.mktemp("sets"))


@pytest.fixture(params=["array_record", "tfrecord"])
def root(request, masters, tmp_path) -> Path:
    """A copy of the set that a test may damage."""
    shutil.copytree(masters[request.param], tmp_path / "sets")
    return tmp_path / "sets"


def test_what_is_not_prepared(root, tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"holds no prepared data set 'mnist' .*download_and_prepare\(\)"
    ):
        tfds("mnist", data_dir=root)
    with pytest.raises(FileNotFoundError, match=r"'toy:2.0.0'.*then give data_dir=, or set TFDS_DATA_DIR"):
        tfds("toy:2.0.0", data_dir=root)
    with pytest.raises(FileNotFoundError, match="holds no prepared data set"):
        tfds("toy", data_dir=tmp_path / "absent")
    for name in ("", "../toy", "toy/..", "/etc", "toy:latest", "toy//x", "."):
        with pytest.raises(ValueError, match=r"dataset is .* expected a name such as"):
            tfds(name, data_dir=root)


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"name": 5}', b"\xff\xfe", b"[" * 100_000])
def test_damaged_metadata(root, name, content):
    (root / "toy/1.0.0" / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"toy/1.0.0"):
        tfds("toy", data_dir=root)


def test_missing_files(root):
    folder = root / "toy/1.0.0"
    (folder / "features.json").rename(folder / "kept")
    with pytest.raises(FileNotFoundError, match=r"features.json does not exist"):
        tfds("toy", data_dir=root)
    (folder / "kept").rename(folder / "features.json")
    shard(root).unlink()
    with pytest.raises(FileNotFoundError, match=r"toy-train.*does not exist, expected a file"):
        tfds("toy", data_dir=root)
    (folder / "dataset_info.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"holds no prepared data set 'toy'"):
        tfds("toy", data_dir=root)


def as_legacy(content: dict) -> None:
    """The whole description as JSON inside of text."""
    inner = json.dumps(content).replace("tensorflow_datasets.core.features.text_feature.Text", "evil.Text")
    content.clear()
    content.update(type="tensorflow_datasets.core.features.features_dict.FeaturesDict", content=inner)


@pytest.mark.parametrize(
    "edit",
    [
        lambda content: content["featuresDict"]["features"]["writer"].update(pythonClassName="evil.Text"),
        lambda content: content["featuresDict"]["features"]["writer"].update(python_class_name="evil.Text"),
        lambda content: content.update(type="evil.Text", content="{}"),
        as_legacy,
    ],
)
def test_no_module_that_a_file_names_is_imported(root, edit, monkeypatch):
    (root / "evil.py").write_text("raise SystemExit('code of a data set ran')")
    monkeypatch.syspath_prepend(root)
    change(root / "toy/1.0.0/features.json", edit)
    with pytest.raises(
        ValueError, match=r"features.json: a feature is of the class 'evil.Text', expected one of"
    ):
        tfds("toy", data_dir=root)


@pytest.mark.parametrize("wrong", ["9", "11"])
def test_numbers_of_records_are_compared(root, wrong):
    info = root / "toy/1.0.0/dataset_info.json"
    change(info, lambda content: content["splits"][0].update(shardLengths=[wrong]))
    with pytest.raises(ValueError, match=rf"the file holds 10 records, dataset_info.json says {wrong}"):
        tfds("toy", data_dir=root)


def test_files_of_other_folders_are_not_read(root):
    shutil.copy(shard(root), root / "toy")
    change(root / "toy/1.0.0/dataset_info.json", lambda info: info.update(name="../toy"))
    with pytest.raises(ValueError, match=r"toy/1.0.0"):
        tfds("toy", data_dir=root)


def test_formats_that_are_not_read(root):
    change(root / "toy/1.0.0/dataset_info.json", lambda info: info.update(fileFormat="riegeli"))
    (root / "toy/1.0.0/toy-train.riegeli-00000-of-00001").touch()
    with pytest.raises(
        ValueError, match=r"format 'riegeli', expected one of array_record, tfrecord. Prepare it"
    ):
        tfds("toy", data_dir=root)


@pytest.mark.parametrize("cut", [0, 1, 11, 13, 100, -1, -4, -5])
def test_a_shard_that_was_cut_off(root, cut):
    path = shard(root)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(ValueError, match=rf"{path.name}: "):
        tfds("toy", data_dir=root)


def test_a_shard_that_was_cut_off_between_records(masters, tmp_path):
    shutil.copytree(masters["tfrecord"], tmp_path / "sets")
    path = shard(tmp_path / "sets")
    path.write_bytes(framed(*read_tfrecord(path)[:-1]))
    with pytest.raises(ValueError, match=r"the file holds 9 records, dataset_info.json says 10"):
        tfds("toy", data_dir=tmp_path / "sets")


@pytest.mark.parametrize(
    ("record", "match"),
    [
        (b"", "record 0 is no example of the features that the set declares"),
        (b"\xff" * 20, "record 0 is no example of the features"),
        (None, r"record 0 is no example .*: feature 'writer' is missing|record 0 is no example"),
    ],
)
def test_records_that_are_no_examples(masters, tmp_path, record, match):
    shutil.copytree(masters["tfrecord"], tmp_path / "sets")
    path = shard(tmp_path / "sets")
    records = read_tfrecord(path)
    other = records[0].replace(b"writer", b"xriter") if record is None else record
    path.write_bytes(framed(other, *records[1:]))
    with pytest.raises(ValueError, match=rf"{path.name}: {match}"):
        tfds("toy", data_dir=tmp_path / "sets", client="writer")


def test_clients_without_a_name_and_labels_that_are_withheld(tmp_path):
    f = library.features
    features = {"x": np.int64, "y": f.ClassLabel(num_classes=3), "who": f.Text()}

    def one(number):
        return {"x": number, "y": -1 if number == 2 else 0, "who": "" if number == 1 else "ann"}

    prepare(tmp_path, "a", one, pair=("x", "y"), **features)
    with pytest.raises(ValueError, match=r"record \d has an empty 'who', expected the id of a client"):
        tfds("a", data_dir=tmp_path, client="who")
    with pytest.raises(
        ValueError, match=r"feature 'y' holds -1, expected 0 to 2. Where a split's labels are with"
    ):
        tfds("a", data_dir=tmp_path)
    prepare(tmp_path, "b", lambda n: {"x": n, "who": n / 2}, pair=None, x=np.int64, who=np.float32)
    with pytest.raises(
        ValueError, match=r"feature 'who' holds values of type float, expected all int or all str"
    ):
        tfds("b", data_dir=tmp_path, columns="x", client="who")


# --- bytes ---------------------------------------------------------------------------------------------------


def test_checksums_of_the_standard():
    """RFC 3720, appendix B.4, and the customary check value."""
    vectors = [b"123456789", bytes(32), b"\xff" * 32, bytes(range(32)), bytes(range(32))[::-1], b""]
    assert crc32c(vectors) == [0xE3069283, 0x8A9136AA, 0x62A8AB43, 0x46DD794E, 0x113FDB5C, 0]


@settings(max_examples=30, deadline=None)
@given(data=st.binary(max_size=1200), at=st.integers(0, 1200))
def test_checksums_do_not_depend_on_neighbours(data, at):
    remainder = 0xFFFFFFFF
    for byte in data:
        remainder ^= byte
        for _ in range(8):
            remainder = remainder >> 1 ^ (0x82F63B78 if remainder & 1 else 0)
    assert crc32c([data[:at], data, b"abc"])[1] == remainder ^ 0xFFFFFFFF


def test_a_file_that_tensorflow_wrote(tmp_path):
    """Two records, b"" and b"abc", by ``tf.io.TFRecordWriter`` of TensorFlow 2.21."""
    written = "000000000000000029039807d8ea82a20300000000000000b099490e6162636e57f121"
    (tmp_path / "a").write_bytes(bytes.fromhex(written))
    assert read_tfrecord(tmp_path / "a") == [b"", b"abc"]
    assert framed(b"", b"abc").hex() == written


def test_batches_of_checksums_cover_all_records(tmp_path, monkeypatch):
    from fedjax_sim.data.formats import _tfrecord

    monkeypatch.setattr(_tfrecord, "_BATCH", 100)
    records = [bytes([number]) * 30 for number in range(11)]
    content = bytearray(framed(*records))
    (tmp_path / "a").write_bytes(content)
    assert read_tfrecord(tmp_path / "a") == records
    content[-5] ^= 1
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match="record 10 is damaged"):
        read_tfrecord(tmp_path / "a")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_shard_is_read_whole_or_refused(masters, tmp_path_factory, data):
    kind = data.draw(st.sampled_from(["array_record", "tfrecord"]))
    root = tmp_path_factory.getbasetemp() / f"fuzzed_{kind}"
    if not root.exists():
        shutil.copytree(masters[kind], root)
    good = shard(masters[kind]).read_bytes()
    content = bytearray(good)
    used = len(good.rstrip(b"\0"))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, used - 1))] ^= data.draw(st.integers(1, 255))
    content = content[: data.draw(st.just(len(content)) | st.integers(0, len(content)))]
    path = shard(root)
    path.write_bytes(content)
    try:
        found = tfds("toy", data_dir=root, columns=["number", "image"], client="writer")
    except ValueError as error:
        assert path.name in str(error)
    else:
        assert sorted(found.train.columns["number"]) == list(range(10))
        assert (found.train.columns["image"][:, 0, 0, 0] == found.train.columns["number"]).all()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_metadata_are_understood_or_refused(masters, tmp_path_factory, data):
    root = tmp_path_factory.getbasetemp() / "fuzzed_metadata"
    shutil.rmtree(root, ignore_errors=True)
    shutil.copytree(masters["tfrecord"], root)
    path = root / "toy/1.0.0" / data.draw(st.sampled_from(["features.json", "dataset_info.json"]))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 2))):
        at, byte = (
            data.draw(st.integers(0, len(content) - 1)),
            data.draw(st.integers(0, 255) | st.sampled_from(b'0129{}[]",:./x')),
        )
        content[at] = byte
    path.write_bytes(content)
    try:
        found = tfds("toy", data_dir=root, client="writer")
    except (ValueError, FileNotFoundError) as error:
        assert "toy/1.0.0" in str(error)
    else:
        assert found.train.num_examples == 10
