"""StackOverflow: what people wrote there, for next-word prediction and for the prediction of a post's tags."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data import text
from fedjax_sim.data._vocabulary import most_frequent
from fedjax_sim.data.client_data import ClientData
from fedjax_sim.data.client_source import Clients, ClientSource
from fedjax_sim.data.federated import Federated
from fedjax_sim.data.formats.tff import tff
from fedjax_sim.data.presets._local import present

_ORIGIN = "TensorFlow Federated: tff.simulation.datasets.stackoverflow.load_data() leaves the file in its cache folder"


def stackoverflow(
    path: str | Path,
    *,
    vocabulary: str | Path | Sequence[str],
    words: int = 10_000,
    length: int = 20,
    oov_buckets: int = 1,
    lazy: bool = True,
) -> Federated:
    """StackOverflow by person, for next-word prediction: TFF's file, its sentences as ids of the most frequent words.

    Every sentence is one example, cut off after ``length`` words. Columns: ``x`` is ``int32[examples, length]``, padded with 0; ``y``
    is ``int32[examples, length]``, the word that comes next, padded with -1. Ids are 0 for padding, 1 for the beginning, 2 for the
    end, then the vocabulary, then the buckets of other words. The accuracy that is reported leaves words out that a person
    did not choose: ``fs.metrics.accuracy(leave_out=...)`` of the encoder ``fs.data.text.words(vocabulary)``.

    Args:
      path: TFF's ``stackoverflow.sqlite``, or a folder with its HDF5 files; see ``tff``.
      vocabulary: words, most frequent first, or TFF's JSON file of counts, ``{word: how often}``. It must be public: counting
        the clients' own words is a query on their data.
      words: how many of the most frequent are kept.
      length: words of a sentence, 20 in the literature.
      oov_buckets: ids for all other words.
      lazy: read people when they are wanted: there are 342,477.

    Raises:
      FileNotFoundError: there is no such file; says where to get it.
      ValueError: a file is damaged or of another kind; as ``tff``.

    Source: Reddi et al. 2021 (arXiv 2003.00295), appendix C; TFF's stackoverflow and its word counts.

    Example:
      >>> import tempfile, h5py, fedjax_sim as fs
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with h5py.File(folder + "/so_train.h5", "w") as file:
      ...         file["examples/ann/tokens"] = ["how do i sort a list", "use sort"]
      ...     data = fs.data.stackoverflow(folder + "/so_train.h5", vocabulary=["a", "sort"], length=4, lazy=False)
      >>> data.train.columns["x"].tolist(), data.train.columns["y"].tolist()
      ([[1, 5, 5, 5], [1, 5, 4, 0]], [[5, 5, 5, 4], [5, 4, 2, -1]])
    """
    checks.positive_int("words", words)
    encoder = text.words(most_frequent(vocabulary, words), oov_buckets=oov_buckets)
    sentences = functools.partial(text.next_token, encoder=encoder, length=length, truncate=True)
    found = tff(present(path, _ORIGIN), columns={"tokens": "tokens"}, decode={"tokens": sentences}, lazy=lazy)
    return Federated(found.train, found.test, name="stackoverflow", classes=encoder.size, notes=found.notes)


def stackoverflow_tags(
    path: str | Path,
    *,
    vocabulary: str | Path | Sequence[str],
    tags: str | Path | Sequence[str],
    words: int = 10_000,
    classes: int = 500,
    length: int = 128,
    most: int = 5,
    lazy: bool = True,
) -> Federated:
    """StackOverflow by person, for the prediction of tags: TFF's file, texts as ids of words and their tags as lists.

    An example is what was written and then its title. Columns: ``x`` is ``[examples, length]``, ids of words, uint16 where
    they fit, else int32: 0 is padding, the vocabulary begins at 3, and the last id is all other words. ``y`` is ``int32[examples,
    most]``, which tags it has, padded with -1. With the defaults that is 276 B an example, where a bag of words and a number for each
    tag would take 42 kB; the bag is made in the program. The task and the model of the literature, logistic regression:

        bag = fs.data.preprocessing.bag_of_words(words=10_000)
        task = fs.tasks.multi_label(fs.models.linear(classes=500), listed=True, preprocess=bag)

    Args:
      path: TFF's ``stackoverflow.sqlite``, or a folder with its HDF5 files; see ``tff``.
      vocabulary: words, most frequent first, or TFF's JSON file of counts, ``{word: how often}``. It must be public.
      tags: likewise, of tags.
      words: how many of the most frequent words are kept; give ``bag_of_words`` as many as there are then.
      classes: how many of the most frequent tags are kept; others are left out.
      length: words of an example; what is longer is cut off, and its bag is that of what is left.
      most: tags of an example, 5 on the site.
      lazy: read people when they are wanted: there are 342,477.

    Raises:
      FileNotFoundError: there is no such file; says where to get it.
      ValueError: a file is damaged or of another kind, as ``tff``; an example has more than ``most`` tags.

    Source: Reddi et al. 2021 (arXiv 2003.00295), appendix C; TFF's ``create_tag_prediction_task``, whose shares are
    ``bag_of_words(words, of="known")``.

    Example:
      >>> import tempfile, h5py, fedjax_sim as fs
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     with h5py.File(folder + "/so_train.h5", "w") as file:
      ...         ann = {"tokens": ["sort a list"], "title": ["sort it"], "tags": ["python|sorting|rust"]}
      ...         file.update({f"examples/ann/{name}": values for name, values in ann.items()})
      ...     path, known = folder + "/so_train.h5", {"vocabulary": ["a", "sort"], "tags": ["python", "rust"]}
      ...     data = fs.data.stackoverflow_tags(path, **known, length=6, most=3, lazy=False)
      >>> data.train.columns["x"].tolist(), data.train.columns["y"].tolist()
      ([[4, 3, 5, 4, 5, 0]], [[0, 1, -1]])
    """
    for name, value in (("words", words), ("classes", classes), ("length", length), ("most", most)):
        checks.positive_int(name, value)
    encoder, known = text.words(most_frequent(vocabulary, words)), most_frequent(tags, classes)
    ids = functools.partial(text.padded, encoder=encoder, length=length)
    found = tff(
        present(path, _ORIGIN),
        columns={name: name for name in ("tokens", "title", "tags")},
        decode={
            "tokens": ids,
            "title": ids,
            "tags": lambda values: text.listed([value.split("|") for value in values], known, most),
        },
        lazy=lazy,
    )
    narrow = np.dtype(np.uint16 if encoder.size <= 1 << 16 else np.int32)
    parts = (_posts(part, length, narrow) for part in (found.train, found.test))
    return Federated(*parts, name="stackoverflow_tags", classes=len(known), notes=found.notes)


def _posts(data: Clients, length: int, dtype: np.dtype) -> Clients:
    if isinstance(data, ClientData):
        return ClientData(_joined(data.columns, length, dtype), data.offsets, data.ids)
    return _Posts(data, length, dtype)


class _Posts(ClientSource):
    """What people wrote and its title as one text, joined when it is wanted."""

    def __init__(self, source: ClientSource, length: int, dtype: np.dtype):
        tags = source.columns["tags"]
        specs = {
            "x": jax.ShapeDtypeStruct((length,), dtype),
            "y": jax.ShapeDtypeStruct(tags.shape[1:], tags.dtype),
        }
        super().__init__(source.sizes, specs, source.ids)
        self._source, self._length, self._dtype = source, length, dtype

    def make(self, client: int) -> dict[str, np.ndarray]:
        return _joined(self._source.make(client), self._length, self._dtype)


def _joined(columns: Mapping[str, np.ndarray], length: int, dtype: np.dtype) -> dict[str, np.ndarray]:
    """Text and title, ids padded with 0, as one row of the length."""
    ids = np.concatenate([columns["tokens"], columns["title"]], axis=1)
    order = np.argsort(ids == 0, axis=1, kind="stable")
    return {
        "x": np.take_along_axis(ids, order, axis=1)[:, :length].astype(dtype),
        "y": np.asarray(columns["tags"]),
    }
