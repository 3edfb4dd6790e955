"""Columns without numbers: decoders by themselves, from files, and named in a configuration."""

from __future__ import annotations

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from unit.tff_files import write_hdf5

from fedjax_sim import experiment
from fedjax_sim.data import decoders, parquet, text, tff
from fedjax_sim.experiment._settings import resolve

GREY = np.random.default_rng(0).integers(256, size=(3, 4, 5), dtype=np.uint8)


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_columns_of_encoded_images_are_arrays_by_themselves(tmp_path, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    stream = []
    for image in GREY:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, kind, **options)
        stream.append(buffer.getvalue())
    pq.write_table(pa.table({"image": stream, "y": [0, 1, 1]}), tmp_path / "a.parquet")
    found = parquet(tmp_path / "a.parquet").train.columns["x"]
    np.testing.assert_array_equal(found[..., 0] if found.ndim == 4 else found, GREY)


def test_images_of_any_form_become_one_shape():
    colour = np.random.default_rng(1).integers(256, size=(6, 3, 3), dtype=np.uint8)
    mixed = [encoded(GREY[0]), {"bytes": encoded(colour), "path": None}, colour, GREY[1][..., None]]
    rgb = decoders.pictures(size=[7, 2], colours="rgb")(mixed)
    assert rgb.shape == (4, 7, 2, 3) and rgb.dtype == np.uint8
    grey = decoders.pictures(size=(4, 5), colours="grey")(mixed)
    assert grey.shape == (4, 4, 5)
    np.testing.assert_array_equal(grey[[0, 3]], GREY[:2])  # of the size already
    # Larger images of one colour keep it, so nothing but places is interpolated.
    flat = decoders.pictures(size=(9, 9))([np.full((4, 5, 3), 17, np.uint8)])
    assert (flat == 17).all() and flat.shape == (1, 9, 9, 3)


def test_words_are_those_of_text(tmp_path):
    (tmp_path / "counts.json").write_text(json.dumps({"b": 1, "a": 5, "c": 3}))
    texts, encoder = ["a b c d", "", "c"], text.words(["a", "c"])
    for known in (["a", "c", "b"], tmp_path / "counts.json"):
        found = decoders.padded_words(known, length=3, words=2)(texts)
        np.testing.assert_array_equal(found, text.padded(texts, encoder, 3))
        windows = decoders.next_words(known, length=3, words=2)(texts)
        for name, column in text.next_token(texts, encoder, 3, truncate=True).items():
            np.testing.assert_array_equal(windows[name], column)


def test_a_file_names_decoders(tmp_path):
    """Of several columns, with a path that begins at the file."""
    rows = {
        "who": ["bo", "ann", "bo"],
        "photo": list(map(encoded, GREY)),
        "said": ["a b", "c", "b"],
        "label": [0, 1, 1],
    }
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    (tmp_path / "counts.json").write_text(json.dumps({"a": 2, "b": 1}))
    (tmp_path / "run.toml").write_text(
        """
        [data]
        name = "parquet"
        path = "a.parquet"
        client = "who"
        columns = { x = "photo", said = "said", y = "label" }
        [data.decode]
        photo = { name = "pictures", size = [2, 2] }
        said = { name = "padded_words", vocabulary = "counts.json", length = 2 }
        """
    )
    made = experiment.load(tmp_path / "run.toml")
    said = made.settings["data"]["decode"]["said"]
    assert said["vocabulary"] == str((tmp_path / "counts.json").resolve()) and said["words"] == 10_000
    train = made.federated.train
    assert train.columns["x"].shape == (3, 2, 2)
    assert train.client("bo")["said"].tolist() == [[3, 4], [4, 0]]
    # Settings come back from a run folder as they were.
    assert resolve(made.settings, []) == made.settings


def length(scale: int = 1):
    """A decoder of one's own.

    Args:
      scale: factor.
    """
    return lambda values: [scale * len(value) for value in values]


def test_a_decoder_of_ones_own(tmp_path):
    pq.write_table(pa.table({"x": ["a", "bcd"]}), tmp_path / "a.parquet")
    changes = [
        f"data={{name='parquet', path='{tmp_path / 'a.parquet'}'}}",
        "data.decode.x={name='unit.test_decoders:length', scale=10}",
    ]
    assert experiment.load(changes=changes).federated.train.columns["x"].tolist() == [10, 30]


def test_windows_of_a_clients_texts(tmp_path):
    path = write_hdf5(tmp_path / "play_train.h5", {"A": {"snippets": ["ab", "cabab"]}})
    changes = [
        f"data={{name='tff', path='{path}'}}",
        "data.decode.snippets={name='next_characters', length=3}",
    ]
    found = experiment.load(changes=changes).federated.train
    expected = tff(path, decode={"snippets": lambda t: text.next_token(t, text.characters(), 3)}).train
    for name in ("x", "y"):
        np.testing.assert_array_equal(found.columns[name], expected.columns[name])
    assert found.num_examples == 3


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: decoders.pictures(size=[3]), r"size is \[3\], expected height and width"),
        (lambda: decoders.pictures(size=[3, 0]), r"size\[1\] is 0"),
        (lambda: decoders.pictures(colours="blue"), "colours is 'blue', expected one of"),
        (lambda: decoders.pictures()([GREY[0], GREY[1][:2]]), r"\[2, 5\] \(row 1\) and \[4, 5\] \(row 0\).*pictures\(size="),
        (lambda: decoders.pictures()([b"no image"]), "holds no image that can be read in row 0"),
        (lambda: decoders.pictures()([encoded(GREY[0])[:40]]), "holds no image that can be read in row 0"),
        (lambda: decoders.pictures()([{"bytes": None, "path": "a.png"}]), "names a file in row 0"),
        (lambda: decoders.pictures()([GREY[0].astype(object)]), "holds no image that can be read in row 0"),
        (lambda: decoders.padded_words(["a"], length=0), "length is 0"),
        (lambda: decoders.next_words(["a"], words=0), "words is 0"),
        (lambda: decoders.next_characters(length=-1), "length is -1"),
        (lambda: experiment.load(changes=["data={name='parquet',path='a'}", "data.decode.x=3"]), r"data.decode.x is 3, expected a table with a name"),
        (lambda: experiment.load(changes=["data={name='parquet',path='a'}", "data.decode.x.name=picture"]), "data.decode.x.name .*Did you mean 'pictures'"),
        (lambda: experiment.load(changes=["data={name='parquet',path='a'}", "data.decode.x.name=pictures", "data.decode.x.sise=[1,1]"]), "data.decode.x.sise is no setting of pictures.*Did you mean 'size'"),
        (lambda: experiment.load(changes=["data={name='parquet',path='a'}", "data.decode.x.name=padded_words"]), "data.decode.x.vocabulary is missing"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, match):
    with pytest.raises(ValueError, match=match):
        make()
