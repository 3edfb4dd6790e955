"""LEAF's Sent140 and CelebA, from files in their own layout."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fedjax_sim as fs


def content(**users) -> dict:
    return {
        "users": list(users),
        "num_samples": [len(y) for _, y in users.values()],
        "user_data": {user: {"x": x, "y": y} for user, (x, y) in users.items()},
    }


def write(path: Path, what: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(what))
    return path


# --- Sent140 -------------------------------------------------------------------------------------------------


def tweet(said) -> list:
    return ["1467", "Mon Apr 06 22:19:45 PDT 2009", "NO_QUERY", "someone", said]


def test_tweets(tmp_path):
    write(
        tmp_path / "train/all.json",
        content(ann=([tweet("Good, good DAY"), tweet("Bad day")], [1, 0]), bo=([tweet("b b day")], [1])),
    )
    write(tmp_path / "test/all.json", content(bo=([tweet("Good night!")], [0])))
    data = fs.data.load(f"sent140:{tmp_path}", vocabulary=3, length=3)
    assert data.train.ids.tolist() == data.test.ids.tolist() == ["ann", "bo"] and data.classes == 2
    assert data.notes == ("3 words, 7 ids",)  # day, then b and good: both are there twice
    assert data.train.columns["x"].tolist() == [[5, 6, 5], [6, 3, 0], [4, 4, 3]]
    assert data.test.columns["x"].tolist() == [[5, 6, 6]]
    assert data.train.columns["y"].tolist() == [1, 0, 1] and data.train.columns["x"].dtype == np.int32
    named = fs.data.sent140(tmp_path, vocabulary=["Good"], lower=False)
    assert named.train.columns["x"].shape == (3, 25) and named.train.columns["x"][0, :5].tolist() == [
        3,
        4,
        4,
        4,
        0,
    ]


def test_tweets_of_a_file_are_divided(tmp_path):
    path = write(tmp_path / "all.json", content(ann=([tweet("a")] * 10, [0] * 10), empty=([], [])))
    data = fs.data.sent140(path, test_fraction=0.2, seed=1)
    assert data.train.sizes.tolist() == [8, 0] and data.test.sizes.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("what", "match"),
    [
        (content(ann=(["Good day"], [1])), r"user 'ann': x\[0\] is str, expected the fields id"),
        (content(ann=([["Good day"]], [1])), r"x\[0\] is a list of 1, expected the fields"),
        (content(ann=([tweet("a"), tweet(3)], [1, 0])), r"x\[1\] is a list of 5, expected.*the last as text"),
        (content(ann=([tweet("a")], [4])), "user 'ann': y holds 4, expected labels 0 and 1"),
        (content(ann=([tweet("a")], [[1, 0]])), "user 'ann': y holds"),
        (content(ann=([tweet("a")], ["4"])), "user 'ann': y holds text"),
        (content(ann=([tweet("a")], [1, 0])), "has 1 rows of 'x', but num_samples says 2"),
        (content(ann=([], [])), "no user has an example"),
    ],
)
def test_bad_tweets_are_named(tmp_path, what, match):
    path = write(tmp_path / "all.json", what)
    with pytest.raises(ValueError, match=match) as caught:
        fs.data.sent140(path)
    assert str(caught.value).startswith(str(path))


# --- CelebA --------------------------------------------------------------------------------------------------


@pytest.fixture
def faces(tmp_path) -> Path:
    folder = tmp_path / "raw" / "img_align_celeba"
    folder.mkdir(parents=True)
    ramp = np.arange(218 * 178 * 3, dtype=np.uint32).reshape(218, 178, 3) // 456
    Image.fromarray(ramp.astype(np.uint8)).save(folder / "000001.jpg", quality=95)
    Image.new("L", (20, 10), 77).save(folder / "000002.png")
    return tmp_path


def test_images_are_read_and_resized(faces):
    write(
        faces / "train/all.json", content(**{"7": (["000001.jpg", "000002.png"], [1.0, 0.0]), "9": ([], [])})
    )
    write(faces / "test/all.json", content(**{"9": (["000002.png"], [1])}))
    data = fs.data.load(f"celeba:{faces}", image_size=16)
    x = data.train.columns["x"]
    assert (x.shape, x.dtype, data.train.columns["y"].tolist(), data.classes) == (
        (2, 16, 16, 3),
        np.uint8,
        [1, 0],
        2,
    )
    assert data.train.ids.tolist() == ["7", "9"] and data.test.sizes.tolist() == [0, 1]
    assert (x[1] == 77).all() and (data.test.columns["x"] == 77).all()
    with Image.open(faces / "raw/img_align_celeba/000001.jpg") as image:
        np.testing.assert_array_equal(x[0], np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC)))
    assert fs.data.celeba(faces).train.columns["x"].shape == (2, 84, 84, 3)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("missing.jpg", "holds no such file"),
        ("../../secret.jpg", "expected the name of a file"),
        ("/etc/hostname", "expected the name of a file"),
        ("..", "expected the name of a file"),
        ("a\0b", "expected the name of a file"),
        ("", "expected the name of a file"),
        (3, "expected the name of a file"),
        ("text.jpg", "no readable image, JPEG or PNG"),
        ("cut.jpg", "no readable image, JPEG or PNG"),
        ("moving.gif", "no readable image, JPEG or PNG"),
        ("huge.png", "5000 x 5000 pixels, expected at most 16777216"),
    ],
)
def test_bad_images_are_named(faces, name, match):
    folder = faces / "raw" / "img_align_celeba"
    (faces / "secret.jpg").write_bytes((folder / "000001.jpg").read_bytes())
    (folder / "text.jpg").write_text("no image")
    (folder / "cut.jpg").write_bytes((folder / "000001.jpg").read_bytes()[:3000])
    Image.new("P", (4, 4)).save(folder / "moving.gif")
    if name == "huge.png":
        Image.new("1", (5000, 5000)).save(folder / "huge.png")
    path = write(faces / "all.json", content(ann=(["000001.jpg", name], [0, 1])))
    with pytest.raises(ValueError, match=match) as caught:
        fs.data.celeba(path, images=folder)
    assert str(caught.value).startswith(f"{path}: user 'ann': x[1]")


def test_other_refusals(faces):
    path = write(faces / "all.json", content(ann=(["000001.jpg"], [2])))
    with pytest.raises(ValueError, match="y holds 2, expected labels 0 and 1"):
        fs.data.celeba(path, images=faces / "raw/img_align_celeba")
    with pytest.raises(
        FileNotFoundError,
        match=r"is no folder, expected the one with the images\. Give images=.*Get it from LEAF",
    ):
        fs.data.celeba(path)
    with pytest.raises(ValueError, match="image_size is 0"):
        fs.data.celeba(faces, image_size=0)


@pytest.mark.parametrize("name", ["sent140", "celeba", "shakespeare"])
def test_a_folder_with_nothing_in_it_says_where_the_set_is_from(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"is empty.*Nothing downloads by itself\. Get it from LEAF"):
        fs.data.load(f"{name}:{tmp_path}")
