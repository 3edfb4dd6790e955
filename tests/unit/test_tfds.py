"""TensorFlow Datasets: true prepared sets, written without TensorFlow, and damaged ones."""

from __future__ import annotations

import io
import json
import shutil
import struct
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedjax_sim import experiment, partitions
from fedjax_sim.data import load, repartition, tfds
from fedjax_sim.data.formats._tfrecord import crc32c, read_tfrecord

library = pytest.importorskip("tensorflow_datasets")
pytest.importorskip("array_record", reason="ArrayRecord files are written on Linux alone")

SIZES = {"train": 10, "test": 4}


def png(pixels: np.ndarray) -> io.BytesIO:
    from PIL import Image

    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    stream.seek(0)
    return stream


def example(number: int) -> dict:
    return {
        "image": png(np.full((6, 5), number, np.uint8)),
        "label": number % 3,
        "writer": f"w{number % 4}",
        "number": number,
        "nested": {"pair": np.float32([number, 2])},
        "words": list(range(number)),
    }


def prepare(
    folder: Path,
    name: str = "toy",
    examples=example,
    sizes=SIZES,
    pair=("image", "label"),
    shards=1,
    **features,
) -> Path:
    """A set as ``download_and_prepare`` leaves it, in ArrayRecord files; returns the folder of its version."""
    f = library.features
    features = features or {
        "image": f.Image(shape=(6, 5, 1)),
        "label": f.ClassLabel(num_classes=3),
        "writer": f.Text(),
        "number": np.int64,
        "nested": {"pair": f.Tensor(shape=(2,), dtype=np.float32)},
        "words": f.Sequence(np.int64),
    }

    class Builder(library.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = library.core.Version("1.0.0")
        pkg_dir_path = code_path = None  # nothing to look for beside this file
        url_infos: ClassVar[dict] = {}

        def _info(self):
            return library.core.DatasetInfo(
                builder=self, features=f.FeaturesDict(features), supervised_keys=pair
            )

        def _split_generators(self, dl_manager):
            return {
                split: ((number, examples(number)) for number in range(size)) for split, size in sizes.items()
            }

        def _generate_examples(self):
            yield from ()

    Builder.name = name
    library.disable_progress_bar()
    builder = Builder(data_dir=str(folder), file_format="array_record")
    config = library.download.DownloadConfig(num_shards=shards)
    builder.download_and_prepare(download_config=config)
    return Path(builder.data_dir)


def as_tfrecord(folder: Path) -> None:
    """Writes the records of a prepared set again, as TFRecord files."""
    from array_record.python.array_record_module import ArrayRecordReader

    for path in folder.glob("*.array_record-*"):
        reader = ArrayRecordReader(str(path))
        records = [bytes(one) for one in reader.read(list(range(reader.num_records())))]
        reader.close()
        path.unlink()
        path.with_name(path.name.replace("array_record", "tfrecord")).write_bytes(framed(*records))
    change(folder / "dataset_info.json", lambda info: info.update(fileFormat="tfrecord"))


def framed(*records: bytes) -> bytes:
    def checksum(data: bytes) -> bytes:
        (found,) = crc32c([data])
        return struct.pack("<I", ((found >> 15 | found << 17) + 0xA282EAD8) & 0xFFFFFFFF)

    heads = [struct.pack("<Q", len(record)) for record in records]
    return b"".join(
        head + checksum(head) + record + checksum(record) for head, record in zip(heads, records, strict=True)
    )


def change(path: Path, edit) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.fixture(scope="module")
def masters(tmp_path_factory) -> dict[str, Path]:
    """The same set in both kinds of files."""
    roots = {kind: tmp_path_factory.mktemp(kind) for kind in ("array_record", "tfrecord")}
    version = prepare(roots["array_record"])
    shutil.copytree(roots["array_record"], roots["tfrecord"], dirs_exist_ok=True)
    as_tfrecord(roots["tfrecord"] / version.relative_to(roots["array_record"]))
    return roots


@pytest.fixture(params=["array_record", "tfrecord"])
def root(request, masters, tmp_path) -> Path:
    """A copy of the set that a test may damage."""
    shutil.copytree(masters[request.param], tmp_path / "sets")
    return tmp_path / "sets"


def shard(root: Path, split: str = "train") -> Path:
    (found,) = (root / "toy/1.0.0").glob(f"toy-{split}.*")
    return found


# --- what is read --------------------------------------------------------------------------------------------


def test_a_feature_says_who_owns_an_example(root):
    data = load("tfds:toy", data_dir=root, client="writer")
    assert (data.name, data.classes, data.notes) == ("toy", 3, ())
    assert data.train.ids.tolist() == data.test.ids.tolist() == ["w0", "w1", "w2", "w3"]
    assert data.train.sizes.tolist() == [3, 3, 2, 2] and data.test.sizes.tolist() == [1, 1, 1, 1]
    columns = data.train.columns
    assert columns["x"].dtype == np.uint8 and columns["x"].shape == (10, 6, 5, 1)
    assert columns["y"].dtype == np.int32
    for client in range(4):
        numbers = data.train.client(client)["x"][:, 0, 0, 0]
        assert sorted(numbers) == list(range(client, 10, 4))
        assert data.train.client(client)["y"].tolist() == (numbers % 3).tolist()
    assert "tensorflow" not in sys.modules


def test_without_a_client_one_holds_all(root):
    data = tfds("toy:1.0.0", data_dir=root)
    assert data.train.sizes.tolist() == [10] and data.test.sizes.tolist() == [4]
    assert repartition(data, partitions.iid(5)).train.sizes.tolist() == [2] * 5


def test_columns_splits_and_fractions(root):
    data = tfds("toy", data_dir=root, columns={"a": "nested/pair", "n": "number"}, train="train+test[:50%]")
    assert data.train.columns["a"].dtype == np.float32 and data.train.columns["n"].dtype == np.int64
    assert sorted(data.train.columns["n"]) == sorted([*range(10), *data.test.columns["n"][:2]])
    assert data.classes is None
    data = tfds("toy", data_dir=root, columns=["number"], client="label", test_fraction=0.4, seed=1)
    assert data.train.ids.tolist() == [0, 1, 2] and data.train.sizes.tolist() == [2, 2, 2]
    assert data.notes == ("Splits that were not read: test.",)
    labels = tfds("toy", data_dir=root, columns={"x": "image", "y": "number"})
    assert labels.train.columns["y"].dtype == np.int32 and labels.classes == 10


def test_text_is_decoded_by_a_function(root):
    decode = {"writer": lambda texts: [[ord(letter) for letter in text] for text in texts]}
    data = tfds("toy", data_dir=root, columns={"x": "writer", "y": "label"}, decode=decode)
    assert {tuple(row) for row in data.train.columns["x"].tolist()} == {(119, 48 + k) for k in range(4)}
    data = tfds(
        "toy",
        data_dir=root,
        columns={"x": "words"},
        decode={"words": lambda rows: [row.sum() for row in rows]},
    )
    assert sorted(data.train.columns["x"]) == sorted(n * (n - 1) // 2 for n in range(10))


@pytest.mark.parametrize(
    "options",
    [
        {"client": "writer"},
        {"client": "number", "columns": {"x": "nested/pair", "y": "number"}, "test_fraction": 0.3, "seed": 2},
        {"columns": ["label"], "client": "label", "test_fraction": 0.4},
        {"columns": {"x": "words"}, "decode": {"words": lambda rows: {"n": [len(r) for r in rows], "y": [1] * len(rows)}}},
        {"train": "test", "test": "train[:70%]"},
        {"train": "train[:1]+test"},
    ],
)  # fmt: skip
def test_a_stored_set_is_the_one_in_memory(root, tmp_path, options, monkeypatch):
    monkeypatch.setattr("fedjax_sim.data.formats.tfds._PIECE", 3)
    expected = tfds("toy", data_dir=root, **options)
    for _ in range(2):
        found = tfds("toy", data_dir=root, **options, store=tmp_path / "set")
        assert (found.name, found.classes, found.notes) == (expected.name, expected.classes, expected.notes)
        for one, other in ((found.train, expected.train), (found.test, expected.test)):
            assert one.ids.tolist() == other.ids.tolist() and one.sizes.tolist() == other.sizes.tolist()
            assert list(one.columns) == list(other.columns)
            for name, column in other.columns.items():
                assert one.columns[name].dtype == column.dtype
                np.testing.assert_array_equal(one.columns[name], column)
    with pytest.raises(ValueError, match=r"manifest.json: the set was made of something else \(seed\)"):
        tfds("toy", data_dir=root, **options | {"seed": 9}, store=tmp_path / "set")


def test_a_set_that_cannot_be_read_is_not_stored(root, tmp_path):
    for options, match in (
        ({"columns": ["words"]}, "expected one shape"),
        ({"train": "train[5:5]"}, r"split 'train\[5:5\]' has no example"),
        ({"decode": {"image": lambda images: [0]}}, r"column 'x' has shape \[1\]"),
    ):
        with pytest.raises(ValueError, match=match):
            tfds("toy", data_dir=root, **options, store=tmp_path / "set")
        assert not (tmp_path / "set").exists()


def test_the_folder_of_the_environment(root, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    assert tfds("toy").train.num_examples == 10


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_several_files(tmp_path, kind):
    folder = prepare(tmp_path, "many", lambda n: {"x": n}, {"train": 23}, pair=None, shards=3, x=np.int64)
    if kind == "tfrecord":
        as_tfrecord(folder)
    files = sorted(folder.glob(f"many-train.{kind}-*"))
    assert len(files) == 3
    whole = tfds("many", data_dir=tmp_path, columns="x").train.columns["x"]
    assert sorted(whole) == list(range(23))
    part = tfds("many", data_dir=tmp_path, columns="x", train="train[5:12]+train[20:]").train.columns["x"]
    assert part.tolist() == [*whole[5:12], *whole[20:]]


def test_settings_name_it(root):
    changes = [
        f"data={{name='tfds', dataset='toy', data_dir='{root}', client='writer'}}", "model=linear", "rounds=1",
        "cohort.size=2", "plots=false",
    ]  # fmt: skip
    assert experiment.load(changes=changes).federated.train.num_clients == 4


def test_features_that_the_set_does_not_pair(tmp_path):
    features = {"image": np.int64, "label": np.int64}
    prepare(tmp_path, "a", lambda n: {"image": n, "label": -n}, pair=None, **features)
    data = tfds("a", data_dir=tmp_path)
    assert data.classes is None and sorted(data.train.columns["y"]) == list(range(-9, 1))
    prepare(tmp_path, "b", lambda n: {"left": n}, sizes={"only": 3}, pair=None, left=np.int64)
    with pytest.raises(
        ValueError, match=r"names no pair of input and label, its features are left. Say which"
    ):
        tfds("b", data_dir=tmp_path)
    data = tfds("b", data_dir=tmp_path, columns="left", train="only")
    assert data.train.num_examples == 3 and data.test.sizes.tolist() == [0]


def test_configurations_and_versions(root):
    (root / "toy/1.0.0").rename(root / "moved")
    for place in (
        "sets/small/1.0.0",
        "sets/large/1.0.0",
        "sets/large/2.0.0",
        "one/only/10.0.0",
        "one/only/9.0.0",
    ):
        shutil.copytree(root / "moved", root / place)
    with pytest.raises(ValueError, match=r"of which .* has sets/large, sets/small; name one of them"):
        tfds("sets", data_dir=root)
    for older in ("sets/large/1.0.0", "one/only/9.0.0"):
        (root / older / "features.json").write_text("damaged")
    assert tfds("sets/large", data_dir=root).train.num_examples == 10
    assert tfds("sets/small:1.0.0", data_dir=root).name == "sets_small"
    assert tfds("one", data_dir=root).train.num_examples == 10  # as numbers, 10 comes after 9
    with pytest.raises(ValueError, match=r"sets/large/1.0.0/features.json: the file is no JSON"):
        tfds("sets/large:1.0.0", data_dir=root)


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"columns": ["words"]},
            r"record \d has 'words' of shape .* expected one shape. Give decode=\{'words'",
        ),
        ({"columns": {"x": "writer"}}, r"feature 'writer' is text, .* Give decode=\{'writer': function\}"),
        ({"columns": ["nested"]}, "no feature is called 'nested', the set has image, label, nested/pair"),
        ({"columns": []}, "columns is empty"),
        ({"client": "author"}, "no feature is called 'author'"),
        ({"client": "nested/pair"}, r"record 0 has 2 values of 'nested/pair', expected one"),
        ({"train": "valid"}, "split 'valid' cannot be read, the set has 'train', 'test'"),
        ({"test": "train[:70"}, r"split 'train\[:70' cannot be read"),
        ({"train": "train[5:5]"}, r"split 'train\[5:5\]' has no example"),
        ({"decode": {"z": len}}, "decode names 'z', expected one of the columns image, label"),
        ({"decode": {"image": lambda images: [0]}}, r"column 'x' has shape \[1\], expected \d+ rows"),
        ({"test": "test", "test_fraction": 0.1}, "test is 'test' and test_fraction is 0.1, expected one"),
        ({"columns": {"mask": "number"}}, "column 'mask' has a reserved name"),
    ],
)
def test_refuses(root, options, match):
    with pytest.raises(ValueError, match=match):
        tfds("toy", data_dir=root, **options)


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
