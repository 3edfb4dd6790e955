"""A data set by its name. Nothing downloads."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats.flat import npz
from fedjax_sim.data.formats.huggingface import huggingface
from fedjax_sim.data.formats.image_sets import digits, images, mnist_by_writer
from fedjax_sim.data.formats.leaf import leaf
from fedjax_sim.data.formats.parquet import parquet
from fedjax_sim.data.formats.stored import stored
from fedjax_sim.data.formats.tfds import tfds
from fedjax_sim.data.formats.tff import tff
from fedjax_sim.data.glyphs import glyphs
from fedjax_sim.data.presets.cifar import cifar10, cifar100
from fedjax_sim.data.presets.emnist import emnist
from fedjax_sim.data.presets.flamby import heart_disease, tcga_brca
from fedjax_sim.data.presets.leaf_sets import celeba, sent140
from fedjax_sim.data.presets.school import school
from fedjax_sim.data.presets.shakespeare import shakespeare
from fedjax_sim.data.presets.stackoverflow import stackoverflow, stackoverflow_tags
from fedjax_sim.data.synthetic_sets import synthetic

SOURCES: dict[str, Callable[..., Federated]] = {
    "digits": digits,
    "glyphs": glyphs,
    "synthetic": synthetic,
    "npz": npz,
    "mnist_by_writer": mnist_by_writer,
    "leaf": leaf,
    "images": images,
    "parquet": parquet,
    "huggingface": huggingface,
    "tff": tff,
    "stored": stored,
    "heart_disease": heart_disease,
    "tcga_brca": tcga_brca,
    "school": school,
    "cifar10": cifar10,
    "cifar100": cifar100,
    "emnist": emnist,
    "tfds": tfds,
    "shakespeare": shakespeare,
    "sent140": sent140,
    "stackoverflow": stackoverflow,
    "stackoverflow_tags": stackoverflow_tags,
    "celeba": celeba,
}
"""Every source by its name."""


def load(name: str, **options: Any) -> Federated:
    """A data set by name, such as ``"digits"`` or ``"leaf:PATH"``.

    Args:
      name: ``digits``, ``glyphs`` or ``synthetic``; or another source, a colon, and the file, folder or set that it reads. What
        sources there are stands in ``SOURCES`` and in the error for an unknown one.
      **options: arguments of the function of that name in ``fedjax_sim.data``.

    Raises:
      TypeError: the source does not take such an option, or needs one that is not given.
      ValueError: there is no such source, a path is missing or there is one too many; also as the source itself.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.load("digits", clients=5, seed=1).train.num_clients
      5
    """
    if not isinstance(name, str):
        raise TypeError(
            f"data source is {type(name).__name__}, expected text such as 'digits' or 'npz:PATH'. Objects are taken by the "
            "functions of fs.data, such as fs.data.arrays and fs.data.huggingface."
        )
    source, colon, path = name.partition(":")
    if source not in SOURCES:
        known = ", ".join(_usage(known) for known in SOURCES)
        close = difflib.get_close_matches(source, SOURCES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"no data source is called {source!r}, expected one of {known}.{hint}")
    function, path_name, accepted = SOURCES[source], *_arguments(source)
    for option in options:
        if option not in accepted:
            raise TypeError(
                f"data source {source!r} takes no option {option!r}, it takes {', '.join(accepted) or 'none'}."
            )
    if (path_name is None and colon) or (path_name is not None and not path):
        raise ValueError(f"data source is {name!r}, expected {_usage(source)!r}.")
    missing = [option for option in _needed(source) if option not in (path_name, *options)]
    if missing:
        raise TypeError(
            f"data source {source!r} needs the option {' and '.join(missing)}, as fs.data.{source} says."
        )
    return function(path, **options) if path_name else function(**options)


def _arguments(source: str) -> tuple[str | None, list[str]]:
    """The name of the path that a source reads, if it reads one, and its options."""
    parameters = inspect.signature(SOURCES[source]).parameters.values()
    path = next(iter(_needed(source)), None)
    return path, [p.name for p in parameters if p.name != path]


def _needed(source: str) -> list[str]:
    """Arguments without a default."""
    parameters = inspect.signature(SOURCES[source]).parameters.values()
    return [p.name for p in parameters if p.default is p.empty]


def _usage(source: str) -> str:
    path, _ = _arguments(source)
    return f"{source}:{path.upper()}" if path else source
