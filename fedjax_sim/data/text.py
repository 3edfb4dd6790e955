"""Text as columns of integers: vocabularies, windows for next-token prediction, padded sequences, bags of words.

``characters`` and ``words`` make an ``Encoder``; the other functions take it and any list of texts, such as those of one
client, and return plain numpy columns. In labels of sequences -1 is padding, as ``tasks.classification`` expects.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from fedjax_sim._src import checks
from fedjax_sim.data._encoder import Encoder, Split, check_texts, tokens_of

__all__ = [
    "Encoder",
    "bag_of_words",
    "characters",
    "last_token",
    "listed",
    "most_frequent",
    "next_token",
    "padded",
    "several_hot",
    "words",
]

_PRESETS = {
    # The ASCII characters of Shakespeare and Dickens in the order of TFF's text generation tutorial.
    "tff": "dhlptx@DHLPTX $(,048cgkoswCGKOSW[_#'/37;?bfjnrvzBFJNRVZ\"&*.26:\naeimquyAEIMQUY]!%)-159\r",
    # LEAF's, in its order.
    "leaf": "\n !\"&'(),-.0123456789:;>?ABCDEFGHIJKLMNOPQRSTUVWXYZ[]abcdefghijklmnopqrstuvwxyz}",
}


def characters(vocabulary: str = "tff", oov_buckets: int | None = None) -> Encoder:
    """One id for each character.

    - ``"tff"``: 86 characters of Shakespeare and Dickens, 90 ids with padding, begin, end and one bucket; the ids are
      FedJAX's, and the 90 are those of Reddi et al. 2021.
    - ``"leaf"``: LEAF's 80 characters with ids 0 to 79 and no markers. Characters that are none of them are an error;
      LEAF's own code gives them the id -1.
    - any other text: its characters in its order, with markers and one bucket.

    Args:
      vocabulary: ``"tff"``, ``"leaf"``, or the characters themselves, each once.
      oov_buckets: ids for other characters; ``None`` is 0 for ``"leaf"`` and 1 otherwise.

    Raises:
      ValueError: no character, one that comes twice, or a negative number of buckets.

    Source: Reddi et al. 2021 (arXiv 2003.00295), appendix; Caldas et al. 2018 (arXiv 1812.01097).

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.text.characters().size, fs.data.text.characters("leaf").size
      (90, 80)
      >>> fs.data.text.characters("abc").encode("cab!")
      array([5, 3, 4, 6], dtype=int32)
    """
    buckets = (0 if vocabulary == "leaf" else 1) if oov_buckets is None else oov_buckets
    symbols = tuple(_PRESETS.get(vocabulary, vocabulary))
    return Encoder(symbols, "characters", markers=vocabulary != "leaf", oov_buckets=buckets)


def words(
    vocabulary: Sequence[str],
    *,
    oov_buckets: int = 1,
    split: Literal["spaces", "punctuation"] = "spaces",
    lower: bool = False,
) -> Encoder:
    """One id for each word of a vocabulary, such as ``most_frequent`` finds.

    Args:
      vocabulary: words in the order of their ids.
      oov_buckets: ids for other words.
      split: how a text falls into words; see ``Encoder``.
      lower: capitals are made small first.

    Raises:
      TypeError, ValueError: as ``Encoder``.

    Source: the ids are FedJAX's for StackOverflow; with 10,000 words and one bucket there are 10,004.

    Example:
      >>> import fedjax_sim as fs
      >>> texts = ["to be or not to be", "that is the question"]
      >>> encoder = fs.data.text.words(fs.data.text.most_frequent(texts, 2))
      >>> encoder.symbols, encoder.encode("not to be")
      (('be', 'to'), array([5, 4, 3], dtype=int32))
    """
    return Encoder(tuple(check_texts("vocabulary", vocabulary)), split, lower, True, oov_buckets)


def most_frequent(
    texts: Iterable[str], size: int, *, split: Split = "spaces", lower: bool = False
) -> tuple[str, ...]:
    """The most frequent tokens, most frequent first; those that are as frequent in the order of their text.

    Counting clients' words is a query on their data that no epsilon covers: a private run takes a public vocabulary.

    Args:
      texts: of everybody.
      size: how many; fewer where there are not as many.
      split: how a text falls into tokens; see ``Encoder``.
      lower: capitals are made small first.

    Raises:
      TypeError: something that is no text.
      ValueError: ``size`` is no integer of at least 1.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.text.most_frequent(["b a", "c b", "a"], 2)
      ('a', 'b')
    """
    checks.positive_int("size", size)
    counts = collections.Counter(
        token for text in check_texts("texts", texts) for token in tokens_of(text, split, lower)
    )
    return tuple(sorted(counts, key=lambda token: (-counts[token], token))[:size])


def next_token(
    texts: Iterable[str],
    encoder: Encoder,
    length: int,
    *,
    stride: int | None = None,
    join: bool = False,
    truncate: bool = False,
) -> dict[str, np.ndarray]:
    """Windows of texts, and for every position the token that comes next.

    A text is its begin marker, its tokens and its end marker, where the encoder has those. A window holds ``length`` of
    these and is labelled with the ones that follow them. Windows of a text begin ``length`` apart, so every token after
    the first is predicted once; the last window is padded. A text without a second token gives no window.

    - TFF's Shakespeare cuts pieces of ``length + 1`` that do not overlap, and so never predicts the first token of a
      piece: ``stride=length + 1``.
    - FedJAX's Shakespeare joins a client's texts first: ``join=True``.
    - StackOverflow's sentences are cut off after ``length`` tokens: ``truncate=True``, with ``length`` 20.

    Args:
      texts: such as one client's.
      encoder: from ``characters`` or ``words``.
      length: tokens of a window, 1 or more: 80 characters, 20 words.
      stride: tokens from one window's beginning to the next one's; ``length`` by default.
      join: all texts, each with its markers, are one.
      truncate: only the first window of each text is kept.

    Returns:
      ``x``: ``int32[windows, length]``, padded with the encoder's id of padding, with 0 where it has none; ``y``:
      ``int32[windows, length]``, padded with -1.

    Raises:
      TypeError: something that is no text.
      ValueError: a ``length`` or a ``stride`` that is no integer of at least 1, or a token that the encoder refuses.

    Source: McMahan et al. 2017 (arXiv 1602.05629): 80 characters; Reddi et al. 2021 (arXiv 2003.00295).

    Example:
      >>> import fedjax_sim as fs
      >>> encoder = fs.data.text.characters("ABCDE")
      >>> fs.data.text.next_token(["ABCD", "E"], encoder, length=3)["x"]
      array([[1, 3, 4],
             [5, 6, 0],
             [1, 7, 0]], dtype=int32)
      >>> fs.data.text.next_token(["ABCD", "E"], encoder, length=3)["y"]
      array([[ 3,  4,  5],
             [ 6,  2, -1],
             [ 7,  2, -1]], dtype=int32)
    """
    checks.positive_int("length", length)
    stride = length if stride is None else stride
    checks.positive_int("stride", stride)
    ids = [_marked(text, encoder) for text in check_texts("texts", texts)]
    if join:
        ids = [np.concatenate(ids)] if ids else []
    pad = encoder.pad or 0
    inputs, labels = [np.zeros((0, length), np.int32)], [np.zeros((0, length), np.int32)]
    for sequence in ids:
        starts = np.arange(0, len(sequence) - 1, stride)[: 1 if truncate else None]
        places = starts[:, None] + np.arange(length)
        last = max(len(sequence) - 1, 0)
        there = places < last
        places = np.minimum(places, max(last - 1, 0))
        if len(starts):
            inputs.append(np.where(there, sequence[places], pad))
            labels.append(np.where(there, sequence[places + 1], -1))
    return {"x": np.concatenate(inputs, dtype=np.int32), "y": np.concatenate(labels, dtype=np.int32)}


def last_token(texts: Iterable[str], encoder: Encoder, length: int) -> dict[str, np.ndarray]:
    """All windows of ``length`` tokens, each labelled with the one token that follows it, as in LEAF's Shakespeare.

    Windows begin one token apart, so there are about as many examples as tokens, ``8 * length`` bytes each. There are
    no markers and no padding: a text gives ``tokens - length`` windows, and one that is not longer gives none.

    Returns:
      ``x``: ``int32[windows, length]``; ``y``: ``int32[windows, length]``, -1 but for the last position, which is
      what ``tasks.classification`` expects of models that predict at every position.

    Raises:
      TypeError, ValueError: as ``next_token``.

    Source: Caldas et al. 2018, LEAF (arXiv 1812.01097).

    Example:
      >>> import fedjax_sim as fs
      >>> columns = fs.data.text.last_token(["to be"], fs.data.text.characters("leaf"), length=4)
      >>> columns["x"], columns["y"]
      (array([[72, 67,  1, 54]], dtype=int32), array([[-1, -1, -1, 57]], dtype=int32))
    """
    checks.positive_int("length", length)
    inputs, following = [np.zeros((0, length), np.int32)], [np.zeros(0, np.int32)]
    for text in check_texts("texts", texts):
        ids = encoder.encode(text)
        if len(ids) > length:
            inputs.append(np.lib.stride_tricks.sliding_window_view(ids[:-1], length))
            following.append(ids[length:])
    x = np.concatenate(inputs)
    return {"x": x, "y": only_last(np.concatenate(following), length)}


def padded(texts: Iterable[str], encoder: Encoder, length: int) -> np.ndarray:
    """One row for each text: its first ``length`` tokens, then padding, for labels that belong to the whole text.

    Returns:
      ``int32[texts, length]``, without begin and end.

    Raises:
      TypeError: something that is no text.
      ValueError: ``length`` is no integer of at least 1, the encoder has no padding, or refuses a token.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.text.padded(["a b c d", "b"], fs.data.text.words(["a", "b"]), length=3)
      array([[3, 4, 5],
             [4, 0, 0]], dtype=int32)
    """
    checks.positive_int("length", length)
    if encoder.pad is None:
        raise ValueError(
            "the encoder has no id for padding, expected one with markers, such as words([...])."
        )
    texts = check_texts("texts", texts)
    rows = np.full((len(texts), length), encoder.pad, np.int32)
    for row, text in zip(rows, texts, strict=True):
        ids = encoder.encode(text)[:length]
        row[: len(ids)] = ids
    return rows


def bag_of_words(texts: Iterable[str], encoder: Encoder) -> np.ndarray:
    """How often each word of the vocabulary is in a text, as a share of all its tokens, those out of it included.

    Four bytes for every word and text: 40 kB a text with 10,000 words. To make bags while a model trains, of the ids that
    ``padded`` gives, there is ``data.preprocessing.bag_of_words``.

    Returns:
      ``float32[texts, symbols]``; a text without tokens is a row of zeros.

    Raises:
      TypeError: something that is no text.

    Source: StackOverflow's tag prediction in Reddi et al. 2021 (arXiv 2003.00295), with 10,000 words and 500 tags.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.text.bag_of_words(["a b a c"], fs.data.text.words(["a", "b"]))
      array([[0.5 , 0.25]], dtype=float32)
    """
    texts = check_texts("texts", texts)
    first, count = 3 if encoder.markers else 0, len(encoder.symbols)
    bags = np.zeros((len(texts), count), np.float32)
    for bag, text in zip(bags, texts, strict=True):
        ids = encoder.encode(text)
        inside = ids[ids < first + count] - first
        bag[:] = np.bincount(inside, minlength=count) / max(len(ids), 1)
    return bags


def several_hot(labels: Iterable[Iterable[str]], known: Sequence[str]) -> np.ndarray:
    """Several labels for each example, such as tags: 1 where an example has the label; labels not known are left out.

    Args:
      labels: one list for each example.
      known: the labels, in the order of the columns.

    Returns:
      ``int32[examples, known]``, for ``tasks.losses.sigmoid_binary_cross_entropy``.

    Raises:
      TypeError: something that is no text.
      ValueError: a known label that comes twice.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.text.several_hot([["jax", "rust"], []], ["python", "jax"])
      array([[0, 1],
             [0, 0]], dtype=int32)
    """
    rows = _places(labels, known)
    hot = np.zeros((len(rows), len(known)), np.int32)
    for row, own in zip(hot, rows, strict=True):
        row[own] = 1
    return hot


def listed(labels: Iterable[Iterable[str]], known: Sequence[str], most: int) -> np.ndarray:
    """Several labels for each example as a list of which: of 500 tags, five numbers instead of 500.

    Args:
      labels: one list for each example; labels that are not known are left out.
      known: the labels, in the order of their numbers.
      most: length of the rows, 1 or more.

    Returns:
      ``int32[examples, most]``, each known label of an example once, rising, padded with -1; for
      ``tasks.multi_label(model, listed=True)``.

    Raises:
      TypeError: something that is no text.
      ValueError: a known label that comes twice, or an example that has more than ``most`` of them.

    Example:
      >>> import fedjax_sim as fs
      >>> fs.data.text.listed([["jax", "rust", "python"], []], ["python", "jax"], most=3)
      array([[ 0,  1, -1],
             [-1, -1, -1]], dtype=int32)
    """
    checks.positive_int("most", most)
    rows = _places(labels, known)
    found = np.full((len(rows), most), -1, np.int32)
    for place, own in enumerate(rows):
        if len(own) > most:
            raise ValueError(f"labels[{place}] has {len(own)} known labels, expected {most} at most.")
        found[place, : len(own)] = own
    return found


def _places(labels: Iterable[Iterable[str]], known: Sequence[str]) -> list[list[int]]:
    """The numbers of each example's known labels, each once, rising."""
    places = {label: place for place, label in enumerate(check_texts("known", known))}
    if len(places) < len(known):
        raise ValueError("known holds a label twice, expected each once.")
    rows = [check_texts(f"labels[{place}]", own) for place, own in enumerate(labels)]
    return [sorted({places[label] for label in own if label in places}) for own in rows]


def only_last(labels: np.ndarray, length: int) -> np.ndarray:
    """Labels ``[rows]`` as those of the last of ``length`` positions, ``int32[rows, length]``, -1 before it."""
    y = np.full((len(labels), length), -1, np.int32)
    y[:, -1] = labels
    return y


def _marked(text: str, encoder: Encoder) -> np.ndarray:
    ids = encoder.encode(text)
    return np.concatenate([[1], ids, [2]]).astype(np.int32) if encoder.markers else ids
