"""Augmentations: random changes of images that leave their labels true, drawn anew in every training step.

Each factory returns a pure function ``(key, images) -> images`` of ``f32[batch, height, width, channels]``, to give to
``tasks.classification(model, augment=...)``. Every image draws from a key of its own, made of the call's key and its
row, so neither the other rows nor lanes and devices have a say. All work under ``jit`` and ``vmap``.
"""

from __future__ import annotations

import warnings
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fedjax_sim._src import checks
from fedjax_sim._src.types import Key

__all__ = ["Augmentation", "brightness", "compose", "horizontal_flip", "rotate", "shift"]


class Augmentation(Protocol):
    """``(key, images: f32[batch, height, width, channels])`` to images of the same shape and dtype."""

    def __call__(self, key: Key, images: jax.Array, /) -> jax.Array: ...


class _OfOne(Protocol):
    """The same for one image ``[height, width, channels]``."""

    def __call__(self, key: Key, image: jax.Array, /) -> jax.Array: ...


def shift(pixels: int) -> Augmentation:
    """Moves each image by whole pixels, up to ``pixels`` in either direction of either axis, all equally likely.

    What comes in from outside is 0. The same as padding by ``pixels`` and cropping at random.

    Args:
      pixels: the largest move, 1 or more.

    Raises:
      ValueError: ``pixels`` is no integer of at least 1; at the call, for images of another shape or dtype.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> move = fs.data.augmentations.shift(pixels=2)
      >>> move(jax.random.key(0), jnp.ones((5, 28, 28, 1))).shape
      (5, 28, 28, 1)
    """
    checks.positive_int("pixels", pixels)

    def of_one(key: Key, image: jax.Array, /) -> jax.Array:
        padded = jnp.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)))
        top, left = jax.random.randint(key, (2,), 0, 2 * pixels + 1)
        return jax.lax.dynamic_slice(padded, (top, left, jnp.zeros_like(top)), image.shape)

    return _for_each_image("shift", of_one)


def rotate(degrees: float) -> Augmentation:
    """Turns each image about its middle by an angle drawn evenly from ``[-degrees, degrees]``.

    Between pixels the values are interpolated bilinearly; what comes in from outside is 0.

    Args:
      degrees: the largest angle, above 0 and at most 180. Digits bear 15 or so; a 6 turned far is a 9.

    Raises:
      ValueError: ``degrees`` is outside (0, 180]; at the call, for images of another shape or dtype.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> turn = fs.data.augmentations.rotate(degrees=15)
      >>> turn(jax.random.key(0), jnp.ones((5, 28, 28, 1))).shape
      (5, 28, 28, 1)
    """
    if not 0 < degrees <= 180:
        raise ValueError(f"degrees is {degrees}, expected an angle above 0 and at most 180.")

    def of_one(key: Key, image: jax.Array, /) -> jax.Array:
        angle = jax.random.uniform(key, (), image.dtype, -1.0, 1.0) * jnp.asarray(
            jnp.pi * degrees / 180, image.dtype
        )
        height, width, _ = image.shape
        y = jnp.arange(height, dtype=image.dtype)[:, None] - (height - 1) / 2
        x = jnp.arange(width, dtype=image.dtype)[None, :] - (width - 1) / 2
        sine, cosine = jnp.sin(angle), jnp.cos(angle)
        # Where each new pixel was before the turn.
        source = [cosine * y - sine * x + (height - 1) / 2, sine * y + cosine * x + (width - 1) / 2]

        def turned(channel: jax.Array) -> jax.Array:
            return map_coordinates(channel, source, order=1, mode="constant", cval=0.0)

        return jax.vmap(turned, in_axes=-1, out_axes=-1)(image)

    return _for_each_image("rotate", of_one)


def brightness(delta: float) -> Augmentation:
    """Multiplies each image by a factor drawn evenly from ``[1 - delta, 1 + delta]``, and clips it to ``[0, 1]``.

    A factor, not a summand: black stays black, so a digit's background stays what it is. Expects values in
    ``[0, 1]``, as tasks make them of uint8 images.

    Args:
      delta: above 0 and at most 1.

    Raises:
      ValueError: ``delta`` is outside (0, 1]; at the call, for images of another shape or dtype.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> dim = fs.data.augmentations.brightness(delta=0.2)
      >>> images = dim(jax.random.key(0), jnp.ones((5, 28, 28, 1)))
      >>> bool(images.min() >= 0.8), bool(images.max() <= 1)
      (True, True)
    """
    checks.fraction("delta", delta)

    def of_one(key: Key, image: jax.Array, /) -> jax.Array:
        factor = jax.random.uniform(key, (), image.dtype, 1 - delta, 1 + delta)
        return jnp.clip(image * factor, 0, 1)

    return _for_each_image("brightness", of_one)


def horizontal_flip(probability: float = 0.5, *, mirror_safe: bool = False) -> Augmentation:
    """Mirrors each image, left for right, with a probability.

    Not for digits and letters: a mirrored one is another symbol or none, and keeps its old label all the same. The
    images' shape does not tell, so this warns unless the caller says that labels survive a mirror.

    Args:
      probability: in (0, 1].
      mirror_safe: True where a mirrored image still deserves its label, as with animals, clothes and vehicles.

    Raises:
      ValueError: ``probability`` is outside (0, 1]; at the call, for images of another shape or dtype.

    Warns:
      UserWarning: ``mirror_safe`` is False.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> flip = fs.data.augmentations.horizontal_flip(1.0, mirror_safe=True)
      >>> flip(jax.random.key(0), jnp.arange(3.0).reshape(1, 1, 3, 1)).ravel().tolist()
      [2.0, 1.0, 0.0]
    """
    checks.fraction("probability", probability)
    if not mirror_safe:
        warnings.warn(
            "horizontal_flip mirrors images and keeps their labels, but a mirrored digit or letter is another symbol "
            "or none. Leave it out for symbols; say mirror_safe=True for images that keep their meaning.",
            UserWarning,
            stacklevel=2,
        )

    def of_one(key: Key, image: jax.Array, /) -> jax.Array:
        return jnp.where(jax.random.bernoulli(key, probability), image[:, ::-1], image)

    return _for_each_image("horizontal_flip", of_one)


def compose(*augmentations: Augmentation) -> Augmentation:
    """Applies augmentations one after the other, each with a key of its own.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> from fedjax_sim.data import augmentations as aug
      >>> both = aug.compose(aug.shift(2), aug.rotate(15))
      >>> both(jax.random.key(0), jnp.ones((5, 28, 28, 1))).shape
      (5, 28, 28, 1)
    """
    for augmentation in augmentations:
        if not callable(augmentation):
            raise TypeError(
                f"compose got {type(augmentation).__name__}, expected functions (key, images) -> images, such as "
                "shift(2)."
            )

    def augment(key: Key, images: jax.Array, /) -> jax.Array:
        for place, augmentation in enumerate(augmentations):
            images = augmentation(jax.random.fold_in(key, place), images)
        return images

    return augment


def _for_each_image(name: str, of_one: _OfOne) -> Augmentation:
    def augment(key: Key, images: jax.Array, /) -> jax.Array:
        if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"{name} got {images.dtype}{list(images.shape)}, expected floats [batch, height, width, channels]. "
                "Tasks make floats of uint8 images; give images of one channel a last axis of length 1."
            )
        # fold_in of the row, not split: an image's key must not depend on how many others there are.
        image_keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(len(images)))
        return jax.vmap(of_one)(image_keys, images)

    return augment
