"""Files of every kind, damaged at random: the data that were written, or an error that names the file; no crash, no hang."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import example as case
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from unit.tff_files import example, write_hdf5, write_sqlite

from fedjax_sim.data import (
    ClientData,
    Federated,
    huggingface,
    images,
    leaf,
    npz,
    parquet,
    stackoverflow_tags,
    tff,
)

datasets.disable_progress_bars()

X, Y = np.arange(12, dtype=np.float32).reshape(6, 2), np.array([0, 1, 2, 0, 1, 2])
CLIENT = np.array(["ann", "bo", "cy", "ann", "bo", "ann"])
TABLE = pa.table({"client": CLIENT, "x": X.tolist(), "y": Y})
JSON = {
    "users": ["ann", "bo"],
    "num_samples": [2, 1],
    "user_data": {"ann": {"x": [[0.5, 1.0], [2.0, 3.0]], "y": [1, 0]}, "bo": {"x": [[4.0, 5.0]], "y": [2]}},
}
SPLITS = {
    "train": {
        c: [example(x=X[i], label=int(Y[i])) for i in np.flatnonzero(c == CLIENT)] for c in ("ann", "bo")
    },
    "test": {"cy": [example(x=X[2], label=2)]},
}
GROUPS = {c: {"x": X[c == CLIENT], "label": Y[c == CLIENT]} for c in ("ann", "bo", "cy")}


class Kind(NamedTuple):
    """A file, who writes it and who reads it.

    Attributes:
      write: writes it, and what else is needed beside it.
      read: gets the path of the file.
      checked: it has checksums, so that damaged values are found, too.
      named: the folder that messages may name instead of the file, counted from it.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path], Federated]
    checked: bool = False
    named: int = 0


def write_arrow(path: Path, kind: Any = pa.ipc.new_file) -> None:
    with kind(path, TABLE.schema) as writer:
        writer.write_table(TABLE, max_chunksize=4)


def write_xz(path: Path) -> None:
    with lzma.open(path, "wb") as stream:
        np.save(stream, np.arange(24, dtype=np.uint8).reshape(6, 2, 2))


def write_images(path: Path) -> None:
    write_xz(path.parent / "train_images.npy.xz")
    write_xz(path.parent / "test_images.npy.xz")
    np.savez(path.parent / "labels.npz", train_label=Y, test_label=Y)


def saved(path: Path) -> Path:
    return next(folder for folder in path.parents if folder.name == "set")


def write_saved(path: Path) -> None:
    datasets.DatasetDict(train=datasets.Dataset(TABLE)).save_to_disk(saved(path))


def write_parquet(path: Path) -> None:
    pq.write_table(TABLE, path, row_group_size=4)


def in_store(path: Path) -> Federated:
    """Read in pieces and placed in a folder, anew each time; all of it is looked at before the folder goes."""
    with tempfile.TemporaryDirectory() as folder:
        found = parquet(path, store=Path(folder) / "set")
        parts = (
            ClientData(dict_of_copies(part), part.offsets, part.ids) for part in (found.train, found.test)
        )
        return Federated(*parts, name=found.name, classes=found.classes)


def dict_of_copies(part: Any) -> dict[str, np.ndarray]:
    return {name: np.array(column) for name, column in part.columns.items()}


def write_photos(path: Path) -> None:
    """A column of encoded images, with the checksums of PNG."""
    photos = []
    for row in range(6):
        stream = io.BytesIO()
        Image.fromarray(np.full((4, 3), 40 * row, np.uint8)).save(stream, "PNG")
        photos.append(stream.getvalue())
    pq.write_table(TABLE.append_column("photo", pa.array(photos)), path, compression="none")


def write_counts(path: Path) -> None:
    path.write_text(json.dumps({"sort": 3, "list": 2, "a": 9}))
    posts = [
        example(tokens="sort a list", title="list", tags="sort|a"),
        example(tokens="", title="a", tags="b"),
    ]
    write_sqlite(path.parent / "so.sqlite", {"train": {"ann": posts}, "test": {"bo": posts[:1]}})


def tags_by(path: Path) -> Federated:
    return stackoverflow_tags(
        path.parent / "so.sqlite", vocabulary=path, tags=["sort", "a"], length=5, lazy=False
    )


def write_posts(path: Path) -> None:
    write_counts(path.parent / "words.json")
    (path.parent / "so.sqlite").rename(path)


def posts_of(path: Path) -> Federated:
    return stackoverflow_tags(
        path, vocabulary=path.parent / "words.json", tags=["sort", "a"], length=5, lazy=False
    )


KINDS = {
    "counts.json": Kind(write_counts, tags_by),
    "posts.sqlite": Kind(write_posts, posts_of),
    "photos.parquet": Kind(write_photos, parquet),
    "stored.parquet": Kind(write_parquet, in_store),
    "stored.arrow": Kind(write_arrow, in_store),
    "stored.stream.arrow": Kind(lambda path: write_arrow(path, pa.ipc.new_stream), in_store),
    "a.npz": Kind(lambda path: np.savez(path, x=X, y=Y, client=CLIENT), npz, checked=True),
    "b.npz": Kind(lambda path: np.savez_compressed(path, x=X, y=Y, client=CLIENT), npz, checked=True),
    "a.json": Kind(lambda path: path.write_text(json.dumps(JSON)), leaf),
    "a.json.gz": Kind(
        lambda path: path.write_bytes(gzip.compress(json.dumps(JSON).encode())), leaf, checked=True
    ),
    "train_images.npy.xz": Kind(write_images, lambda path: images(path.parent), checked=True, named=1),
    "labels.npz": Kind(write_images, lambda path: images(path.parent), checked=True, named=1),
    "a.parquet": Kind(write_parquet, parquet),
    "b.parquet": Kind(
        lambda path: pq.write_table(TABLE, path, compression="none", use_dictionary=False), parquet
    ),
    "a.arrow": Kind(write_arrow, parquet),
    "b.arrow": Kind(lambda path: write_arrow(path, pa.ipc.new_stream), parquet),
    "set/train/data-00000-of-00001.arrow": Kind(write_saved, lambda path: huggingface(saved(path)), named=2),
    "set/train/state.json": Kind(write_saved, lambda path: huggingface(saved(path)), named=2),
    "set/dataset_dict.json": Kind(write_saved, lambda path: huggingface(saved(path)), named=1),
    "a.sqlite": Kind(lambda path: write_sqlite(path, SPLITS), tff),
    "b.sqlite.lzma": Kind(lambda path: write_sqlite(path, SPLITS), tff),
    "a.h5": Kind(lambda path: write_hdf5(path, GROUPS), tff),
    "b.h5": Kind(lambda path: write_hdf5(path, GROUPS, compression="gzip", fletcher32=True), tff),
}


@pytest.fixture(scope="module", params=KINDS)
def written(request, tmp_path_factory) -> tuple[Kind, Path, bytes, Federated]:
    """A kind, its file, the file's bytes and the data."""
    kind, path = KINDS[request.param], tmp_path_factory.mktemp("damaged") / request.param
    kind.write(path)
    return kind, path, path.read_bytes(), kind.read(path)


def flat(data: Federated) -> dict[str, Any]:
    """Everything in a set, as lists."""
    parts = {"train": data.train.in_memory, "test": data.test.in_memory}
    return {
        part: (
            clients.ids.tolist(),
            clients.sizes.tolist(),
            {n: np.asarray(c).tolist() for n, c in clients.columns.items()},
        )
        for part, clients in parts.items()
    }


def check(written: tuple[Kind, Path, bytes, Federated], damaged: bytes) -> None:
    kind, path, _, whole = written
    path.write_bytes(damaged)
    try:
        found = kind.read(path)
    except (OSError, ValueError) as error:
        named = path if kind.named == 0 else path.parents[kind.named - 1]
        assert str(named) in str(error)
        return
    if kind.checked:
        assert flat(found) == flat(whole)
    for one, other in ((found.train, whole.train), (found.test, whole.test)):
        assert one.num_examples == other.num_examples


@settings(max_examples=40, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
@case(place=0.042418298476721183, bit=7)  # a stream of Arrow without columns
def test_a_bit_that_flips(written, place, bit):
    damaged = bytearray(written[2])
    damaged[int(place * len(damaged))] ^= 1 << bit
    check(written, bytes(damaged))


@settings(max_examples=25, deadline=None)
@given(
    place=st.floats(0, 1, exclude_max=True),
    new=st.binary(min_size=1, max_size=12),
    dropped=st.integers(0, 12),
)
def test_bytes_that_are_replaced(written, place, new, dropped):
    whole = written[2]
    at = int(place * len(whole))
    check(written, whole[:at] + new + whole[at + dropped :])


@settings(max_examples=25, deadline=None)
@given(place=st.floats(0, 1, exclude_max=True))
@case(place=0.0)
@case(place=1 - 1e-12)
def test_a_file_that_was_cut_off(written, place):
    """Never the data without a word, and never fewer of them."""
    kind, path, whole, data = written
    length = int(place * len(whole))
    path.write_bytes(whole[:length])
    try:
        found = kind.read(path)
    except (OSError, ValueError) as error:
        assert str(path if kind.named == 0 else path.parents[kind.named - 1]) in str(error)
    else:
        assert flat(found) == flat(data)


@settings(max_examples=25, deadline=None)
@given(content=st.binary(max_size=64), keep=st.integers(0, 32))
def test_a_file_of_something_else(written, content, keep):
    """With the first bytes as they should be: readers that look at these alone are misled."""
    check(written, written[2][:keep] + content)
