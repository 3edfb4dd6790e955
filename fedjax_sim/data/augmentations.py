"""Augmentations: random changes of images, drawn anew in every training step.

Each factory returns a pure function ``(key, images) -> images`` of ``f32[batch, height, width, channels]`` that leaves
labels true, to give to ``tasks.classification(model, augment=...)``. Every image draws from a key of its own, made of
the call's key and its row, so neither the other rows nor lanes and devices have a say. All work under ``jit`` and
``vmap``. ``mixup`` is of another kind, a ``Mixing``: it couples rows, and the task mixes their losses alike. What must
also happen to the images of an evaluation is in ``data.preprocessing``.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, NoReturn, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates

from fedjax_sim._src import checks
from fedjax_sim._src.types import Key
from fedjax_sim.data.preprocessing import check_holds, check_images

__all__ = [
    "Augmentation",
    "Mixing",
    "Mixture",
    "brightness",
    "compose",
    "crop",
    "cutout",
    "horizontal_flip",
    "mixup",
    "rotate",
    "shift",
]


class Augmentation(Protocol):
    """``(key, images: f32[batch, height, width, channels])`` to images of the same dtype, and shape but for ``crop``."""

    def __call__(self, key: Key, images: jax.Array, /) -> jax.Array: ...


class Mixture(NamedTuple):
    """Rows that were mixed: row ``i`` is ``share[i]`` of itself and the rest of row ``partner[i]``.

    Attributes:
      images: ``f32[batch, ...]``.
      partner: ``int32[batch]``, never a row of padding for a row that is none.
      share: ``f32[batch]`` in [0, 1]; 1 for rows of padding, which are their own partners.
    """

    images: jax.Array
    partner: jax.Array
    share: jax.Array


@dataclass(frozen=True)
class Mixing:
    """An augmentation that couples the rows of a batch, such as ``mixup``: the labels of a row are then those of two.

    A task given one makes the loss of row ``i`` ``share[i] * loss(i) + (1 - share[i]) * loss(partner[i])``, the second
    with the columns of the partner, and every metric likewise. It is no function of images alone: called as one, it
    raises TypeError, for labels would be wrong without a word.

    Attributes:
      name: for messages.
      mix: ``(key, images [batch, ...], mask bool[batch])`` to a ``Mixture``.
    """

    name: str
    mix: Callable[[Key, jax.Array, jax.Array], Mixture]

    def __call__(self, key: Key, images: jax.Array, /) -> NoReturn:
        raise TypeError(
            f"{self.name} mixes rows and so their labels, which (key, images) cannot. Give it to a task of "
            "fs.tasks.classification or fs.tasks.from_flax, or call its mix(key, images, mask)."
        )


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


def crop(size: int) -> Augmentation:
    """Cuts a square out of each image, its place drawn evenly from all places inside.

    Images become smaller, so evaluation has to cut, too: give the task ``preprocess=preprocessing.centre_crop(size)``
    beside it. A crop of the padded image, which keeps the size, is ``shift``.

    Args:
      size: height and width of what is kept, 1 or more; at the call, at most the image's.

    Raises:
      ValueError: ``size`` is no integer of at least 1; at the call, for images that are smaller, or of another shape
        or dtype.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> cut = fs.data.augmentations.crop(size=24)
      >>> cut(jax.random.key(0), jnp.ones((5, 32, 32, 3))).shape
      (5, 24, 24, 3)
    """
    checks.positive_int("size", size)

    def of_one(key: Key, image: jax.Array, /) -> jax.Array:
        check_holds("crop", size, image.shape[:2])
        room = jnp.array([image.shape[0] - size + 1, image.shape[1] - size + 1])
        top, left = jax.random.randint(key, (2,), 0, room)
        return jax.lax.dynamic_slice(image, (top, left, jnp.zeros_like(top)), (size, size, image.shape[2]))

    return _for_each_image("crop", of_one)


def cutout(size: int, fill: float = 0.0) -> Augmentation:
    """Blanks out a square of each image, around a pixel drawn evenly from all; parts of it may lie outside.

    Args:
      size: height and width of the square, 1 or more.
      fill: value of what is blanked out, in the scale of the images as the augmentation gets them: before
        ``preprocess``. DeVries and Taylor fill with the mean of the images.

    Raises:
      ValueError: ``size`` is no integer of at least 1; at the call, for images of another shape or dtype.

    Source: DeVries and Taylor 2017, Improved regularization of convolutional neural networks with Cutout
    (arXiv 1708.04552).

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> blank = fs.data.augmentations.cutout(size=8)
      >>> images = blank(jax.random.key(0), jnp.ones((5, 28, 28, 1)))
      >>> bool((images.sum((1, 2, 3)) >= 28 * 28 - 8 * 8).all())
      True
    """
    checks.positive_int("size", size)

    def of_one(key: Key, image: jax.Array, /) -> jax.Array:
        first = jax.random.randint(key, (2,), 0, jnp.array(image.shape[:2])) - size // 2
        rows, columns = (
            (jnp.arange(length) >= start) & (jnp.arange(length) < start + size)
            for length, start in zip(image.shape[:2], first, strict=True)
        )
        inside = (rows[:, None] & columns[None, :])[..., None]
        return jnp.where(inside, jnp.asarray(fill, image.dtype), image)

    return _for_each_image("cutout", of_one)


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


def mixup(alpha: float) -> Mixing:
    """Mixes each row with another one of its batch, and the losses of both labels alike.

    Row ``i`` becomes ``s x_i + (1 - s) x_j``, and its loss ``s loss(y_i) + (1 - s) loss(y_j)``; a training metric is
    mixed in the same way, so accuracy is the share of a row's labels that the prediction hits. The partner ``j`` is
    drawn evenly from the real rows of the batch, ``i`` included, and ``s`` from Beta(alpha, alpha), both by the row's
    own key; the paper's code draws one ``s`` and one permutation for a batch, which has the same expectation. Rows of
    padding are neither mixed nor mixed in. Inputs may have any shape ``f32[batch, ...]``.

    The gradient of a row depends on two examples. A bound on what one example changes (differential privacy with the
    example as unit) is therefore void under mixup; with the client as unit nothing changes, since partners are always
    the client's own.

    Args:
      alpha: above 0. Small values mix little; 1 draws shares evenly. 0.2 to 0.4 in the paper for ImageNet, 1 for CIFAR.

    Raises:
      ValueError: ``alpha`` is not a finite number above 0; at the call, for inputs that are no floats.

    Source: Zhang et al. 2018, mixup: beyond empirical risk minimization (arXiv 1710.09412), equation 1.

    Example:
      >>> import jax, jax.numpy as jnp, fedjax_sim as fs
      >>> mixing = fs.data.augmentations.mixup(alpha=0.4)
      >>> images, mask = jnp.eye(4).reshape(4, 2, 2, 1), jnp.array([True, True, True, False])
      >>> mixture = mixing.mix(jax.random.key(0), images, mask)
      >>> mixture.images.shape, int(mixture.partner[:3].max()) < 3, int(mixture.partner[3]), float(mixture.share[3])
      ((4, 2, 2, 1), True, 3, 1.0)
    """
    checks.positive("alpha", alpha)

    def mix(key: Key, images: jax.Array, mask: jax.Array, /) -> Mixture:
        if images.ndim < 2 or not jnp.issubdtype(images.dtype, jnp.floating):
            raise ValueError(
                f"mixup got {images.dtype}{list(images.shape)}, expected floats [batch, ...]. Tokens cannot be mixed."
            )
        own = jnp.arange(len(images), dtype=jnp.int32)
        count = jnp.maximum(jnp.sum(mask, dtype=jnp.int32), 1)

        def drawn(row_key: Key) -> tuple[jax.Array, jax.Array]:
            place = jax.random.randint(jax.random.fold_in(row_key, 0), (), 0, count)
            return place, jax.random.beta(jax.random.fold_in(row_key, 1), alpha, alpha, dtype=jnp.float32)

        places, shares = jax.vmap(drawn)(_row_keys(key, len(images)))
        real_first = jnp.argsort(~mask, stable=True).astype(jnp.int32)
        partner = jnp.where(mask, real_first[places], own)
        share = jnp.where(mask, shares, 1)
        weight = share.astype(images.dtype).reshape(-1, *(1,) * (images.ndim - 1))
        return Mixture(weight * images + (1 - weight) * images[partner], partner, share)

    return Mixing("mixup", mix)


def compose(*augmentations: Augmentation) -> Augmentation:
    """Applies augmentations one after the other, each with a key of its own.

    With ``mixup`` among them the whole is a ``Mixing``, too.

    Raises:
      TypeError: one of them is no function.
      ValueError: more than one mixes rows: then a row would have the labels of four.

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

    mixings = [augmentation for augmentation in augmentations if isinstance(augmentation, Mixing)]
    if len(mixings) > 1:
        raise ValueError(
            f"compose got {' and '.join(mixing.name for mixing in mixings)}, expected at most one that mixes rows."
        )

    def augment(key: Key, images: jax.Array, /) -> jax.Array:
        for place, augmentation in enumerate(augmentations):
            images = augmentation(jax.random.fold_in(key, place), images)
        return images

    def mix(key: Key, images: jax.Array, mask: jax.Array, /) -> Mixture:
        mixture = None
        for place, augmentation in enumerate(augmentations):
            own = jax.random.fold_in(key, place)
            if isinstance(augmentation, Mixing):
                mixture = augmentation.mix(own, images, mask)
                images = mixture.images
            else:
                images = augmentation(own, images)
        assert mixture is not None
        return mixture._replace(images=images)

    return Mixing(mixings[0].name, mix) if mixings else augment


def _for_each_image(name: str, of_one: _OfOne) -> Augmentation:
    def augment(key: Key, images: jax.Array, /) -> jax.Array:
        check_images(name, images)
        return jax.vmap(of_one)(_row_keys(key, len(images)), images)

    return augment


def _row_keys(key: Key, rows: int) -> Key:
    """``key[rows]``; fold_in of the row, not split: a row's key must not depend on how many others there are."""
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, jnp.arange(rows))
