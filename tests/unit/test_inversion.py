"""Gradients inverted: exactly, by search, and not through noise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_sim as fs
from fedjax_sim.privacy import audits


def test_a_linear_layer_gives_its_input_away():
    """Exactly, whatever stands behind it, at any scale of the gradient."""
    task = fs.tasks.classification(
        fs.models.mlp(classes=5, hidden=(20,)), sample_input=jnp.zeros((1, 6, 6, 1))
    )
    variables = task.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 6, 6, 1))
    layer = audits.loss_gradient(task, variables, {"x": image, "y": jnp.array([3])})["Dense_0"]
    for scale in (1.0, 1e-3):
        found = audits.invert_linear(scale * layer["kernel"], scale * layer["bias"])
        assert audits.psnr(found.reshape(image.shape), image) > 80


def test_a_search_finds_an_image_and_noise_hides_it():
    """The cosine is all that counts, so clipping hides nothing."""
    task = fs.tasks.classification(
        fs.models.mlp(classes=4, hidden=(100,)), sample_input=jnp.zeros((1, 5, 5, 1))
    )
    variables = task.init(jax.random.key(0))
    image = jax.random.uniform(jax.random.key(1), (1, 5, 5, 1))
    label = jnp.array([2])

    def gradient(x):
        return audits.loss_gradient(task, variables, {"x": x, "y": label})

    seen = gradient(image)
    leaves, structure = jax.tree.flatten(seen)
    keys = jax.random.split(jax.random.key(3), len(leaves))
    noisy = jax.tree.unflatten(
        structure, [x + jax.random.normal(k, x.shape) for k, x in zip(keys, leaves, strict=True)]
    )

    def attacked(observed):
        return audits.invert_gradients(
            gradient, observed, image.shape, steps=600, total_variation=0.0, restarts=2
        )

    found = attacked(seen)
    assert audits.psnr(found.images, image) > 30
    assert found.objective == found.objectives.min() < 1e-3
    clipped = attacked(jax.tree.map(lambda x: 1e-3 * x, seen))
    assert audits.psnr(clipped.images, image) > 30
    assert audits.psnr(attacked(noisy).images, image) < 15
    assert found.images.min() >= 0 and found.images.max() <= 1


@pytest.mark.parametrize(
    ("observed", "message"),
    [
        ({"w": jnp.zeros(3)}, "observed has the norm 0.0"),
        ({"w": jnp.full(3, jnp.nan)}, "observed has the norm nan"),
        ({"w": jnp.ones(4)}, "observed is .* expected what gradient gives"),
    ],
)
def test_gradients_that_say_nothing_are_refused(observed, message):
    with pytest.raises(ValueError, match=message):
        audits.invert_gradients(lambda x: {"w": jnp.sum(x) * jnp.ones(3)}, observed, (1, 2))


def test_a_mixture_is_read_off_a_batch():
    """Of two examples with the same error signal, their mean."""
    error = np.array([0.2, -0.1])
    x = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]])
    weight = np.mean([np.outer(row, error) for row in x], axis=0)
    np.testing.assert_allclose(audits.invert_linear(weight, error), [0.5, 0.5, 0.5])
