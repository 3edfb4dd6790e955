"""Tasks look at the columns before training: data that they cannot train on is refused with the row that is wrong."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from fedjax_sim import models, tasks

IMAGES = np.zeros((4, 8, 8, 1), np.uint8)
LABELS = np.array([0, 9, 3, 1])
LETTERS = np.array([[0, 4], [10, -1]])


def with_nan(row):
    x = np.zeros((4, 3), np.float32)
    x[row, 1] = np.nan
    return x


def test_good_columns_pass():
    tasks.classification(models.cnn(10)).check({"x": IMAGES, "y": LABELS})
    tasks.classification(models.cnn(10)).check(
        {"x": jnp.asarray(IMAGES), "y": jnp.asarray(LABELS, jnp.uint8)}
    )
    tasks.classification(models.char_lstm(11)).check({"x": np.array([[0, 10], [1, 2]]), "y": LETTERS})
    tasks.regression(models.linear(1)).check(
        {"x": jnp.zeros((2, 3), jnp.bfloat16), "y": np.array([0.5, -3.0])}
    )
    tasks.from_flax(nn.Dense(3), loss=lambda outputs, batch: outputs[:, 0]).check({"x": np.zeros((2, 4))})


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": IMAGES}, "the data has no column 'y' for the label, it has ['x']"),
        ({"y": LABELS}, "the data has no column 'x' for the input"),
        (
            {"x": IMAGES, "y": np.array([0, 1, 12, 3])},
            "column 'y' holds label 12 at row 2, expected labels in [0, 10)",
        ),
        (
            {"x": IMAGES, "y": np.array([0, -1, 2, 3])},
            "column 'y' holds label -1 at row 1, expected labels in [0, 10)",
        ),
        ({"x": IMAGES, "y": LABELS / 2}, "column 'y' has dtype float64, expected integer labels"),
        ({"x": IMAGES, "y": LABELS[:3]}, "column 'y' has 3 rows and column 'x' 4"),
        ({"x": with_nan(2), "y": LABELS}, "column 'x' holds nan at row 2, expected finite numbers"),
        ({"x": np.array(["a"] * 4), "y": LABELS}, "column 'x' is <U1[4], expected numbers"),
    ],
)
def test_columns_that_a_classification_cannot_train_on(columns, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tasks.classification(models.cnn(10)).check(columns)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"x": np.array([[0, 11], [1, 2]]), "y": LETTERS},
            "column 'x' holds token 11 at row 0, expected tokens in [0, 11)",
        ),
        ({"x": np.zeros((2, 2)), "y": LETTERS}, "column 'x' has dtype float64, expected integer tokens"),
        (
            {"x": np.zeros((2, 2), int), "y": LETTERS - 1},
            "column 'y' holds label -2 at row 1, expected labels in [-1, 11)",
        ),
    ],
)
def test_columns_that_a_language_model_cannot_train_on(columns, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        tasks.classification(models.char_lstm(11)).check(columns)


def test_columns_that_a_regression_cannot_train_on():
    with pytest.raises(ValueError, match="column 'price' holds inf at row 1, expected finite numbers"):
        tasks.regression(models.linear(1), label="price").check(
            {"x": np.zeros((2, 3)), "price": np.array([1.0, np.inf])}
        )


def test_classes_must_be_those_of_the_module():
    with pytest.raises(ValueError, match="classes is 62, but the module has classes=10"):
        tasks.classification(models.cnn(10), classes=62)
    with pytest.raises(ValueError, match="label 3 at row 0, expected labels in"):
        tasks.classification(nn.Dense(3), classes=3).check({"x": np.zeros((1, 4)), "y": np.array([3])})
