"""Metrics: pairs (total, weight) that add up; padding counts nothing."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim import metrics

TASK = fs.Task(
    init=lambda key, sample=None: fs.Variables(()),
    apply=lambda variables, batch, key, *, train: (batch["x"], ()),
    loss=lambda outputs, batch: jnp.sum(outputs, axis=-1),
    metrics={"accuracy": metrics.accuracy(), "top2": metrics.top_k_accuracy(2)},
)


def batch_of(x, y, mask=None):
    mask = jnp.ones(len(x), bool) if mask is None else jnp.asarray(mask)
    return {"x": jnp.asarray(x), "y": jnp.asarray(y), "mask": mask}


def test_mean_is_total_over_weight_and_0_where_there_is_nothing():
    got = metrics.mean(fs.Mean(jnp.array([3.0, 0.0, 5.0]), jnp.array([2.0, 0.0, 0.0])))
    assert got.tolist() == [1.5, 0.0, 0.0]


def test_adding_two_gives_the_mean_over_both():
    """Not the mean of the means."""
    a = {"loss": fs.Mean(jnp.float32(1.0), jnp.float32(1.0))}
    b = {"loss": fs.Mean(jnp.float32(9.0), jnp.float32(3.0))}
    assert float(metrics.mean(metrics.add(a, b)["loss"])) == 2.5


def test_metrics_of_parts_add_up_to_those_of_the_whole():
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(10, 4)).astype(np.float32), generator.integers(0, 4, 10)
    whole = metrics.batch_means(TASK, jnp.asarray(x), batch_of(x, y))
    parts = [
        metrics.batch_means(TASK, jnp.asarray(x[s]), batch_of(x[s], y[s])) for s in (slice(3), slice(3, 10))
    ]
    for name, value in metrics.add(*parts).items():
        np.testing.assert_allclose(value.total, whole[name].total, rtol=1e-6)
        assert float(value.weight) == 10


def test_accuracy_counts_the_largest_logit_and_leaves_negative_labels_out():
    outputs = jnp.array([[[0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]])
    total, weight = metrics.accuracy()(outputs, {"y": jnp.array([[1, 1, -1]])})
    assert (total.tolist(), weight.tolist()) == ([1.0], [2.0])


def test_top_k_accuracy_equals_a_sort():
    generator = np.random.default_rng(1)
    outputs, labels = generator.normal(size=(50, 6)), generator.integers(0, 6, 50)
    ranks = np.argsort(np.argsort(-outputs, axis=1), axis=1)[np.arange(50), labels]
    for k in range(7):
        got, _ = metrics.top_k_accuracy(k)(jnp.asarray(outputs), {"y": jnp.asarray(labels)})
        np.testing.assert_array_equal(got, ranks < k)


def test_top_1_accuracy_is_accuracy_also_with_ties():
    outputs = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [2.0, 2.0, 2.0]])
    for label in range(3):
        batch = {"y": jnp.full(3, label)}
        first, second = metrics.top_k_accuracy(1)(outputs, batch), metrics.accuracy()(outputs, batch)
        np.testing.assert_array_equal(first[0], second[0])


def test_a_model_of_nan_has_no_label_among_its_largest():
    outputs = jnp.full((4, 10), jnp.nan)
    assert metrics.top_k_accuracy(3)(outputs, {"y": jnp.array([0, 1, 5, 9])})[0].tolist() == [0.0] * 4
    outputs = jnp.arange(10.0).at[3].set(jnp.nan)[None].repeat(2, axis=0)
    assert metrics.top_k_accuracy(1)(outputs, {"y": jnp.array([9, 3])})[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize("metric", [metrics.binary_accuracy(), metrics.squared_error()])
def test_outputs_of_one_column_fit_labels_without_one(metric):
    """As in the losses, and whoever gives the metric; other shapes would pair every output with every label."""
    outputs, labels = jnp.array([[2.0], [-1.0], [0.5]]), jnp.array([1.0, 0.0, 1.0])
    got, same = metric(outputs, {"y": labels}), metric(outputs[:, 0], {"y": labels})
    for a, b in zip(got, same, strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(ValueError, match=r"the outputs have shape \[3\] and column 'y' \[3, 1\]"):
        metric(outputs[:, 0], {"y": labels[:, None]})


def test_squared_error_is_the_mean_over_an_examples_outputs():
    total, weight = metrics.squared_error()(
        jnp.array([[1.0, 3.0], [0.0, 0.0]]), {"y": jnp.array([[0, 0], [1, 0]])}
    )
    assert (total.tolist(), weight.tolist()) == ([5.0, 0.5], [1.0, 1.0])


def test_padding_counts_nothing_whatever_the_model_made_of_it():
    x = jnp.array([[1.0, 2.0], [jnp.nan, jnp.inf]])
    measured = metrics.batch_means(TASK, x, batch_of(x, [1, 0], [True, False]))
    assert {name: (float(m.total), float(m.weight)) for name, m in measured.items()} == {
        "loss": (3.0, 1.0),
        "accuracy": (1.0, 1.0),
        "top2": (1.0, 1.0),
    }


def test_example_values_are_per_example():
    values = metrics.example_values(TASK, jnp.eye(3), batch_of(jnp.eye(3), [0, 0, 2], [True, True, False]))
    assert values["accuracy"].total.tolist() == [1.0, 0.0, 0.0]
    assert values["accuracy"].weight.tolist() == [1.0, 1.0, 0.0]
    assert values["loss"].total.dtype == jnp.float32


@pytest.mark.parametrize("name", metrics.__all__)
def test_every_public_name_is_there(name):
    assert callable(getattr(metrics, name))


def test_binary_accuracy_is_that_of_a_loop():
    outputs = np.array([[0.3, -0.2], [0.0, 5.0], [-1.0, -2.0]], np.float32)
    labels = np.array([[1, 1], [0, 1], [1, 0]], np.int32)
    right, counted = metrics.binary_accuracy()(jnp.asarray(outputs), {"y": jnp.asarray(labels)})
    expected = [
        np.mean([(logit > 0) == label for logit, label in zip(*row, strict=True)])
        for row in zip(outputs, labels, strict=True)
    ]
    np.testing.assert_allclose(right, expected)
    assert counted.tolist() == [1, 1, 1]
