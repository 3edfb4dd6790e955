"""StackOverflow: what people wrote there, for next-word prediction."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from fedjax_sim._src import checks
from fedjax_sim.data import text
from fedjax_sim.data._files import errors_name, parse_json, read_text
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
    known = _counted(Path(vocabulary)) if isinstance(vocabulary, str | Path) else list(vocabulary)
    encoder = text.words(known[:words], oov_buckets=oov_buckets)
    sentences = functools.partial(text.next_token, encoder=encoder, length=length, truncate=True)
    found = tff(present(path, _ORIGIN), columns={"tokens": "tokens"}, decode={"tokens": sentences}, lazy=lazy)
    return Federated(found.train, found.test, name="stackoverflow", classes=encoder.size, notes=found.notes)


def _counted(path: Path) -> list[str]:
    """The words of a file of counts, most frequent first; of equal ones the first in the alphabet."""
    with errors_name(path):
        counts = parse_json(read_text(path))
        if not isinstance(counts, dict) or not all(type(count) is int for count in counts.values()):
            raise ValueError('this is no file of counts, expected JSON: {"word": 123, ...}.')
        return sorted(counts, key=lambda word: (-counts[word], word))
