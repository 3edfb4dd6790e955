"""Sets as TensorFlow Datasets prepares them, small, written without TensorFlow."""

from __future__ import annotations

import io
import json
import shutil
import struct
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from fedjax_sim.data.formats._tfrecord import crc32c

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
    kind="array_record",
    **features,
) -> Path:
    """A set as ``download_and_prepare`` leaves it; returns the folder of its version. TFRecord files take TensorFlow."""
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
    builder = Builder(data_dir=str(folder), file_format=kind)
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


def both_kinds(folder: Path) -> dict[str, Path]:
    """The same set in both kinds of files."""
    roots = {kind: folder / kind for kind in ("array_record", "tfrecord")}
    version = prepare(roots["array_record"])
    shutil.copytree(roots["array_record"], roots["tfrecord"])
    as_tfrecord(roots["tfrecord"] / version.relative_to(roots["array_record"]))
    return roots


def shard(root: Path, split: str = "train") -> Path:
    (found,) = (root / "toy/1.0.0").glob(f"toy-{split}.*")
    return found
