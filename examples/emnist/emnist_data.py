"""The data of these presets: a source of one's own, which the presets name as ``emnist_data:load``."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from fedjax_sim import data


def load(folder: Path, source: Literal["auto", "mnist_by_writer", "digits"] = "auto") -> data.Federated:
    """MNIST by writer where it is present, else the digits that come with scikit-learn, enlarged to 28 x 28.

    Args:
      folder: of MNIST by writer: 539 writers to train on, 297 others to test on.
      source: "auto" asks whether the folder is there.
    """
    if source == "mnist_by_writer" or (source == "auto" and Path(folder).is_dir()):
        return data.mnist_by_writer(folder)
    return data.digits(image_size=28)
