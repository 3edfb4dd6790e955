"""EMNIST, from the published files in IDX form."""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._files import errors_name, needed
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.federated import Federated

_CLASSES = {"byclass": 62, "bymerge": 47, "balanced": 47, "letters": 26, "digits": 10, "mnist": 10}
_ORIGIN = "https://www.nist.gov/itl/products-and-services/emnist-dataset (gzip.zip, unpacked)"
_SIDE = 28

Division = Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"]


def emnist(folder: str | Path, *, division: Division = "byclass") -> Federated:
    """EMNIST: handwritten characters, without their writers. One client holds all, until ``repartition`` deals them out.

    Columns: ``x`` is ``uint8[examples, 28, 28, 1]``, ink bright and characters upright, which tasks scale to 0..1 as the field does
    (the files hold every image transposed); ``y`` is ``int32[examples]`` from 0, also for ``letters``, whose files count from 1. By
    class, labels are digits, then capitals, then small letters.

    Args:
      folder: holds ``emnist-<division>-{train,test}-{images-idx3,labels-idx1}-ubyte``, with or without ``.gz``.
      division: ``byclass`` (62 classes), ``bymerge`` and ``balanced`` (47, where capitals and small letters of one shape are one),
        ``letters`` (26), ``digits`` or ``mnist`` (10).

    Raises:
      FileNotFoundError, IsADirectoryError: a file is not there; says where to get it.
      NotADirectoryError: the folder is a file.
      ValueError: a file is damaged or of another kind, or images and labels do not fit together.

    Source: Cohen et al. 2017 (arXiv 1702.05373). With writers it is FEMNIST, of LEAF and of TensorFlow Federated.

    Example:
      >>> import struct, tempfile, pathlib, numpy as np, fedjax_sim as fs
      >>> images = struct.pack(">HBB3I", 0, 8, 3, 6, 28, 28) + bytes(6 * 28 * 28)
      >>> labels = struct.pack(">HBBI", 0, 8, 1, 6) + bytes([0, 1, 2, 0, 1, 2])
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     for part in ("train", "test"):
      ...         for kind, content in (("images-idx3", images), ("labels-idx1", labels)):
      ...             _ = pathlib.Path(folder, f"emnist-digits-{part}-{kind}-ubyte").write_bytes(content)
      ...     data = fs.data.load(f"emnist:{folder}", division="digits")
      >>> fs.data.repartition(data, fs.partitions.shards(3, 1)).train
      ClientData(3 clients with 2 to 2 of 6 examples, x: uint8[28, 28, 1], y: int32[], 4.73 kB)
    """
    checks.one_of("division", division, tuple(_CLASSES))
    classes, parts = _CLASSES[division], []
    for part in ("train", "test"):
        images, labels = (
            _file(Path(folder), f"emnist-{division}-{part}-{kind}-ubyte")
            for kind in ("images-idx3", "labels-idx1")
        )
        x, y = _read_idx(images, 3), _read_idx(labels, 1).astype(np.int32)
        with errors_name(images):
            if x.shape[1:] != (_SIDE, _SIDE):
                raise ValueError(f"the images have shape {list(x.shape[1:])}, expected [{_SIDE}, {_SIDE}].")
        with errors_name(labels):
            y -= division == "letters"
            if len(y) == 0 or y.min() < 0 or y.max() >= classes:
                raise ValueError(f"there is no label, or one outside of the {classes} classes of {division}.")
        with errors_name(images, labels):
            upright = np.ascontiguousarray(x.transpose(0, 2, 1))[..., None]
            parts.append(ClientData.from_arrays({"x": upright, "y": y}, np.zeros(len(x), np.int64), ids=[0]))
    return Federated(*parts, name=f"emnist_{division}", classes=classes)


def _file(folder: Path, name: str) -> Path:
    """The file, compressed or not."""
    return folder / name if (folder / name).is_file() else needed(folder, f"{name}.gz", _ORIGIN)


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """The bytes of an IDX file as ``uint8[...]``: two zeros, type 8, the number of axes, their lengths, the data.

    Source: LeCun et al., The MNIST database, file format.
    """
    with errors_name(path):
        head = struct.Struct(f">HBB{axes}I")
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                start = stream.read(head.size)
                if len(start) < head.size:
                    raise ValueError("the file was cut off in its header.")
                zero, kind, found, *shape = head.unpack(start)
                if (zero, kind, found) != (0, 8, axes):
                    raise ValueError(
                        f"this is no IDX file of bytes with {axes} axes: it begins with {start[:4].hex()}."
                    )
                # One byte more than there should be tells a file that is too long; a bomb is not unpacked.
                size = math.prod(shape)
                content = bytearray()
                while len(content) <= size and (piece := stream.read(min(1 << 24, size + 1 - len(content)))):
                    content += piece
        except (EOFError, OSError, zlib.error) as error:
            raise ValueError(f"the compressed file is truncated, or of another kind: {error}") from error
        if len(content) != size:
            more = "more" if len(content) > size else f"{len(content)}"
            raise ValueError(f"the header says {size} bytes, the file has {more}: it was cut off or changed.")
        return np.frombuffer(bytes(content), np.uint8).reshape(shape)
