import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest

from fedjax_sim.data import leaf, load


def content(**users) -> dict:
    """LEAF's JSON of users given as ``name=(x, y)``."""
    users = users or {"ann": ([[0.5, 1.0], [2.0, 3.0]], [1, 0]), "bo": ([[4.0, 5.0]], [2])}
    return {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }


def write(path: Path, what: dict | str | bytes) -> Path:
    """Text as it is, an object as JSON; compressed if the name says so."""
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = what if isinstance(what, bytes) else (what if isinstance(what, str) else json.dumps(what)).encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" and not isinstance(what, bytes) else raw)
    return path


@pytest.mark.parametrize("name", ["toy.json", "toy.json.gz"])
def test_a_file_is_training_data(tmp_path, name):
    data = leaf(write(tmp_path / name, content()))
    assert (data.name, data.classes) == ("toy", 3)
    assert data.train.ids.tolist() == data.test.ids.tolist() == ["ann", "bo"]
    assert data.train.sizes.tolist() == [2, 1] and data.test.sizes.tolist() == [0, 0]
    assert data.train.columns["x"].dtype == np.float32 and data.train.columns["y"].dtype == np.int32
    np.testing.assert_array_equal(data.train.client("bo")["x"], [[4.0, 5.0]])
    assert data.train.client("ann")["y"].tolist() == [1, 0]


def test_train_and_test_have_the_same_clients(tmp_path):
    write(tmp_path / "set/train/all.json", content(zoe=([[1.0]], [0]), ann=([[2.0]], [1]), empty=([], [])))
    write(tmp_path / "set/test/all.json", content(ann=([[3.0]], [4]), bo=([[5.0]], [1])))
    for data in (
        leaf(tmp_path / "set"),
        leaf(tmp_path / "set/train", test=tmp_path / "set/test"),
        load(f"leaf:{tmp_path / 'set/train/all.json'}", test=tmp_path / "set/test/all.json"),
    ):
        assert data.train.ids.tolist() == data.test.ids.tolist() == ["zoe", "ann", "empty", "bo"]
        assert data.train.sizes.tolist() == [1, 1, 0, 0] and data.test.sizes.tolist() == [0, 1, 0, 1]
        assert data.test.client("ann")["x"].tolist() == [[3.0]]
        assert data.classes == 5
    assert leaf(tmp_path / "set").name == "set"


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    for name, user in (("b_2.json", "cy"), ("a.json.gz", "ann"), ("b_10.json", "bo")):
        write(tmp_path / name, content(**{user: ([[1.0]], [0])}))
    write(tmp_path / "README.md", "not a shard")
    write(tmp_path / "._a.json", b"\x00what a file manager leaves")
    assert leaf(tmp_path).train.ids.tolist() == ["ann", "bo", "cy"]


def test_a_fraction_inside_each_client(tmp_path):
    path = write(tmp_path / "toy.json", content(ann=([[1.0]] * 10, [0] * 10), bo=([[2.0]] * 5, [1] * 5)))
    data = leaf(path, test_fraction=0.2, seed=3)
    assert data.train.sizes.tolist() == [8, 4] and data.test.sizes.tolist() == [2, 1]


@pytest.mark.parametrize(
    ("x", "dtype"), [([[1, 2]], np.int32), ([[1, 2.5]], np.float32), ([3], np.int32), ([3.0], np.float32)]
)
def test_dtypes(tmp_path, x, dtype):
    data = leaf(write(tmp_path / "toy.json", content(ann=(x, [1.0]))))
    assert data.train.columns["x"].dtype == dtype and data.train.columns["y"].dtype == np.int32
    np.testing.assert_array_equal(data.train.columns["x"], np.asarray(x, np.float32))


def test_one_fraction_anywhere_makes_floats_everywhere(tmp_path):
    write(tmp_path / "train/a.json", content(ann=([[1]], [0])))
    write(tmp_path / "test/a.json", content(bo=([[0.5]], [0])))
    data = leaf(tmp_path)
    assert data.train.columns["x"].dtype == data.test.columns["x"].dtype == np.float32


def test_negative_labels_are_no_classes(tmp_path):
    assert leaf(write(tmp_path / "toy.json", content(ann=([[1.0], [2.0]], [-1, 1])))).classes is None


def test_rows_are_reshaped(tmp_path):
    path = write(tmp_path / "toy.json", content(ann=([list(range(6))], [0]), bo=([], [])))
    data = leaf(path, shape=(2, 3, 1))
    assert data.train.columns["x"].shape == (1, 2, 3, 1) and data.test.columns["x"].shape == (0, 2, 3, 1)
    assert data.train.columns["x"][0, :, :, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
    with pytest.raises(ValueError, match=r"toy.json: shape is \[4, 1\], 4 numbers, but a row of x has 6"):
        leaf(path, shape=(4, 1))
    with pytest.raises(ValueError, match="shape is -2"):
        leaf(path, shape=(-2, -3))


def changed(**changes) -> dict:
    return content() | changes


@pytest.mark.parametrize(
    ("what", "match"),
    [
        ("", "the file is empty"),
        ("  \n", "the file is empty"),
        ("hello", "the file is no JSON, or truncated"),
        (json.dumps(content())[:60], "the file is no JSON, or truncated"),
        ("[" * 200_000, "the file is no JSON, or truncated"),
        (b"\xff\xfe\x00", "no text in UTF-8"),
        ("[1, 2]", "the file holds a list, expected an object with"),
        ({}, "key 'users' is missing, the file has none"),
        ({"users": ["a"], "user_data": {}}, "key 'num_samples' is missing, the file has users, user_data"),
        (changed(users="ann"), "users is str, expected a list"),
        (changed(user_data=[]), "user_data is list, expected an object"),
        (changed(users=[], num_samples=[]), "users is empty"),
        (changed(users=["ann"]), "num_samples has 2 entries for 1 users"),
        (changed(users=["ann", 5]), "users holds 5, expected text"),
        (changed(users=["ann", "ann"]), "users names 'ann' twice"),
        (changed(users=["ann\0", "bo"], user_data={"ann\0": {}, "bo": {}}), "users holds .*zero byte"),
        (changed(users=["ann", "cy"]), "users names 'cy', but user_data lacks it"),
        (changed(users=["ann"], num_samples=[2]), "user_data holds 'bo', but users does not name it"),
        (changed(num_samples=[2, 2]), "user 'bo' has 1 rows of 'x', but num_samples says 2"),
        (changed(num_samples=[2, None]), "num_samples says None"),
        (content(ann=([[1.0]], [1, 2])), "user 'ann' has 1 rows of 'x', but num_samples says 2"),
        (changed(user_data={"ann": [], "bo": []}), "user 'ann' has list, expected an object with 'x' and"),
        (changed(user_data={"ann": {"x": []}, "bo": {}}), "user 'ann' has x, expected"),
        (content(ann=({"a": 1}, [1])), "user 'ann': x is dict, expected a list"),
        (content(ann=([[1.0], [1.0, 2.0]], [0, 0])), "user 'ann': the rows of x are of different lengths"),
        (
            content(ann=([[1.0, 2.0]], [0]), bo=([[1.0]], [0])),
            r"user 'bo' has rows of 'x' of shape \[1\], user 'ann' of .* has \[2\]",
        ),
        (
            content(ann=(["the quality of"], ["m"])),
            "'ann': x holds text, such as 'the quality of', .*fs.data.shakespeare",
        ),
        (content(ann=([[1.0, "2"]], [0])), "user 'ann': x holds text"),
        (content(ann=([[1.0]], ["m"])), "user 'ann': y holds text, such as 'm'"),
        (content(ann=([[None]], [0])), "user 'ann': x holds something that is no number"),
        (content(ann=([[True]], [0])), "user 'ann': x holds something that is no number"),
        (content(ann=([[1.0, True]], [0])), "user 'ann': x holds something that is no number .*true, false"),
        (content(ann=([[[1], [False]]], [0])), "user 'ann': x holds something that is no number"),
        (content(ann=([[1.0], [2.0]], [0, True])), "user 'ann': y holds something that is no number"),
        (content(ann=([[2**70]], [0])), "user 'ann': x holds something that is no number"),
        (content(ann=([[2**40]], [0])), "user 'ann': x holds integers from 1099511627776 to"),
        (content(ann=([[1.0], [float("nan")]], [0, 0])), "x holds NaN, infinity, .* at row 1"),
        (content(ann=([[float("inf")]], [0])), "x holds NaN, infinity"),
        (content(ann=([[1e39]], [0])), "too large for float32"),
        (content(ann=([[1.0]], [0.5])), "user 'ann': y holds 0.5, expected whole numbers"),
        (content(ann=([[1.0]], [1e20])), "user 'ann': y holds 1.*, expected whole numbers"),
        (content(ann=([], [])), "no user has an example"),
        ('{"users": ["a"], "users": ["b"]}', "key 'users' is there twice"),
        (
            '{"users": ["a"], "num_samples": [0], "user_data": {"a": {}, "a": {}}}',
            "key 'a' is there twice in one object",
        ),
    ],
)
@pytest.mark.parametrize("name", ["bad.json", "bad.json.gz"])
def test_a_bad_file_is_named(tmp_path, what, match, name):
    if isinstance(what, bytes) and name.endswith(".gz"):
        what = gzip.compress(what)
    path = write(tmp_path / name, what)
    with pytest.raises(ValueError, match=match) as caught:
        leaf(path)
    assert str(path) in str(caught.value)


def test_a_damaged_compressed_file_is_named(tmp_path):
    path = write(tmp_path / "bad.json.gz", content())
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"hello", whole[:12] + bytes(20) + whole[32:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"bad.json.gz: the compressed file is truncated, or of another"):
            leaf(path)


def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path):
    marked = write(tmp_path / "marked.json", b"\xef\xbb\xbf" + json.dumps(content()).encode())
    assert leaf(marked).train.ids.tolist() == ["ann", "bo"]


def test_nobody_waits_at_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "set.json")
    with pytest.raises(FileNotFoundError, match=r"set\.json is a pipe or a device, expected a file"):
        leaf(tmp_path / "set.json")


def test_a_user_in_two_shards(tmp_path):
    write(tmp_path / "a.json", content())
    write(tmp_path / "b.json", content(cy=([[1.0, 2.0]], [0]), bo=([[1.0, 2.0]], [0])))
    with pytest.raises(ValueError, match=r"user 'bo' is in .*a.json and in .*b.json"):
        leaf(tmp_path)


def test_a_bad_test_part_is_named(tmp_path):
    write(tmp_path / "train/a.json", content())
    write(tmp_path / "test/a.json", content(ann=([[1.0]], [0])))
    with pytest.raises(
        ValueError, match=r"test/a.json: user 'ann' has rows of 'x' of shape \[1\], user 'ann' of .*train"
    ):
        leaf(tmp_path)


def test_paths_and_options_that_do_not_fit(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent does not exist"):
        leaf(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no .json or .json.gz file"):
        leaf(tmp_path)
    write(tmp_path / "train/a.json", content())
    with pytest.raises(ValueError, match=r"has a folder 'train' but no folder 'test'.*give .*train"):
        leaf(tmp_path)
    write(tmp_path / "test/a.json", content())
    with pytest.raises(ValueError, match=r"has a test part, .*test, expected no test_fraction"):
        leaf(tmp_path, test_fraction=0.2)
    with pytest.raises(ValueError, match=r"has a folder 'test' of its own"):
        leaf(tmp_path, test=tmp_path / "test")


# Numbers from shared/data/README.md and the files themselves.
@pytest.mark.parametrize(("name", "examples"), [("0_0", 897), ("1_1", 1084), ("iid", 805)])
def test_fedprox_synthetic(shared, name, examples):
    path = shared / f"data/fedprox_synthetic/synthetic_{name}_mytest.json.gz"
    if not path.exists():
        pytest.skip("the real data set is not here")
    data = leaf(path, test_fraction=0.2)
    assert data.name == f"synthetic_{name}_mytest" and data.classes == 10
    assert data.train.num_clients == 30 and data.train.ids[0] == "f_00000"
    assert data.train.num_examples + data.test.num_examples == examples
    assert data.train.columns["x"].shape[1:] == (60,) and data.train.columns["x"].dtype == np.float32
    with gzip.open(path, "rt") as stream:
        raw = json.load(stream)
    whole = leaf(path).train
    for user in raw["users"]:
        np.testing.assert_array_equal(
            whole.client(user)["x"], np.asarray(raw["user_data"][user]["x"], np.float32)
        )
        assert whole.client(user)["y"].tolist() == raw["user_data"][user]["y"]
