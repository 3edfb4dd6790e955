"""TensorFlow's own files and its reader beside ours; needs the extra [tensorflow]."""

from __future__ import annotations

import numpy as np
import pytest
from unit.tfds_sets import example, library, prepare

from fedjax_sim.data import tfds

pytest.importorskip("tensorflow", reason="the extra [tensorflow] is not installed")


def drawn(number: int) -> dict:
    """An example whose image TensorFlow encodes."""
    pixels = np.random.default_rng(number).integers(0, 256, (6, 5, 1), np.uint8)
    return example(number) | {"image": pixels}


@pytest.mark.parametrize("split", ["train", "train[3:7]", "train[60%:]+test"])
def test_the_same_examples_in_the_same_order_as_tensorflow_reads(tmp_path, split):
    folder = prepare(tmp_path, examples=drawn, kind="tfrecord", shards=3)
    assert len(list(folder.glob("toy-train.tfrecord-*"))) == 3
    as_read = library.ReadConfig(interleave_cycle_length=1)  # one file after the other
    theirs = library.builder_from_directory(folder).as_dataset(split=split, read_config=as_read)
    theirs = list(library.as_numpy(theirs))
    assert len(theirs) == {"train": 10, "train[3:7]": 4, "train[60%:]+test": 8}[split]

    ours = tfds(
        "toy",
        data_dir=tmp_path,
        train=split,
        columns={"x": "image", "y": "label", "n": "number", "pair": "nested/pair", "name": "writer", "sum": "words"},
        decode={
            "writer": lambda texts: [int(text[1:]) for text in texts],
            "words": lambda rows: [row.sum() for row in rows],
        },
    ).train.columns  # fmt: skip
    expected = {
        "x": [one["image"] for one in theirs],
        "y": [one["label"] for one in theirs],
        "n": [one["number"] for one in theirs],
        "pair": [one["nested"]["pair"] for one in theirs],
        "name": [int(one["writer"][1:]) for one in theirs],
        "sum": [one["words"].sum() for one in theirs],
    }
    for name, values in expected.items():
        np.testing.assert_array_equal(ours[name], np.stack(values), err_msg=name)
