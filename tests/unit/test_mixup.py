"""Rows that are mixed: who with whom, what a task makes of it, and that engines agree."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_sim as fs
from fedjax_sim import metrics
from fedjax_sim._src import keys
from fedjax_sim.data import augmentations as aug
from fedjax_sim.data import preprocessing as pre
from fedjax_sim.tasks import losses
from fedjax_sim.tasks._mixing import Mixed

KEY = jax.random.key(0)
X = jax.random.uniform(jax.random.key(1), (7, 4, 3, 2))
MASK = jnp.array([True, False, True, True, False, True, True])
MIX = aug.mixup(0.7)


def test_rows_are_means_of_two_real_rows():
    images, partner, share = MIX.mix(KEY, X * MASK[:, None, None, None], MASK)
    for row in range(7):
        expected = share[row] * X[row] + (1 - share[row]) * X[partner[row]]
        if MASK[row]:
            assert MASK[partner[row]] and 0 <= share[row] <= 1
            np.testing.assert_allclose(images[row], expected, atol=1e-6)
        else:
            assert partner[row] == row and share[row] == 1 and not images[row].any()
    assert images.dtype == jnp.float32 and partner.dtype == jnp.int32 and share.dtype == jnp.float32


def test_padding_has_no_say():
    """As many real rows first, and less or more padding after them: the same mixture."""
    whole = MIX.mix(KEY, X, jnp.arange(7) < 4)
    part = MIX.mix(KEY, X[:4], jnp.ones(4, bool))
    noisy = MIX.mix(KEY, X.at[4:].set(jnp.nan), jnp.arange(7) < 4)
    for a, b, c in zip(whole, part, noisy, strict=True):
        np.testing.assert_array_equal(a[:4], b)
        np.testing.assert_array_equal(a[:4], c[:4])


def test_shares_and_partners_have_their_law():
    rows, alpha = 10_000, 0.4
    _, partner, share = aug.mixup(alpha).mix(KEY, jnp.zeros((rows, 1)), jnp.arange(rows) < rows - 1)
    share = np.asarray(share)[:-1]
    assert share.mean() == pytest.approx(0.5, abs=0.02)
    assert share.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), abs=0.01)  # of Beta(alpha, alpha)
    assert abs(np.corrcoef(np.arange(rows - 1), partner[:-1])[0, 1]) < 0.05
    few = np.asarray(aug.mixup(1.0).mix(KEY, jnp.zeros((9_000, 1)), jnp.arange(9_000) % 3_000 == 0).partner)
    assert set(few[::3000]) <= {0, 3000, 6000}
    one = [
        int(MIX.mix(jax.random.key(i), jnp.zeros((3, 1)), jnp.ones(3, bool)).partner[0]) for i in range(60)
    ]
    assert set(one) == {0, 1, 2}


def test_a_row_alone_and_an_empty_batch_stay():
    np.testing.assert_allclose(MIX.mix(KEY, X[:1], jnp.ones(1, bool)).images, X[:1], atol=1e-6)
    mixture = MIX.mix(KEY, X, jnp.zeros(7, bool))
    np.testing.assert_array_equal(mixture.images, X)
    assert mixture.partner.tolist() == list(range(7))
    assert MIX.mix(KEY, X[:0], jnp.zeros(0, bool)).images.shape == (0, 4, 3, 2)


def test_jit_vmap_and_strict_dtypes():
    clients = jax.random.split(KEY, 3)
    batched = jax.jit(jax.vmap(MIX.mix, in_axes=(0, None, None)))(clients, X, MASK)
    for i in range(3):
        for a, b in zip(batched, MIX.mix(clients[i], X, MASK), strict=True):
            np.testing.assert_allclose(a[i], b, atol=1e-6)
    with jax.numpy_dtype_promotion("strict"):
        narrow = jax.eval_shape(MIX.mix, KEY, X.astype(jnp.bfloat16), MASK)
    assert narrow.images.dtype == jnp.bfloat16 and narrow.images.shape == X.shape


def test_composed_with_functions_of_images():
    steps = (aug.shift(1), MIX, aug.cutout(2))
    both = aug.compose(*steps)
    assert isinstance(both, aug.Mixing) and both.name == "mixup"
    images = steps[0](jax.random.fold_in(KEY, 0), X)
    mixture = MIX.mix(jax.random.fold_in(KEY, 1), images, MASK)
    images = steps[2](jax.random.fold_in(KEY, 2), mixture.images)
    for a, b in zip(both.mix(KEY, X, MASK), mixture._replace(images=images), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: aug.mixup(0.0), ValueError, "alpha is 0.0, expected a finite number above 0"),
        (lambda: aug.mixup("much"), TypeError, "alpha is 'much'"),
        (lambda: aug.compose(MIX, MIX), ValueError, "compose got mixup and mixup, expected at most one"),
        (lambda: MIX(KEY, X), TypeError, r"mixup mixes rows and so their labels.*mix\(key, images, mask\)"),
        (lambda: MIX.mix(KEY, jnp.zeros((2, 3), int), MASK[:2]), ValueError, r"mixup got int32\[2, 3\], expected floats"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


# --- in a task -----------------------------------------------------------------------------------------------

BATCH = {
    "x": jax.random.randint(KEY, (7, 4, 4, 1), 0, 256).astype(jnp.uint8),
    "y": jnp.array([0, 1, 2, 0, 2, 1, 1]),
    "mask": MASK,
}


def task(**options) -> fs.Task:
    return fs.tasks.classification(
        fs.models.linear(classes=3), sample_input=jnp.zeros((1, 4, 4, 1), jnp.uint8), **options
    )


def test_loss_and_accuracy_are_those_of_both_labels():
    mixing = task(augment=MIX)
    variables = mixing.init(KEY)
    outputs, _ = mixing.apply(variables, BATCH, KEY, train=True)
    assert isinstance(outputs, Mixed)
    x, partner, share = MIX.mix(
        jax.random.fold_in(KEY, keys.AUGMENT), BATCH["x"].astype(jnp.float32) * jnp.float32(1 / 255), MASK
    )
    logits = np.asarray(task().apply(variables, BATCH | {"x": x}, None, train=False)[0])
    np.testing.assert_allclose(outputs.outputs, logits, atol=1e-5)
    log_probability = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    loss, hits = np.zeros(7), np.zeros(7)
    for row in range(7):
        for weight, label in ((share[row], BATCH["y"][row]), (1 - share[row], BATCH["y"][partner[row]])):
            loss[row] -= weight * log_probability[row, label]
            hits[row] += weight * (logits[row].argmax() == label)
    np.testing.assert_allclose(mixing.loss(outputs, BATCH), loss, rtol=1e-5)
    total, weight = mixing.metrics["accuracy"](outputs, BATCH)
    np.testing.assert_allclose(total, hits, atol=1e-5)
    np.testing.assert_allclose(weight, 1, atol=1e-6)
    measured = metrics.batch_means(mixing, outputs, BATCH)
    assert float(measured["accuracy"].weight) == pytest.approx(5)


def test_evaluation_is_plain():
    mixing, plain = task(augment=MIX), task()
    variables = plain.init(KEY)
    for key, train in ((None, False), (KEY, False), (None, True)):
        outputs, expected = (t.apply(variables, BATCH, key, train=train)[0] for t in (mixing, plain))
        np.testing.assert_array_equal(outputs, expected)
        np.testing.assert_array_equal(mixing.loss(outputs, BATCH), plain.loss(outputs, BATCH))


def test_a_loss_of_ones_own_mixes_its_columns():
    weighted = losses.softmax_cross_entropy()
    own = fs.tasks.from_flax(
        fs.models.linear(classes=3),
        loss=lambda outputs, batch: batch["weight"] * weighted(outputs, batch),
        sample_input=(1, 2),
        augment=MIX,
    )
    batch = {
        "x": jnp.ones((2, 2)),
        "y": jnp.array([0, 1]),
        "weight": jnp.array([1.0, 3.0]),
        "mask": jnp.ones(2, bool),
    }
    outputs = Mixed(jnp.zeros((2, 3)), jnp.array([1, 0]), jnp.array([0.25, 1.0]))
    np.testing.assert_allclose(own.loss(outputs, batch), np.log(3) * np.array([0.25 + 2.25, 3.0]), rtol=1e-6)


def test_precision_and_frozen_parts_pass_it_on():
    mixing = fs.tasks.with_precision(task(augment=MIX), compute="bfloat16")
    outputs, _ = mixing.apply(mixing.init(KEY), BATCH, KEY, train=True)
    assert outputs.outputs.dtype == jnp.float32 and outputs.partner.dtype == jnp.int32
    assert mixing.loss(outputs, BATCH).dtype == jnp.float32
    part = fs.tasks.trainable(task(augment=MIX), "bias")
    outputs, _ = part.apply(part.init(KEY), BATCH, KEY, train=True)
    assert isinstance(outputs, Mixed) and part.loss(outputs, BATCH).shape == (7,)


def test_engines_agree():
    """Mixed, cropped, cut out and normalised; clients of other sizes, whose last batches are short."""
    data = fs.data.digits(clients=4, alpha=1.0).train
    made = fs.tasks.classification(
        fs.models.linear(classes=10),
        augment=aug.compose(aug.crop(6), aug.cutout(2), aug.mixup(0.5)),
        preprocess=pre.compose(pre.centre_crop(6), pre.normalise(0.3, 0.4)),
    )
    results = []
    for engine in (fs.engines.sequential(), fs.engines.lanes(3)):
        sim = fs.Simulation(
            fs.algorithms.fedavg(made, optax.sgd(0.1)),
            data,
            cohort=fs.cohorts.all_clients(),
            local=fs.LocalWork(batch_size=32),
            engine=engine,
        )
        state, history = sim.run(sim.init(seed=0), rounds=1)
        results.append((state.server.variables.params, history["accuracy"], history["loss"]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), *results)
