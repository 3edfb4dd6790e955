"""Text as columns: against plain loops, and what encoders refuse."""

from __future__ import annotations

import collections

import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim import metrics
from fedjax_sim.data import text

TFF, LEAF = text.characters(), text.characters("leaf")
WORDS = text.words(["a", "b", "c"], oov_buckets=2)
TEXTS = st.lists(st.text("ab c\nZ", max_size=25), max_size=5)


# --- encoders ------------------------------------------------------------------------------------------------


def test_the_fields_vocabularies():
    assert (len(TFF.symbols), TFF.size, TFF.pad, TFF.begin, TFF.end, TFF.oov) == (86, 90, 0, 1, 2, (89,))
    assert (LEAF.size, LEAF.pad, LEAF.begin, LEAF.end, LEAF.oov, LEAF.no_words) == (
        80,
        None,
        None,
        None,
        (),
        (),
    )
    assert LEAF.symbols[0] == "\n" and LEAF.symbols == tuple(sorted(LEAF.symbols))
    assert TFF.symbols[:3] == ("d", "h", "l") and TFF.no_words == (0, 1, 2, 89)
    assert text.words([str(i) for i in range(10_000)]).size == 10_004


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30))
def test_characters_are_looked_up(whole):
    ids = TFF.encode(whole)
    places = {character: 3 + place for place, character in enumerate(TFF.symbols)}
    assert ids.tolist() == [places.get(character, 89) for character in whole] and ids.dtype == np.int32
    assert TFF.decode(ids) == "".join(c if c in places else "\N{REPLACEMENT CHARACTER}" for c in whole)


@settings(max_examples=50, deadline=None)
@given(st.text("abcxyz \t\n", max_size=30))
def test_words_are_looked_up_and_buckets_are_stable(whole):
    ids = WORDS.encode(whole).tolist()
    assert len(ids) == len(whole.split())
    for word, i in zip(whole.split(), ids, strict=True):
        assert i == 3 + "abc".index(word) if word in ("a", "b", "c") else i in (6, 7)
        assert WORDS.encode(word).tolist() == [i]


def test_ways_to_split():
    tweet = "@Bo: it's FUN, isn't it?! \N{SNOWMAN}"
    encoder = text.words(["it's", "fun", ",", "?", "!"], split="punctuation", lower=True)
    assert encoder.encode(tweet).tolist() == [8, 3, 4, 5, 8, 8, 6, 7]
    assert text.words(["it's"]).encode(tweet).tolist() == [4, 3, 4, 4, 4, 4]
    assert WORDS.encode("").tolist() == [] and WORDS.decode([0, 1, 2]) == ""
    assert TFF.encode("\ud800").tolist() == [89]  # half a character, as JSON may hold


@settings(max_examples=50, deadline=None)
@given(st.lists(st.text("ab ", max_size=12), max_size=6), st.integers(1, 8))
def test_most_frequent_is_a_sort(texts, size):
    counts = collections.Counter(word for whole in texts for word in whole.split())
    expected = sorted(sorted(counts), key=lambda word: -counts[word])[:size]
    assert list(text.most_frequent(texts, size)) == expected
    assert text.most_frequent(reversed(texts), size) == tuple(expected)


# --- columns -------------------------------------------------------------------------------------------------


def windows(texts, encoder, length, stride, join, truncate):
    """What ``next_token`` promises, a position at a time."""
    sequences = [
        ([1] if encoder.markers else []) + encoder.encode(t).tolist() + ([2] if encoder.markers else [])
        for t in texts
    ]
    sequences = [[i for sequence in sequences for i in sequence]] if join and sequences else sequences
    x, y = [], []
    for sequence in sequences:
        for start in range(0, len(sequence) - 1, stride):
            if truncate and start:
                break
            row_x, row_y = [], []
            for place in range(start, start + length):
                there = place + 1 < len(sequence)
                row_x.append(sequence[place] if there else 0)
                row_y.append(sequence[place + 1] if there else -1)
            x.append(row_x)
            y.append(row_y)
    return x, y


@settings(max_examples=80, deadline=None)
@given(
    TEXTS,
    st.integers(1, 7),
    st.integers(1, 9),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["ab c\nZ", "leaf", "tff"]),
)
def test_windows_equal_a_loop(texts, length, stride, join, truncate, vocabulary):
    encoder = text.characters(vocabulary)
    columns = text.next_token(texts, encoder, length, stride=stride, join=join, truncate=truncate)
    x, y = windows(texts, encoder, length, stride, join, truncate)
    assert columns["x"].shape == columns["y"].shape == (len(x), length)
    assert columns["x"].dtype == columns["y"].dtype == np.int32
    assert columns["x"].tolist() == x and columns["y"].tolist() == y


@settings(max_examples=40, deadline=None)
@given(TEXTS, st.integers(1, 9))
def test_every_token_is_predicted_once(texts, length):
    y = text.next_token(texts, TFF, length)["y"]
    assert y[y >= 0].tolist() == [i for whole in texts for i in [*TFF.encode(whole), 2]]


def test_tff_loses_the_first_token_of_a_piece():
    """Its pieces of length + 1 do not overlap."""
    y = text.next_token(["abcdef"], text.characters("abcdef"), 3, stride=4)["y"]
    assert y.tolist() == [[3, 4, 5], [7, 8, 2]]


def test_a_sentence_is_cut_off():
    columns = text.next_token(["a b c a b", "c"], WORDS, 3, truncate=True)
    assert columns["x"].tolist() == [[1, 3, 4], [1, 5, 0]] and columns["y"].tolist() == [
        [3, 4, 5],
        [5, 2, -1],
    ]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("ab \n", max_size=20), max_size=4), st.integers(1, 6))
def test_last_tokens_equal_a_loop(texts, length):
    columns = text.last_token(texts, LEAF, length)
    expected = [(t[i : i + length], t[i + length]) for t in texts for i in range(len(t) - length)]
    assert columns["x"].shape == columns["y"].shape == (len(expected), length)
    assert [
        (LEAF.decode(x), LEAF.decode(y[-1:])) for x, y in zip(columns["x"], columns["y"], strict=True)
    ] == expected
    assert (columns["y"][:, :-1] == -1).all()


def test_rows_are_padded_or_cut():
    rows = text.padded(["a b c a", "", "c"], WORDS, 3)
    assert rows.tolist() == [[3, 4, 5], [0, 0, 0], [5, 0, 0]] and rows.dtype == np.int32
    assert text.padded([], WORDS, 3).shape == (0, 3)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abcd ", max_size=15), max_size=5))
def test_bags_equal_a_loop(texts):
    bags = text.bag_of_words(texts, WORDS)
    assert bags.shape == (len(texts), 3) and bags.dtype == np.float32
    for bag, whole in zip(bags, texts, strict=True):
        said = whole.split()
        np.testing.assert_allclose(bag, [said.count(word) / max(len(said), 1) for word in "abc"], rtol=1e-6)


def test_tags():
    assert text.several_hot([["x", "z"], ["y", "x"], []], ["x", "y"]).tolist() == [[1, 0], [1, 1], [0, 0]]
    assert text.several_hot([], ["x"]).shape == (0, 1)


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: text.characters(""), ValueError, "symbols is empty"),
        (lambda: text.characters("aba"), ValueError, "symbols holds 'a' twice"),
        (lambda: text.characters("ab", oov_buckets=-1), ValueError, "oov_buckets is -1"),
        (lambda: text.words("ab"), TypeError, "vocabulary is str, expected a list of str"),
        (lambda: text.words(["a", 3]), TypeError, r"vocabulary\[1\] is int, expected str"),
        (lambda: text.words(["a b"]), ValueError, "symbols holds 'a b', which split='spaces', lower=False never makes"),
        (lambda: text.words(["A"], lower=True), ValueError, "symbols holds 'A'.*lower=True never makes"),
        (lambda: text.words(["a"], split="lines"), ValueError, "split is 'lines', expected one of"),
        (lambda: text.most_frequent(["a"], 0), ValueError, "size is 0"),
        (lambda: text.most_frequent([None], 1), TypeError, r"texts\[0\] is NoneType"),
        (lambda: WORDS.encode(b"a"), TypeError, "text is bytes, expected str"),
        (lambda: WORDS.decode([8]), ValueError, "ids hold 8, expected 0 to 7"),
        (lambda: LEAF.encode("5$"), ValueError, r"holds '\$', which is none of the 80 symbols.*oov_buckets=1"),
        (lambda: text.next_token("abc", TFF, 3), TypeError, r"texts is str, expected a list.*\[text\]"),
        (lambda: text.next_token(["abc"], TFF, 0), ValueError, "length is 0"),
        (lambda: text.next_token(["abc"], TFF, 3, stride=0), ValueError, "stride is 0"),
        (lambda: text.last_token(["abc"], LEAF, 1.5), ValueError, "length is 1.5"),
        (lambda: text.padded(["a"], LEAF, 3), ValueError, "the encoder has no id for padding"),
        (lambda: text.several_hot([["x"]], ["x", "x"]), ValueError, "known holds a label twice"),
        (lambda: text.several_hot(["x"], ["x"]), TypeError, r"labels\[0\] is str, expected a list"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


# --- metrics and training ------------------------------------------------------------------------------------


def test_accuracy_without_markers_equals_a_loop():
    generator = np.random.default_rng(0)
    outputs = generator.normal(size=(6, 9, WORDS.size)).astype(np.float32)
    labels = generator.integers(-1, WORDS.size, (6, 9))
    total, weight = metrics.accuracy(leave_out=WORDS.no_words)(
        jnp.asarray(outputs), {"y": jnp.asarray(labels)}
    )
    for row in range(6):
        counted = [place for place in range(9) if labels[row, place] in (3, 4, 5)]
        hits = sum(outputs[row, place].argmax() == labels[row, place] for place in counted)
        assert (float(total[row]), float(weight[row])) == (hits, len(counted))


def test_a_model_trains_on_windows():
    """Two clients, one text each: the model learns what comes next, and padding counts nothing."""
    encoder = text.characters("ab")
    data = fs.data.ClientData.from_clients(
        {who: text.next_token(["abab" * 4, "ab"], encoder, 6) for who in ("ann", "bo")}
    )
    task = fs.tasks.classification(
        fs.models.char_lstm(encoder.size, hidden=8, layers=1),
        metrics={"accuracy": metrics.accuracy(), "words": metrics.accuracy(leave_out=encoder.no_words)},
    )
    sim = fs.Simulation(fs.algorithms.fedavg(task, optax.sgd(2.0)), data, cohort=fs.cohorts.all_clients(),
                        local=fs.LocalWork(batch_size=4, epochs=10))  # fmt: skip
    state, _ = sim.run(sim.init(seed=0), rounds=4)
    found = sim.evaluate(state, data)
    assert found.examples["words"] > 0.9 and found.examples["accuracy"] < found.examples["words"] + 1e-6
