"""The data of these presets: a source of one's own, which the presets name as ``emnist_data:load``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from fedjax_sim import data


def load(
    folder: Path,
    ink: Literal["dark", "bright"] = "dark",
    source: Literal["auto", "mnist_by_writer", "digits"] = "auto",
) -> data.Federated:
    """MNIST by writer where it is present, else the digits that come with scikit-learn, enlarged to 28 x 28.

    Args:
      folder: of MNIST by writer: 539 writers to train on, 297 others to test on.
      ink: "dark" on white paper, as in federated EMNIST, or "bright" on black, as in MNIST. White paper is harder to
        learn from: all pixels are large, and what tells digits apart is a small part of them.
      source: "auto" asks whether the folder is there.
    """
    if source == "mnist_by_writer" or (source == "auto" and Path(folder).is_dir()):
        found = data.mnist_by_writer(folder)
    else:
        found = data.digits(image_size=28)
    if ink == "bright":
        return found
    return dataclasses.replace(found, train=_inverted(found.train), test=_inverted(found.test))


def _inverted(examples: data.ClientData) -> data.ClientData:
    columns = {**examples.columns, "x": 255 - examples.columns["x"]}
    return data.ClientData(columns, examples.offsets, examples.ids)
