"""Several labels of an example, as lists and as 0 or 1; bags of words made in the program."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fedjax_sim as fs
from fedjax_sim import metrics
from fedjax_sim.data import text
from fedjax_sim.data.preprocessing import bag_of_words
from fedjax_sim.tasks import losses, multi_label

WORDS, TAGS = ["a", "b", "c"], ["x", "y", "z", "w"]
ENCODER = text.words(WORDS)
TEXTS = ["a b a d", "", "c c", "d", "b c a a a a a a"]
OWN = [["x", "z"], [], ["w"], ["unknown", "y"], ["z", "y", "x"]]


def batch_of(x, y):
    return {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": jnp.ones(len(x), bool)}


IDS = batch_of(text.padded(TEXTS, ENCODER, 8).astype(np.uint16), text.listed(OWN, TAGS, 3))
DENSE = batch_of(text.bag_of_words(TEXTS, ENCODER), text.several_hot(OWN, TAGS))
OF_IDS = multi_label(fs.models.linear(4), listed=True, preprocess=bag_of_words(3))
OF_BAGS = multi_label(fs.models.linear(4))


def test_ids_and_lists_train_as_bags_and_numbers_for_every_tag():
    """The same parameters, outputs, losses, metrics and gradients, without the arrays of zeros."""
    assert jax.tree.all(
        jax.tree.map(
            lambda a, b: bool((a == b).all()),
            OF_IDS.init(jax.random.key(0), IDS).params,
            OF_BAGS.init(jax.random.key(0), DENSE).params,
        )
    )
    start = OF_BAGS.init(jax.random.key(1), DENSE)

    def measured(task, batch):
        def loss(params):
            outputs, _ = task.apply(start._replace(params=params), batch, None, train=True)
            return task.loss(outputs, batch).mean(), metrics.batch_means(task, outputs, batch)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(start.params)

    for found, expected in zip(
        jax.tree.leaves(measured(OF_IDS, IDS)), jax.tree.leaves(measured(OF_BAGS, DENSE)), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text("abcd ", max_size=15), min_size=1, max_size=5))
def test_bags_in_the_program_are_those_of_text(texts):
    ids = text.padded(texts, ENCODER, 15)
    np.testing.assert_allclose(bag_of_words(3)(ids), text.bag_of_words(texts, ENCODER), rtol=1e-6)
    for bag, whole in zip(bag_of_words(3, of="known")(ids), texts, strict=True):
        known = [word for word in whole.split() if word in WORDS]
        np.testing.assert_allclose(bag, [known.count(word) / max(len(known), 1) for word in WORDS], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.sampled_from([*TAGS, "?"]), max_size=6), max_size=4))
def test_lists_say_what_numbers_for_every_tag_say(own):
    hot = text.several_hot(own, TAGS)
    for row, found in zip(text.listed(own, TAGS, 4), hot, strict=True):
        assert row.tolist() == [*np.flatnonzero(found), *[-1] * (4 - found.sum())]


def metrics_by_hand(logits, hot, k):
    """Counts over all examples, with a plain loop."""
    right = predicted = found = there = 0
    for row, labels in zip(logits, hot, strict=True):
        best = sorted(range(len(row)), key=lambda place: (-row[place], place))[:k]
        right += sum(labels[place] for place in range(len(row)) if row[place] > 0)
        predicted += sum(row > 0)
        found += sum(labels[place] for place in best)
        there += sum(labels)
    return right, predicted, found, there


@pytest.mark.parametrize("k", [1, 2, 5, 20])
@pytest.mark.parametrize("listed", [True, False])
def test_precision_and_recall_are_those_of_a_loop(k, listed):
    generator = np.random.default_rng(k)
    logits = generator.integers(-3, 4, (30, 12)).astype(np.float32)  # with ties
    hot = generator.random((30, 12)) < 0.2
    lists = np.full((30, 12), -1, np.int16)
    for row, labels in zip(lists, hot, strict=True):
        places = generator.permutation(np.flatnonzero(labels))
        row[: len(places)] = places
    batch = {"y": jnp.asarray(lists if listed else hot.astype(np.int32))}
    right, predicted = metrics.precision(listed=listed)(jnp.asarray(logits), batch)
    found, there = metrics.recall_at_k(k, listed=listed)(jnp.asarray(logits), batch)
    assert (right.sum(), predicted.sum(), found.sum(), there.sum()) == metrics_by_hand(logits, hot, k)


def test_more_labels_than_small_integers_hold():
    """int8 lists with labels beyond 127 classes."""
    batch = {"y": jnp.array([[3, -1]], jnp.int8)}
    loss = losses.sigmoid_binary_cross_entropy(listed=True)(
        jnp.full((1, 500), -50.0).at[0, 3].set(50.0), batch
    )
    assert float(loss[0]) < 1e-6


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: bag_of_words(0), ValueError, "words is 0"),
        (lambda: bag_of_words(3, first=-1), ValueError, "first is -1"),
        (lambda: bag_of_words(3, of="some"), ValueError, "of is 'some', expected one of"),
        (lambda: bag_of_words(3)(jnp.zeros((2, 4))), ValueError, r"bag_of_words got float32\[2, 4\], expected ids"),
        (lambda: bag_of_words(3)(jnp.zeros(4, int)), ValueError, r"got int32\[4\], expected ids"),
        (lambda: text.listed([["x", "y"]], TAGS, 1), ValueError, r"labels\[0\] has 2 known labels, expected 1 at most"),
        (lambda: text.listed([["x"]], TAGS, 0), ValueError, "most is 0"),
        (lambda: text.listed([["x"]], ["x", "x"], 2), ValueError, "known holds a label twice"),
        (lambda: metrics.recall_at_k(0), ValueError, "k is 0"),
        (lambda: metrics.precision()(jnp.zeros((2, 4)), IDS), ValueError, r"'y' is \[5, 3\] .*give listed=True"),
        (lambda: OF_IDS.loss(jnp.zeros((2, 4)), {"y": jnp.zeros((2, 4))}), ValueError, r"float32\[2, 4\], .*listed=False"),
        (lambda: OF_IDS.check({"x": np.zeros((1, 2), int), "y": np.array([[4, -1]])}), ValueError, "holds label 4 at row 0"),
        (lambda: OF_IDS.check({"x": np.zeros((1, 2), int), "y": np.array([[-2, -1]])}), ValueError, "label -2"),
        (lambda: OF_IDS.check({"x": np.zeros((1, 2), int), "y": np.ones((1, 2))}), ValueError, "expected integer labels"),
        (lambda: OF_BAGS.check({"x": np.zeros((1, 2)), "y": np.array([[np.nan]])}), ValueError, "holds nan"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
