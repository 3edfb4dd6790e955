import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import ndimage

import fedjax_sim as fs
from fedjax_sim._src import keys
from fedjax_sim.data import augmentations as aug

KEY = jax.random.key(0)
IMAGES = jax.random.uniform(jax.random.key(1), (6, 9, 8, 3))

MEMBERS = {
    "shift": aug.shift(2),
    "rotate": aug.rotate(20.0),
    "brightness": aug.brightness(0.5),
    "horizontal_flip": aug.horizontal_flip(mirror_safe=True),
    "cutout": aug.cutout(3),
    "compose": aug.compose(aug.shift(1), aug.rotate(10.0), aug.brightness(0.2)),
}


@pytest.fixture(params=MEMBERS)
def augment(request):
    return MEMBERS[request.param]


# --- every member --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 9, 8, 3), (2, 28, 28, 1), (1, 1, 1, 1), (0, 8, 8, 1)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_shape_and_dtype_stay(augment, shape, dtype):
    out = jax.eval_shape(augment, KEY, jax.ShapeDtypeStruct(shape, dtype))
    assert out.shape == shape and out.dtype == dtype


def test_strict_promotion(augment):
    with jax.numpy_dtype_promotion("strict"):
        jax.eval_shape(augment, KEY, IMAGES)


def test_a_key_decides_everything(augment):
    first, again, other = (augment(jax.random.key(seed), IMAGES) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)


def test_images_differ_from_one_another(augment):
    same = jnp.broadcast_to(IMAGES[:1], (16, *IMAGES.shape[1:]))
    out = np.asarray(augment(KEY, same))
    assert len(np.unique(out.reshape(16, -1), axis=0)) > 1


def test_an_image_does_not_depend_on_the_other_rows(augment):
    whole, part = augment(KEY, IMAGES), augment(KEY, IMAGES[:2])
    np.testing.assert_allclose(whole[:2], part, atol=1e-6)
    changed = augment(KEY, IMAGES.at[3].set(0))
    np.testing.assert_array_equal(whole[:3], changed[:3])


def test_jit_and_vmap_equal_a_loop(augment):
    clients = jax.random.split(KEY, 3)
    images = jnp.stack([IMAGES, IMAGES[::-1], IMAGES * 0.5])
    batched = jax.jit(jax.vmap(augment))(clients, images)
    for i in range(3):
        np.testing.assert_allclose(batched[i], augment(clients[i], images[i]), atol=1e-5)


def test_black_stays_black_and_values_stay_in_range(augment):
    assert not augment(KEY, jnp.zeros_like(IMAGES)).any()
    out = augment(KEY, IMAGES)
    assert out.min() >= 0 and out.max() <= 1 + 1e-6


@pytest.mark.parametrize("images", [jnp.zeros((2, 8, 8)), jnp.zeros((2, 8, 8, 1), jnp.uint8)])
def test_other_inputs_are_refused(augment, images):
    with pytest.raises(ValueError, match=r"got .*\[2, 8, 8.*expected floats \[batch, height, width, channel"):
        augment(KEY, images)


# --- one by one ----------------------------------------------------------------------------------------------


def test_shifts_are_whole_pixels_and_equally_likely():
    dot = jnp.zeros((9_000, 7, 7, 1)).at[:, 3, 3].set(1)
    out = np.asarray(aug.shift(1)(KEY, dot))
    assert (out.sum(axis=(1, 2, 3)) == 1).all()
    where = out.sum(axis=0)[..., 0]
    assert where[2:5, 2:5].sum() == 9_000
    np.testing.assert_allclose(where[2:5, 2:5], 1_000, atol=5 * np.sqrt(1_000))


def test_a_shift_brings_in_zeros():
    out = np.asarray(aug.shift(3)(KEY, jnp.ones((200, 5, 5, 1))))
    assert set(np.unique(out)) == {0.0, 1.0}
    # Up to 3 of 5 rows leave; (2 + 2k) cells and more stay.
    assert out.sum(axis=(1, 2, 3)).min() == 4


def test_a_crop_is_a_window_of_its_image_and_all_are_equally_likely():
    images = jnp.arange(6 * 5 * 2, dtype=jnp.float32).reshape(1, 6, 5, 2) + 100 * jnp.zeros((6_000, 1, 1, 1))
    out = np.asarray(aug.crop(4)(KEY, images))
    assert out.shape == (6_000, 4, 4, 2)
    first = (out[:, 0, 0, 0] / 2).astype(int)
    tops, lefts = np.divmod(first, 5)
    for row in range(30):
        expected = np.asarray(images)[row, tops[row] : tops[row] + 4, lefts[row] : lefts[row] + 4]
        np.testing.assert_array_equal(out[row], expected)
    counts = np.zeros((3, 2))
    np.add.at(counts, (tops, lefts), 1)
    np.testing.assert_allclose(counts, 1_000, atol=5 * np.sqrt(1_000))
    np.testing.assert_array_equal(aug.crop(5)(KEY, images[:, :5]), images[:, :5])  # nowhere else to go


def test_crops_are_keyed_by_row_under_jit_and_vmap():
    crop = aug.crop(4)
    whole = crop(KEY, IMAGES)
    np.testing.assert_array_equal(whole[:2], crop(KEY, IMAGES[:2]))
    clients = jax.random.split(KEY, 2)
    batched = jax.jit(jax.vmap(crop))(clients, jnp.stack([IMAGES, IMAGES]))
    for i in range(2):
        np.testing.assert_array_equal(batched[i], crop(clients[i], IMAGES))
    with jax.numpy_dtype_promotion("strict"):
        assert crop(KEY, IMAGES.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="crop got images of 9 x 8 pixels, expected at least 10 x 10"):
        aug.crop(10)(KEY, IMAGES)


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_cutout_equals_a_loop(size):
    out = np.asarray(aug.cutout(size, fill=-1.0)(KEY, IMAGES))
    for row, image in enumerate(np.array(IMAGES)):
        y, x = np.asarray(jax.random.randint(jax.random.fold_in(KEY, row), (2,), 0, jnp.array([9, 8])))
        y, x = y - size // 2, x - size // 2
        image[max(y, 0) : max(y + size, 0), max(x, 0) : max(x + size, 0)] = -1
        np.testing.assert_array_equal(out[row], image)


def test_rotation_equals_scipy():
    images = jnp.pad(IMAGES, ((0, 0), (6, 6), (6, 6), (0, 0)))  # what lies outside is 0 for both
    out = aug.rotate(180.0)(KEY, images)
    for row, image in enumerate(np.asarray(images)):
        turn = float(jax.random.uniform(jax.random.fold_in(KEY, row), (), jnp.float32, -1.0, 1.0)) * 180
        expected = ndimage.rotate(image, -turn, axes=(0, 1), reshape=False, order=1)
        np.testing.assert_allclose(out[row], expected, atol=1e-4)


def test_brightness_is_a_factor_and_clipped():
    out = np.asarray(aug.brightness(0.3)(KEY, jnp.full((5_000, 2, 2, 1), 0.5)))
    factors = out[:, 0, 0, 0] / 0.5
    assert (out == out[:, :1, :1]).all()
    assert 0.7 <= factors.min() < 0.71 and 1.29 < factors.max() <= 1.3
    assert factors.mean() == pytest.approx(1, abs=0.02)
    assert aug.brightness(1.0)(KEY, jnp.ones((50, 2, 2, 1))).max() == 1


def test_flips_have_their_probability():
    image = jnp.broadcast_to(jnp.array([0.0, 0.5, 1.0])[:, None], (4_000, 2, 3, 1))
    out = np.asarray(aug.horizontal_flip(0.25, mirror_safe=True)(KEY, image))
    flipped = out[:, 0, 0, 0] == 1
    assert flipped.mean() == pytest.approx(0.25, abs=0.04)
    np.testing.assert_array_equal(out[flipped], image[flipped][:, :, ::-1])
    np.testing.assert_array_equal(out[~flipped], image[~flipped])


def test_a_flip_warns_of_symbols():
    with pytest.warns(UserWarning, match="mirrored digit or letter is another symbol.*mirror_safe=True"):
        aug.horizontal_flip()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        aug.horizontal_flip(mirror_safe=True)


def test_composed_augmentations_have_keys_of_their_own():
    dot = jnp.zeros((400, 9, 9, 1)).at[:, 4, 4].set(1)
    out = np.asarray(aug.compose(aug.shift(1), aug.shift(1))(KEY, dot)).sum(axis=0)[..., 0]
    # With one key for both, all moves would be even: 0 or 2 pixels.
    assert out[3, 4] > 0 and out[2, 2] > 0 and out[3, 3] > 0
    np.testing.assert_array_equal(aug.compose()(KEY, IMAGES), IMAGES)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: aug.shift(0), ValueError, "pixels is 0, expected an integer of at least 1"),
        (lambda: aug.shift(1.5), ValueError, "pixels is 1.5"),
        (lambda: aug.rotate(0.0), ValueError, "degrees is 0.0, expected an angle above 0"),
        (lambda: aug.rotate(float("nan")), ValueError, "degrees is nan"),
        (lambda: aug.rotate(181.0), ValueError, "degrees is 181.0"),
        (lambda: aug.brightness(1.5), ValueError, r"delta is 1.5, expected a number in \(0, 1\]"),
        (lambda: aug.horizontal_flip(0.0, mirror_safe=True), ValueError, "probability is 0.0"),
        (lambda: aug.crop(0), ValueError, "size is 0, expected an integer of at least 1"),
        (lambda: aug.cutout(2.5), ValueError, "size is 2.5"),
        (lambda: aug.compose("shift"), TypeError, r"compose got str, expected functions"),
        (lambda: task(augment="shift"), TypeError, r"augment is str, expected a function"),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


# --- in a task -----------------------------------------------------------------------------------------------


def task(augment, **options) -> fs.Task:
    return fs.tasks.classification(
        fs.models.linear(classes=3),
        augment=augment,
        sample_input=jnp.zeros((1, 6, 6, 1), jnp.uint8),
        **options,
    )


BATCH = {
    "x": jax.random.randint(KEY, (4, 6, 6, 1), 0, 256).astype(jnp.uint8),
    "y": jnp.array([0, 1, 2, 0]),
    "mask": jnp.ones(4, bool),
}


def test_evaluation_never_augments():
    plain, augmented = task(None), task(aug.shift(2))
    variables = plain.init(KEY)
    for key in (None, KEY):
        np.testing.assert_array_equal(
            augmented.apply(variables, BATCH, key, train=False)[0],
            plain.apply(variables, BATCH, key, train=False)[0],
        )
    np.testing.assert_array_equal(
        augmented.apply(variables, BATCH, None, train=True)[0],
        plain.apply(variables, BATCH, None, train=True)[0],
    )


def test_training_sees_the_scaled_images_augmented():
    plain, augmented = task(None), task(aug.brightness(0.5))
    variables = plain.init(KEY)
    images = aug.brightness(0.5)(jax.random.fold_in(KEY, keys.AUGMENT), BATCH["x"].astype(jnp.float32) / 255)
    np.testing.assert_allclose(
        augmented.apply(variables, BATCH, KEY, train=True)[0],
        plain.apply(variables, BATCH | {"x": images}, KEY, train=True)[0],
        atol=1e-5,
    )


def test_dropout_is_what_it_was():
    """The augmentation takes nothing from the key that dropout draws from."""
    tasks = [
        fs.tasks.classification(fs.models.emnist_cnn(classes=3), augment=augment)
        for augment in (None, lambda key, images: images)
    ]
    batch = BATCH | {"x": jnp.zeros((4, 10, 10, 1)) + 0.5}
    variables = tasks[0].init(KEY, batch)
    expected, found = (task.apply(variables, batch, KEY, train=True)[0] for task in tasks)
    np.testing.assert_array_equal(found, expected)


def test_an_augmentation_that_changes_the_shape_is_refused():
    cropping = task(lambda key, images: images[:, 1:])
    with pytest.raises(
        ValueError, match=r"augment made float32\[4, 5, 6, 1\] of inputs float32\[4, 6, 6, 1\]"
    ):
        cropping.apply(cropping.init(KEY), BATCH, KEY, train=True)


def test_engines_agree():
    data = fs.data.digits(clients=4, alpha=1.0).train.select([0, 1, 2])
    both = aug.compose(aug.shift(1), aug.rotate(10.0), aug.brightness(0.2))
    models = []
    for augment, engine in (
        (both, fs.engines.sequential()),
        (both, fs.engines.lanes(2)),
        (None, fs.engines.lanes(2)),
    ):
        algorithm = fs.algorithms.fedavg(
            fs.tasks.classification(fs.models.linear(classes=10), augment=augment), optax.sgd(0.1)
        )
        sim = fs.Simulation(
            algorithm,
            data,
            cohort=fs.cohorts.all_clients(),
            local=fs.LocalWork(batch_size=32),
            engine=engine,
        )
        state, _ = sim.run(sim.init(seed=0), rounds=1)
        models.append(jax.tree.map(np.asarray, state.server.variables.params))
    sequential, lanes, plain = models
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), sequential, lanes)
    assert np.abs(plain["Dense_0"]["kernel"] - lanes["Dense_0"]["kernel"]).max() > 1e-3
