import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedjax_sim.data import arrays, load, parquet, repartition
from fedjax_sim.data.partitions import iid


def table(**changes) -> pa.Table:
    columns = {
        "client": ["bo", "ann", "bo", "cy"],
        "x": pa.FixedSizeListArray.from_arrays(np.arange(8, dtype=np.float32), 2),
        "y": pa.array([0, 1, 2, 1], pa.uint8()),
    }
    return pa.table({name: column for name, column in (columns | changes).items() if column is not None})


def write(path: Path, content: pa.Table, **options) -> Path:
    """Parquet, an Arrow file, or for ``.stream.arrow`` an Arrow stream."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(content, path, **options)
    else:
        kind = pa.ipc.new_stream if path.name.endswith(".stream.arrow") else pa.ipc.new_file
        with kind(path, content.schema) as writer:
            writer.write_table(content, **options)
    return path


KINDS = ["toy.parquet", "toy.arrow", "toy.feather", "toy.stream.arrow"]


@pytest.mark.parametrize("name", KINDS)
def test_a_file_is_training_data(tmp_path, name):
    path = write(tmp_path / name, table())
    for data in (parquet(path), load(f"parquet:{path}", client="client")):
        assert (data.name, data.classes, data.notes) == (path.stem, 3, ())
        assert data.train.ids.tolist() == data.test.ids.tolist() == ["ann", "bo", "cy"]
        assert data.train.sizes.tolist() == [1, 2, 1] and data.test.num_examples == 0
        assert data.train.client("bo")["x"].tolist() == [[0, 1], [4, 5]]
        assert data.train.columns["x"].dtype == np.float32 and data.train.columns["y"].dtype == np.int32


@pytest.mark.parametrize(
    "values",
    [
        np.array([[1.5, 2], [3, 4], [5, 6], [7, 8]], np.float64),
        np.arange(24, dtype=np.uint8).reshape(4, 2, 3),
        np.array([True, False, True, True]),
        np.array([1, -2, 3, -4], np.int16),
        np.array([1, 2, 3, 4], np.float16),
    ],
    ids=lambda values: f"{values.dtype}{values.ndim}",
)
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_arrays_come_back_as_they_were(tmp_path, values, batch):
    def nested(axes):
        return pa.from_numpy_dtype(values.dtype) if axes == 1 else pa.list_(nested(axes - 1))

    column = pa.array(values.tolist() if values.ndim > 1 else list(values), nested(values.ndim))
    content = table(client=[0, 0, 0, 0], x=column)
    for path in (
        write(tmp_path / "a.parquet", content, row_group_size=batch),
        write(tmp_path / "a.arrow", content, max_chunksize=batch),
    ):
        found = parquet(path).train.columns["x"]
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)


def test_tensors_and_dictionaries(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
    content = table(
        client=pa.array(["bo", "ann", "bo", "cy"]).dictionary_encode(),
        x=pa.FixedShapeTensorArray.from_numpy_ndarray(x),
        y=pa.array([0, 1, 2, 1]).dictionary_encode(),
    )
    data = parquet(write(tmp_path / "a.arrow", content))
    assert data.train.sizes.tolist() == [1, 2, 1] and data.train.columns["y"].tolist() == [1, 0, 2, 1]
    np.testing.assert_array_equal(data.train.client("bo")["x"], x[[0, 2]])


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (pa.array([7, 5, 7, 9], pa.int8()), [5, 7, 9]),
        (pa.array(["b", "a", "b", "ü"], pa.large_string()), ["a", "b", "ü"]),
        (pa.array([b"b", b"a", b"b", b"c"]), ["a", "b", "c"]),
        (pa.array([2**63 + 1, 0, 1, 1], pa.uint64()), [0, 1, 2**63 + 1]),
    ],
)
def test_ids(tmp_path, ids, expected):
    assert parquet(write(tmp_path / "a.parquet", table(client=ids))).train.ids.tolist() == expected


def test_without_a_client_column_one_client_holds_all(tmp_path):
    data = parquet(write(tmp_path / "a.parquet", table(client=None)))
    assert data.train.sizes.tolist() == [4] and "one client holds all" in data.notes[0]
    assert repartition(data, iid(2)).train.sizes.tolist() == [2, 2]


# --- parts ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "split", [[0, 1, 0, 0], [False, True, False, False], ["train", "test", "train", "train"]]
)
def test_a_split_column(tmp_path, split):
    data = parquet(write(tmp_path / "a.parquet", table(split=split)))
    assert data.train.sizes.tolist() == [0, 2, 1] and data.test.sizes.tolist() == [1, 0, 0]
    assert list(data.train.columns) == ["x", "y"]


def test_parts_of_a_split_column_are_chosen(tmp_path):
    path = write(tmp_path / "a.parquet", table(part=["fit", "validation", "fit", "odd"]))
    data = parquet(path, split="part", train="fit")
    assert data.train.num_examples == 2 and data.test.num_examples == 1
    assert data.notes == ("part 'odd' is left out",)
    assert parquet(path, split="part", train="fit", test="odd").notes == ("part 'validation' is left out",)
    with pytest.raises(
        ValueError, match=r"a.parquet: column 'part': no part is called 'train', there are 'fit', "
    ):
        parquet(path, split="part")
    with pytest.raises(ValueError, match=r"no part is called 'b'.*Name one by test=."):
        parquet(path, split="part", train="fit", test="b")


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet"],
        ["train/0.parquet", "train/1.arrow", "test/0.parquet"],
        ["train_2.parquet", "train_3.parquet", "validation.parquet"],
        ["data/train/more/x.parquet", "data/train0.parquet", "other/test.parquet"],
    ],
)
def test_a_folder_with_parts(tmp_path, names):
    for place, name in enumerate(names):
        write(tmp_path / "set" / name, table(y=[place] * 4))
    write(tmp_path / "set" / "README.txt" / "._x.parquet", table())
    data = parquet(tmp_path / "set")
    assert data.name == "set" and data.notes == ()
    assert data.train.columns["y"].tolist() == [0, 1, 0, 0, 1, 1, 0, 1]
    assert data.test.columns["y"].tolist() == [2] * 4


def test_a_folder_without_parts_is_training_data(tmp_path):
    for name in ("b_10.parquet", "a.parquet", "b_2.arrow", "training.parquet"):
        write(tmp_path / name, table(client=[name] * 4))
    data = parquet(tmp_path)
    assert data.train.num_clients == 4 and data.test.num_examples == 0


@pytest.mark.parametrize("name", ["toy.pq", "TOY.PARQUET", "all.parquet/part-0.parquet"])
def test_other_names_of_parquet_files(tmp_path, name):
    path = tmp_path / "set" / name
    write(tmp_path / "toy.parquet", table())
    path.parent.mkdir(parents=True)
    (tmp_path / "toy.parquet").rename(path)
    assert parquet(path).train.num_examples == parquet(tmp_path / "set").train.num_examples == 4


def test_links_to_folders_are_followed(tmp_path):
    write(tmp_path / "elsewhere" / "b.parquet", table())
    write(tmp_path / "set" / "a.parquet", table())
    link = tmp_path / "set" / "more"
    link.symlink_to(tmp_path / "elsewhere")
    assert parquet(tmp_path / "set").train.num_examples == 8
    link.unlink()
    link.symlink_to(tmp_path / "set")  # for ever
    with pytest.raises(ValueError, match="one folder, whose examples would count twice"):
        parquet(tmp_path / "set")


def test_a_folder_that_cannot_be_read_is_no_empty_one(tmp_path, monkeypatch):
    write(tmp_path / "a.parquet", table())
    closed = tmp_path / "closed"
    closed.mkdir()
    scan = os.scandir

    def refuses(place):
        if Path(place) == closed:
            raise PermissionError(13, "Permission denied", str(place))
        return scan(place)

    monkeypatch.setattr(os, "scandir", refuses)  # whoever runs the tests may read everything
    with pytest.raises(PermissionError, match="closed"):
        parquet(tmp_path)


def test_other_parts_of_a_folder_are_noted(tmp_path):
    for name in ("train-0.parquet", "test-0.parquet", "validation-0.parquet", "extra.parquet"):
        write(tmp_path / name, table())
    assert parquet(tmp_path).notes == ("part 'extra' is left out", "part 'validation' is left out")


def test_a_name_between_two_parts(tmp_path):
    for name in ("train.parquet", "test_matched.parquet", "test_mismatched.parquet"):
        write(tmp_path / name, table())
    with pytest.raises(
        ValueError, match=r"test_matched.parquet may be of the part 'test' or of one called 'test_matched'"
    ):
        parquet(tmp_path)
    assert parquet(tmp_path, test="test_matched").notes == ("part 'test_mismatched' is left out",)


def test_parts_that_do_not_fit(tmp_path):
    with pytest.raises(ValueError, match=r"holds no file .parquet, .pq, .arrow, .feather"):
        parquet(tmp_path)
    write(tmp_path / "test.parquet", table())
    with pytest.raises(ValueError, match=r"no part is called 'train', there are 'test'"):
        parquet(tmp_path)
    train = write(tmp_path / "train.parquet", table(y=pa.array([0.5] * 4)))
    with pytest.raises(
        ValueError, match=r"train.parquet: column 'y' is float64\[\], in .*test.parquet it is uint8"
    ):
        parquet(tmp_path)
    write(train, table(z=[1] * 4))
    with pytest.raises(
        ValueError,
        match=r"train.parquet: it has the columns client, x, y, z, .*test.parquet has client, x, y; ",
    ):
        parquet(tmp_path)
    with pytest.raises(ValueError, match=r"test.parquet: no column is called 'z', the file has client, x, y"):
        parquet(tmp_path, columns=["x", "z"])
    assert parquet(tmp_path, columns=["x"]).train.num_examples == 4
    write(train, table(client=[1] * 4))
    with pytest.raises(
        ValueError, match=r"train.parquet: column 'client' is int64\[\], in .*test.parquet it is <U3"
    ):
        parquet(tmp_path)
    write(train, table())
    with pytest.raises(ValueError, match="there is a split already, expected no test_fraction"):
        parquet(tmp_path, test_fraction=0.5)
    for name in ("train.parquet", "test.parquet"):
        write(tmp_path / name, table(split=[0] * 4))
    with pytest.raises(
        ValueError, match=r"column 'split' divides rows that files divide already.*Set split=None"
    ):
        parquet(tmp_path)
    assert parquet(tmp_path, split=None).train.columns.keys() == {"x", "y", "split"}
    write(tmp_path / "shards/train-00001-of-00003.parquet", table())
    with pytest.raises(ValueError, match=r"shards/train-00000-of-00003 is missing, expected all 3 files"):
        parquet(tmp_path / "shards")


def test_a_fraction_inside_each_client(tmp_path):
    path = write(tmp_path / "a.parquet", table(client=["a", "a", "b", "b"]))
    data = parquet(path, test_fraction=0.5, seed=3)
    assert data.train.sizes.tolist() == data.test.sizes.tolist() == [1, 1]


# --- columns -------------------------------------------------------------------------------------------------


def test_columns_are_chosen_and_renamed(tmp_path):
    path = write(tmp_path / "a.parquet", table(text=list("abcd"), image=[[1.0]] * 4))
    assert list(parquet(path, columns=["x"]).train.columns) == ["x"]
    assert list(parquet(path, columns={"image": "x", "y": "y"}).train.columns) == ["image", "y"]
    with pytest.raises(
        ValueError, match=r"a.parquet: no column is called 'z', the file has client, x, y, text, image"
    ):
        parquet(path, columns=["z"])


def test_usual_names(tmp_path):
    path = write(tmp_path / "a.parquet", table(x=None, y=None, image=[[1.0]] * 4, label=[3, 1, 0, 0]))
    data = parquet(path)
    assert list(data.train.columns) == ["x", "y"] and data.classes == 4
    both = write(tmp_path / "b.parquet", table(label=[3, 1, 0, 0]))
    assert list(parquet(both).train.columns) == ["x", "y", "label"]


def test_the_index_of_pandas_is_left_out(tmp_path):
    path = write(tmp_path / "a.parquet", table(__index_level_0__=[4, 5, 6, 7]))
    assert list(parquet(path).train.columns) == ["x", "y"]


def test_decode(tmp_path):
    path = write(tmp_path / "a.parquet", table(text=["a", "bcd", "", "xy"]))
    data = parquet(path, decode={"text": lambda texts: np.array([len(text) for text in texts])})
    assert data.train.columns["text"].tolist() == [3, 1, 0, 2]

    def two(texts):
        return {"length": [len(text) for text in texts], "empty": [not text for text in texts]}

    data = parquet(path, columns=["y", "text"], decode={"text": two})
    assert list(data.train.columns) == ["y", "length", "empty"]
    with pytest.raises(ValueError, match="decode names 'words', expected one of the columns x, y, text"):
        parquet(path, decode={"words": two})
    with pytest.raises(ValueError, match=r"column 'text' has shape \[1\], expected 4 rows"):
        parquet(path, decode={"text": lambda texts: [1]})
    with pytest.raises(ValueError, match="decode makes a second column 'y'"):
        parquet(path, decode={"text": lambda texts: {"y": [1] * 4}})


def encoded(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    from PIL import Image

    stream = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(stream, kind)
    return stream.getvalue()


def images(*content: bytes | None) -> pa.Array:
    return pa.array(
        [{"bytes": raw, "path": None} for raw in content],
        pa.struct({"bytes": pa.binary(), "path": pa.string()}),
    )


def test_images_are_decoded(tmp_path):
    grey = np.random.default_rng(0).integers(256, size=(4, 5, 3), dtype=np.uint8)
    path = write(tmp_path / "a.parquet", table(x=None, image=images(*map(encoded, grey))))
    np.testing.assert_array_equal(parquet(path).train.columns["x"], grey[[1, 0, 2, 3]])
    assert parquet(path, channel_axis="x").train.columns["x"].shape == (4, 5, 3, 1)
    colour = np.random.default_rng(0).integers(256, size=(4, 5, 3), dtype=np.uint8)
    for options, dtype, shape in (
        ({}, np.uint8, (4, 5, 3)),
        ({"kind": "JPEG"}, np.uint8, (4, 5, 3)),
        ({"mode": "P"}, np.uint8, (4, 5, 3)),
        ({"mode": "1"}, np.uint8, (4, 5)),
        ({"mode": "RGBA"}, np.uint8, (4, 5, 4)),
    ):
        write(path, table(x=None, image=images(*[encoded(colour, **options)] * 4)))
        found = parquet(path).train.columns["x"]
        assert (found.dtype, found.shape[1:]) == (dtype, shape)


def test_images_that_cannot_be_read(tmp_path):
    good, other = (encoded(np.zeros((size, 5), np.uint8)) for size in (4, 6))
    for bad, match in (
        (other, r"column 'image' holds images of shape \[6, 5\] \(row 2\) and \[4, 5\]"),
        (good[:40], "column 'image' holds no image that can be read in row 2"),
        (b"%!PS-Adobe", "column 'image' holds no image that can be read in row 2"),
        (None, "column 'image' names a file in row 2, expected the image itself"),
    ):
        path = write(tmp_path / "a.parquet", table(image=images(good, good, bad, good)), row_group_size=1)
        with pytest.raises(ValueError, match=match) as caught:
            parquet(path)
        assert str(path) in str(caught.value)


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "match"),
    [
        ({}, {"client": "writer"}, "no column is called 'writer', the file has client, x, y"),
        ({}, {"split": "fold"}, "no column is called 'fold'"),
        ({"client": ["a", None, "b", "c"]}, {}, "column 'client' is null in row 1"),
        ({"client": pa.array([1, 2, 3, None])}, {}, "column 'client' is null in row 3"),
        ({"client": pa.nulls(4)}, {}, "column 'client' is null in row 0"),
        ({"client": [0.5] * 4}, {}, "column 'client' is of type double, expected text or integers"),
        ({"client": [b"\xff"] * 4}, {}, "UTF8"),
        ({"client": ["a", "a\0", "b", "b"]}, {}, r"holds 'a\\x00', which ends with a zero byte"),
        (
            {"split": [0, 1, 2, 0]},
            {},
            r"column 'split' is int64\[4\] with values \[0, 1, 2\], expected \[4\] of 0",
        ),
        ({"split": [0, 1, None, 0]}, {}, "column 'split' is null in row 2"),
        ({"y": pa.array([0, None, 1, 1])}, {}, "column 'y' is null in row 1"),
        ({"y": [2**40] * 4}, {}, "label column 'y' holds numbers from 1099511627776"),
        ({"x": [[1.0], None, [2.0], [3.0]]}, {}, "column 'x' is null in row 1"),
        ({"x": [[1.0], [None], [2.0], [3.0]]}, {}, "column 'x' holds a null inside a list"),
        (
            {"x": [[1.0], [], [2.0], [3.0]]},
            {},
            r"arrays of several shapes, such as \[0\] and \[1\].*Pad them, or choose",
        ),
        ({"x": [[[1.0]], [[1.0, 2.0]], [[2.0]], [[3.0]]]}, {}, "column 'x' holds arrays of several shapes"),
        ({"x": list("abcd")}, {}, r"'x' is of type string, expected numbers: .*decode=\{'x': function\}"),
        ({"x": [b"a"] * 4}, {}, "'x' is of type binary, expected numbers"),
        ({"x": [{"a": 1}] * 4}, {}, "'x' is of type struct<a: int64>, expected numbers"),
        ({"x": pa.array([1, 2, 3, 4], pa.timestamp("ms"))}, {}, r"'x' is of type timestamp\[ms\]"),
        ({}, {"test": "dev"}, "test is 'dev', but neither names of files nor a column tell parts"),
        ({}, {"channel_axis": "x"}, r"column 'x' has shape \[4, 2\], expected \[examples, height, width\]"),
        ({"mask": [1] * 4}, {}, "'mask' has a reserved name"),
    ],
)
@pytest.mark.parametrize("name", ["bad.parquet", "bad.arrow"])
def test_what_cannot_be_read_is_named(tmp_path, name, changes, options, match):
    path = write(tmp_path / name, table(**changes))
    with pytest.raises(ValueError, match=match) as caught:
        parquet(path, **options)
    assert str(path) in str(caught.value)


def test_no_rows(tmp_path):
    path = write(tmp_path / "a.parquet", table()[:0])
    with pytest.raises(ValueError, match=r"a.parquet: there are no rows, expected at least one example"):
        parquet(path)
    write(tmp_path / "b.parquet", table())
    assert parquet(tmp_path).train.num_examples == 4


def test_a_column_that_is_there_twice(tmp_path):
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2]), pa.array([3])], ["client", "x", "x"])
    with pytest.raises(ValueError, match=r"a.arrow is no readable Arrow file .*: column 'x' is there twice"):
        parquet(write(tmp_path / "a.arrow", twice))


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_named(tmp_path, name):
    path = write(tmp_path / name, table())
    whole = path.read_bytes()
    for damaged in (b"", b"hello", whole[:100], whole[: len(whole) // 2], whole[:-1], whole[:-8]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{name} is no readable (Parquet|Arrow) file \(truncated"):
            parquet(path)


def test_a_stream_that_was_cut_between_batches(tmp_path):
    path = write(tmp_path / "a.stream.arrow", table(), max_chunksize=1)
    one = write(tmp_path / "b.stream.arrow", table()[:1]).read_bytes()
    path.write_bytes(one[:-8])  # a whole batch, without the mark of the end
    with pytest.raises(ValueError, match="the mark of the end is missing"):
        parquet(path)
    path.write_bytes(one + one)
    with pytest.raises(ValueError, match="it goes on after the end"):
        parquet(path)


def test_paths_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent.parquet does not exist"):
        parquet(tmp_path / "absent.parquet")


# --- arrays --------------------------------------------------------------------------------------------------


def test_arrays():
    x, y = np.arange(8).reshape(4, 2), np.array([0, 3, 1, 1])
    data = arrays({"x": x, "y": y}, client=["b", "a", "b", "c"], split=[0, 1, 0, 0], name="mine")
    assert (data.name, data.classes, data.notes) == ("mine", 4, ())
    assert data.train.sizes.tolist() == [0, 2, 1] and data.test.sizes.tolist() == [1, 0, 0]
    assert data.train.columns["y"].dtype == np.int32 and data.train.columns["x"].dtype == x.dtype
    assert arrays({"x": x}, client=[2, 0, 2, 0], ids=range(3)).train.sizes.tolist() == [2, 0, 2]
    alone = arrays({"x": x}, split=["train", "test", "train", "train"])
    assert alone.train.sizes.tolist() == [3] and "one client holds all" in alone.notes[0]


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"client": [0, 1]}, ValueError, "client has 2 entries, expected 4, one for each row"),
        ({"client": [0.5] * 4}, TypeError, "client holds values of type float"),
        ({"client": [0] * 4, "ids": [1]}, ValueError, "no client has the id 0"),
        ({"split": [0, 1]}, ValueError, r"split is int64\[2\] with values \[0, 1\], expected \[4\] of 0"),
        (
            {"split": ["train", "dev", "train", "train"]},
            ValueError,
            r"of 'train' \(training\) and 'test' \(test\)",
        ),
        ({"split": [0, 1, 0, 0], "test_fraction": 0.5}, ValueError, "there is a split already"),
        ({"channel_axis": "x"}, ValueError, r"column 'x' has shape \[4, 2\]"),
    ],
)
def test_arrays_refuse(options, error, match):
    with pytest.raises(error, match=match):
        arrays({"x": np.zeros((4, 2))}, **options)
