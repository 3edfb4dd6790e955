"""Preprocessing: against numpy, and in training and evaluation alike."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim import experiment
from fedjax_sim.data import augmentations as aug
from fedjax_sim.data import preprocessing as pre

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(KEY, (3, 6, 5, 2))
MEMBERS = {
    "normalise": pre.normalise([0.2, 0.4], 0.5),
    "standardise": pre.standardise(),
    "centre_crop": pre.centre_crop(4),
    "compose": pre.compose(pre.centre_crop(3), pre.normalise(0.0, [1.0, 2.0])),
}


@pytest.mark.parametrize("member", MEMBERS.values(), ids=MEMBERS)
def test_rows_are_independent_and_dtypes_stay(member):
    whole = member(IMAGES)
    np.testing.assert_allclose(jax.jit(member)(IMAGES), whole, atol=1e-6)
    np.testing.assert_array_equal(member(IMAGES[1:2]), whole[1:2])
    np.testing.assert_allclose(jax.vmap(member)(IMAGES[None])[0], whole, atol=1e-6)
    with jax.numpy_dtype_promotion("strict"):
        assert member(IMAGES.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    for wrong in (IMAGES[0], IMAGES.astype(jnp.uint8)):
        with pytest.raises(ValueError, match=r"expected floats \[batch, height, width, channels\]"):
            member(wrong)


def test_normalise_equals_numpy():
    mean, std = np.array([0.2, 0.4], np.float32), np.array([0.5, 2.0], np.float32)
    np.testing.assert_allclose(pre.normalise(mean, std)(IMAGES), (np.asarray(IMAGES) - mean) / std, rtol=1e-5)
    np.testing.assert_array_equal(pre.normalise(0.0, 1.0)(IMAGES), IMAGES)


def test_standardise_equals_numpy():
    images = np.array(IMAGES)
    images[1] = 0.7
    found = pre.standardise()(jnp.asarray(images))
    for row in (0, 2):
        np.testing.assert_allclose(
            found[row], (images[row] - images[row].mean()) / images[row].std(), atol=1e-5
        )
    np.testing.assert_allclose(found[1], 0, atol=1e-5)


@pytest.mark.parametrize(("size", "top", "left"), [(5, 0, 0), (4, 1, 0), (3, 1, 1), (2, 2, 1), (1, 2, 2)])
def test_the_middle_is_kept(size, top, left):
    np.testing.assert_array_equal(
        pre.centre_crop(size)(IMAGES), np.asarray(IMAGES)[:, top : top + size, left : left + size]
    )


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: pre.normalise(0.5, 0.0), ValueError, "std is 0.0, expected numbers above 0"),
        (lambda: pre.normalise(float("nan"), 1.0), ValueError, "mean is nan, expected a finite number, or one"),
        (lambda: pre.normalise("half", 1.0), ValueError, "mean is 'half'"),
        (lambda: pre.normalise([], 1.0), ValueError, r"mean is \[\]"),
        (lambda: pre.normalise([0.1, 0.2], [1.0] * 3), ValueError, "mean has 2 numbers and std 3"),
        (lambda: pre.normalise([0.1] * 3, 1.0)(IMAGES), ValueError, "3 numbers of mean for images of 2 channels"),
        (lambda: pre.centre_crop(0), ValueError, "size is 0"),
        (lambda: pre.centre_crop(6)(IMAGES), ValueError, "images of 6 x 5 pixels, expected at least 6 x 6"),
        (lambda: pre.compose(3), TypeError, "compose got int, expected functions images -> images"),
        (lambda: task(preprocess="normalise"), TypeError, "preprocess is str, expected a function inputs -> inputs"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


# --- in a task -----------------------------------------------------------------------------------------------

BATCH = {
    "x": jax.random.randint(KEY, (4, 6, 6, 1), 0, 256).astype(jnp.uint8),
    "y": jnp.array([0, 1, 2, 0]),
    "mask": jnp.ones(4, bool),
}


def task(**options) -> fs.Task:
    return fs.tasks.classification(fs.models.linear(classes=3), **options)


def test_training_and_evaluation_see_the_same():
    step = pre.compose(pre.centre_crop(4), pre.normalise(0.3, 0.2))
    made, plain = task(preprocess=step), task()
    variables = made.init(KEY, BATCH)
    assert variables.params["Dense_0"]["kernel"].shape == (16, 3)
    x = step(BATCH["x"].astype(jnp.float32) * jnp.float32(1 / 255))
    expected, _ = plain.apply(variables, BATCH | {"x": x}, None, train=False)
    for key, train in ((None, False), (KEY, False), (KEY, True)):
        np.testing.assert_allclose(made.apply(variables, BATCH, key, train=train)[0], expected, atol=1e-5)


def test_augmentations_come_first():
    """Brightness clips to [0, 1], which normalised images leave."""
    augment, normal = aug.brightness(0.5), pre.normalise(0.5, 0.1)
    made = task(augment=augment, preprocess=normal)
    variables = made.init(KEY, BATCH)
    x = BATCH["x"].astype(jnp.float32) * jnp.float32(1 / 255)
    seen = normal(augment(jax.random.fold_in(KEY, fs._src.keys.AUGMENT), x))
    expected, _ = task().apply(variables, BATCH | {"x": seen}, None, train=False)
    np.testing.assert_allclose(made.apply(variables, BATCH, KEY, train=True)[0], expected, atol=1e-4)


def test_crops_need_their_counterpart():
    right = task(augment=aug.crop(4), preprocess=pre.centre_crop(4))
    variables = right.init(KEY, BATCH)
    shapes = {right.apply(variables, BATCH, KEY, train=train)[0].shape for train in (True, False)}
    assert shapes == {(4, 3)}
    wrong = task(augment=aug.crop(4))
    match = r"augment made float32\[4, 4, 4, 1\] of inputs float32\[4, 6, 6, 1\].*centre_crop\(size\)"
    with pytest.raises(ValueError, match=match):
        wrong.apply(wrong.init(KEY, BATCH), BATCH, KEY, train=True)


def test_from_settings():
    made = experiment.load(
        changes=[
            "rounds=1", "model.name=linear", "cohort.size=2", "data.clients=4",
            "task.augment=[{name='crop',size=6},'mixup']".replace("'mixup'", "{name='mixup',alpha=0.2}"),
            "task.preprocess=[{name='centre_crop',size=6},{name='normalise',mean=[0.3],std=0.4}]",
        ]
    )  # fmt: skip
    assert made.settings["task"]["preprocess"][1] == {"name": "normalise", "mean": [0.3], "std": 0.4}
