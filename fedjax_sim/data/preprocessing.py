"""Preprocessing: what happens to inputs in training and in evaluation alike, inside the compiled program.

Each factory returns a pure function ``inputs -> inputs`` without any randomness, to give to
``tasks.classification(model, preprocess=...)``; all but ``bag_of_words`` take images, ``f32[batch, height, width,
channels]``. It comes after ``scale``, which makes floats in [0, 1] of uint8 images, and in training after ``augment``,
which expects those.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from fedjax_sim._src import checks

__all__ = ["Preprocessing", "bag_of_words", "centre_crop", "compose", "normalise", "standardise"]


class Preprocessing(Protocol):
    """Inputs ``[batch, ...]``, often images, to inputs; their shape may change, and of tokens their dtype."""

    def __call__(self, images: jax.Array, /) -> jax.Array: ...


def normalise(mean: float | Sequence[float], std: float | Sequence[float]) -> Preprocessing:
    """Subtracts a mean and divides by a standard deviation, the same for all images, each channel by its own.

    The numbers are constants that everybody knows before training, such as those that the literature uses; numbers
    taken from clients' images are a query that no epsilon covers. CIFAR-10's are (0.491, 0.482, 0.447) and
    (0.247, 0.243, 0.262).

    Args:
      mean: one number, or one for each channel, in the scale of the images: [0, 1] for uint8 ones.
      std: likewise, above 0.

    Raises:
      ValueError: numbers that are not finite, a ``std`` that is not above 0, lengths that differ; at the call, for
        another number of channels, and for images of another shape or dtype.

    Example:
      >>> import jax.numpy as jnp, fedjax_sim as fs
      >>> normal = fs.data.preprocessing.normalise(mean=0.5, std=[0.5, 0.25, 1.0])
      >>> normal(jnp.ones((1, 1, 1, 3))).ravel().tolist()
      [1.0, 2.0, 0.5]
    """
    means, stds = (_per_channel(name, value) for name, value in (("mean", mean), ("std", std)))
    if (stds <= 0).any():
        raise ValueError(f"std is {std}, expected numbers above 0.")
    if len(means) > 1 and len(stds) > 1 and len(means) != len(stds):
        raise ValueError(
            f"mean has {len(means)} numbers and std {len(stds)}, expected one for each channel in both."
        )

    def preprocess(images: jax.Array, /) -> jax.Array:
        check_images("normalise", images)
        for name, values in (("mean", means), ("std", stds)):
            if len(values) not in (1, images.shape[-1]):
                raise ValueError(
                    f"normalise has {len(values)} numbers of {name} for images of {images.shape[-1]} channels, "
                    "expected one, or one for each channel."
                )
        shift, width = (jnp.asarray(values, images.dtype).reshape(1, 1, 1, -1) for values in (means, stds))
        return (images - shift) / width

    return preprocess


def standardise() -> Preprocessing:
    """Subtracts each image's own mean and divides by its own standard deviation, over all pixels and channels.

    An image of one colour becomes 0: the deviation counts as ``1 / sqrt(pixels * channels)`` at least. No number comes
    from other images, so nothing has to be known before training.

    Raises:
      ValueError: at the call, for images of another shape or dtype.

    Source: the preprocessing of federated CIFAR-100 in Reddi et al. 2021 (arXiv 2003.00295), behind a crop to 24 pixels.

    Example:
      >>> import jax.numpy as jnp, fedjax_sim as fs
      >>> fs.data.preprocessing.standardise()(jnp.array([0.0, 1.0, 0.0, 1.0]).reshape(1, 2, 2, 1)).ravel().tolist()
      [-1.0, 1.0, -1.0, 1.0]
    """

    def preprocess(images: jax.Array, /) -> jax.Array:
        check_images("standardise", images)
        # In float32: the mean of many bfloat16 numbers would be rounded in between.
        wide = images.astype(jnp.float32)
        axes, values = (1, 2, 3), images[0].size if len(images) else 1
        centred = wide - jnp.mean(wide, axes, keepdims=True)
        deviation = jnp.sqrt(jnp.mean(jnp.square(centred), axes, keepdims=True))
        return (centred / jnp.maximum(deviation, values**-0.5)).astype(images.dtype)

    return preprocess


def centre_crop(size: int) -> Preprocessing:
    """Cuts the square in the middle out of each image; where the middle lies between pixels, the upper left of them.

    In evaluation it stands for ``augmentations.crop(size)``, which cuts at random in training.

    Args:
      size: height and width of what is kept, 1 or more; at the call, at most the image's.

    Raises:
      ValueError: ``size`` is no integer of at least 1; at the call, for images that are smaller, or of another shape
        or dtype.

    Example:
      >>> import jax.numpy as jnp, fedjax_sim as fs
      >>> fs.data.preprocessing.centre_crop(2)(jnp.arange(16.0).reshape(1, 4, 4, 1)).ravel().tolist()
      [5.0, 6.0, 9.0, 10.0]
    """
    checks.positive_int("size", size)

    def preprocess(images: jax.Array, /) -> jax.Array:
        check_images("centre_crop", images)
        check_holds("centre_crop", size, images.shape[1:3])
        top, left = ((length - size) // 2 for length in images.shape[1:3])
        return images[:, top : top + size, left : left + size]

    return preprocess


def bag_of_words(words: int, first: int = 3, of: Literal["all", "known"] = "all") -> Preprocessing:
    """How often each word is in a text, as a share of its words: ids ``int[batch, length]`` to ``f32[batch, words]``.

    A text is stored as ids, a few bytes a word, and its bag exists only while the model looks at it: with 10,000 words,
    40 kB for each row of a batch. The bag of a text is that of ``data.text.bag_of_words``; one without words is zeros.

    Args:
      words: of the vocabulary.
      first: id of the first one; ids below are no words (padding, begin, end), those from ``first + words`` on are words
        out of the vocabulary. 3 for the encoders of ``data.text.words``.
      of: what a share is of: ``"all"`` words of the text, as Reddi et al. 2021, or the ``"known"`` ones, those of the
        vocabulary, as TensorFlow Federated's ``create_tag_prediction_task``.

    Raises:
      ValueError: ``words`` is no integer of at least 1, a negative ``first``, or another ``of``; at the call, for anything
        but integers ``[batch, length]``.

    Source: StackOverflow's tag prediction in Reddi et al. 2021 (arXiv 2003.00295), with 10,000 words and 500 tags.

    Example:
      >>> import fedjax_sim as fs
      >>> encoder = fs.data.text.words(["a", "b"])
      >>> ids = fs.data.text.padded(["a b a c"], encoder, length=6)
      >>> fs.data.preprocessing.bag_of_words(words=2)(ids).tolist()
      [[0.5, 0.25]]
      >>> fs.data.preprocessing.bag_of_words(words=3, of="known")(ids).tolist()
      [[0.5, 0.25, 0.25]]
    """
    checks.positive_int("words", words)
    checks.one_of("of", of, ("all", "known"))
    checks.not_negative_int("first", first)

    def preprocess(ids: jax.Array, /) -> jax.Array:
        ids = jnp.asarray(ids)
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise ValueError(
                f"bag_of_words got {ids.dtype}{list(ids.shape)}, expected ids, integers [batch, length]."
            )
        places = ids.astype(jnp.int32) - first
        counted = places >= 0
        known = counted & (places < words)
        # What is no word goes where no place is. Whole numbers: their sum is the same in every order.
        rows = jnp.arange(len(ids))[:, None]
        counts = jnp.zeros((len(ids), words), jnp.float32)
        counts = counts.at[rows, jnp.where(known, places, words)].add(1.0, mode="drop")
        total = jnp.sum(counted if of == "all" else known, axis=1, keepdims=True)
        return counts / jnp.maximum(total, 1)

    return preprocess


def compose(*steps: Preprocessing) -> Preprocessing:
    """Applies functions of images one after the other.

    Raises:
      TypeError: one of them is no function.

    Example:
      >>> import jax.numpy as jnp, fedjax_sim as fs
      >>> from fedjax_sim.data import preprocessing
      >>> both = preprocessing.compose(preprocessing.centre_crop(24), preprocessing.normalise(0.5, 0.5))
      >>> both(jnp.ones((5, 32, 32, 3))).shape
      (5, 24, 24, 3)
    """
    for step in steps:
        if not callable(step):
            raise TypeError(
                f"compose got {type(step).__name__}, expected functions images -> images, such as centre_crop(24)."
            )

    def preprocess(images: jax.Array, /) -> jax.Array:
        for step in steps:
            images = step(images)
        return images

    return preprocess


def check_images(name: str, images: jax.Array) -> None:
    """Raises ValueError for anything but floats ``[batch, height, width, channels]``."""
    if images.ndim != 4 or not jnp.issubdtype(images.dtype, jnp.floating):
        raise ValueError(
            f"{name} got {images.dtype}{list(images.shape)}, expected floats [batch, height, width, channels]. "
            "Tasks make floats of uint8 images; give images of one channel a last axis of length 1."
        )


def check_holds(name: str, size: int, of: Sequence[int]) -> None:
    """Raises ValueError for images of a height and width into which a square does not fit."""
    if min(of) < size:
        raise ValueError(f"{name} got images of {of[0]} x {of[1]} pixels, expected at least {size} x {size}.")


def _per_channel(name: str, value: float | Sequence[float]) -> np.ndarray:
    """``float32[1 or channels]``."""
    try:
        values = np.atleast_1d(np.asarray(value, np.float32))
    except (TypeError, ValueError):
        values = np.zeros((0,), np.float32)
    if values.ndim != 1 or values.size == 0 or not np.isfinite(values).all():
        raise ValueError(f"{name} is {value!r}, expected a finite number, or one for each channel.")
    return values
