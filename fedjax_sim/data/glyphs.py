"""Characters in the shape of EMNIST, drawn when they are wanted: any number of writers, each with a hand of their own."""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import numpy as np

from fedjax_sim._src import checks, keys
from fedjax_sim.data._outlines import BODY, FONTS, SIZE, fields
from fedjax_sim.data.client_source import ClientSource
from fedjax_sim.data.federated import Federated, split

# Purposes of the generators; above those of `keys`, so that no two decisions share a stream.
_SIZES = 130
_WRITER = 131

_SIDE = 28  # pixels of an image
_KNOTS = 5  # of the grid that bends strokes, on either axis

_MERGED = "cijklmopsuvwxyz"
"""Letters whose small form is that of the capital: one class of EMNIST's 47."""

Classes = Literal[10, 47, 62]


def glyphs(
    clients: int = 1000,
    classes: Classes = 62,
    seed: int = 0,
    test_clients: int = 50,
    difficulty: float = 1.0,
    test_fraction: float | None = None,
) -> Federated:
    """Writers who write characters: an EMNIST-like set that needs no file and no memory.

    Columns: ``x`` is ``uint8[examples, 28, 28, 1]`` (ink is bright, the character fills 20 pixels or so, as in EMNIST);
    ``y`` is ``int32[examples]``, in EMNIST's order: digits, capitals, small letters. A writer's hand is a font's outlines, a
    stroke width, a slant, a size, how strokes bend, and how steady all this is; sizes are those of EMNIST's writers, 198
    examples give or take 77. Half of the characters are digits where there are letters, too. A client depends on
    the seed and its number alone, so the first thousand of a million writers are the thousand of a smaller set.

    It is meant to be as hard as FEMNIST: ``examples/reproductions/femnist.py glyphs`` trains the CNN of federated EMNIST benchmarks on
    300 writers as the same script trains it on FEMNIST's, and shows the accuracy on new characters of these writers.

    Args:
      clients: writers to train on; their ids are 0 to ``clients - 1``.
      classes: 10 digits; 47, where capitals and small letters of one shape are one class ("balanced"); or all 62.
      seed: of the writers.
      test_clients: other writers, to evaluate on; their ids go on where those of the others end.
      difficulty: factor of everything that makes characters hard to read.
      test_fraction: in (0, 1): every writer's characters are divided, as in ``split``, and there are no other writers.

    Raises:
      ValueError: a number out of range.

    Source: after Cohen et al. 2017 (arXiv 1702.05373), EMNIST; fonts: DejaVu, STIX and Computer Modern, as matplotlib
    ships them.

    Example:
      >>> import fedjax_sim as fs
      >>> data = fs.data.glyphs(clients=1_000_000)
      >>> data.train.client(123_456)["x"].shape == (data.train.sizes[123_456], 28, 28, 1)
      True
    """
    checks.positive_int("clients", clients)
    checks.positive_int("test_clients", test_clients)
    checks.one_of("classes", classes, (10, 47, 62))
    checks.positive("difficulty", difficulty)
    if test_fraction is not None:
        train, test = split(Writers(0, clients, classes, seed, difficulty), test_fraction, seed)
        return Federated(train, test, name="glyphs", classes=classes)
    parts = [
        Writers(first, count, classes, seed, difficulty)
        for first, count in ((0, clients), (clients, test_clients))
    ]
    return Federated(*parts, name="glyphs", classes=classes)


class Hand(NamedTuple):
    """How a person writes; lengths are pixels of the image, angles radians.

    Attributes:
      font: whose outlines.
      size: of the longer side of a character.
      aspect: width over that of the outline.
      slant: shear to the right.
      turn: of every character.
      stroke: added on either side of the outline.
      blur: width of a stroke's edge.
      ink: brightness of full ink, up to 1.
      bend: how the strokes of each class bend, always alike, ``f32[62, 2, knots]``.
      unsteady: how much the rest differs from one character to the next.
    """

    font: int
    size: float
    aspect: float
    slant: float
    turn: float
    stroke: float
    blur: float
    ink: float
    bend: np.ndarray
    unsteady: float


class Writers(ClientSource):
    """Writers ``first`` to ``first + count - 1``; see ``glyphs``."""

    def __init__(self, first: int, count: int, classes: Classes, seed: int, difficulty: float):
        drawn = keys.host_generator((seed,), _SIZES).normal(198, 77, first + count)[first:]
        columns = {
            "x": jax.ShapeDtypeStruct((_SIDE, _SIDE, 1), np.uint8),
            "y": jax.ShapeDtypeStruct((), np.int32),
        }
        super().__init__(np.clip(np.rint(drawn), 19, 460), columns, np.arange(first, first + count))
        self._classes: Classes = classes
        self._seed, self._difficulty = seed, difficulty

    def make(self, client: int) -> dict[str, np.ndarray]:
        """A writer's characters, in random order."""
        generator = keys.host_generator((self._seed,), _WRITER, int(self.ids[client]))
        hand = drawn_hand(generator, self._difficulty)
        count = int(self.sizes[client])
        character = _characters(generator, count, self._classes)
        images = written(generator, hand, character, self._difficulty)
        return {"x": images, "y": _class_of(self._classes)[character]}


def drawn_hand(generator: np.random.Generator, difficulty: float) -> Hand:
    """A writer's hand."""
    normal = generator.standard_normal
    return Hand(
        font=int(generator.integers(len(FONTS))),
        size=20 + 1.8 * difficulty * float(normal()),
        aspect=float(np.exp(0.22 * difficulty * normal())),
        slant=0.3 * difficulty * float(np.clip(normal(), -2, 2)),
        turn=0.145 * difficulty * float(normal()),
        stroke=0.3 + 0.6 * difficulty * float(np.clip(normal(), -1.5, 2)),
        blur=0.7 + 0.9 * float(generator.random()),
        ink=1 - 0.25 * float(generator.random()),
        bend=1.32 * difficulty * normal((62, 2, _KNOTS * _KNOTS), np.float32),
        unsteady=float(0.5 + generator.random()),
    )


def written(
    generator: np.random.Generator, hand: Hand, character: np.ndarray, difficulty: float
) -> np.ndarray:
    """Images of characters ``int[examples]``: ``uint8[examples, 28, 28, 1]``."""
    count, shaky = len(character), difficulty * hand.unsteady
    normal = lambda *shape: generator.standard_normal((count, *shape), np.float32)  # noqa: E731
    # Pixels of the image, bent and moved, then looked up in the character's field: the transformation is applied to places,
    # so it is the inverse of what happens to the character.
    middle = (_SIDE - 1) / 2
    y, x = np.meshgrid(np.arange(_SIDE) - middle, np.arange(_SIDE) - middle, indexing="ij")
    places = np.stack([y, x]).reshape(2, -1).astype(np.float32)
    bent = (hand.bend[character] + 1.08 * shaky * normal(2, _KNOTS * _KNOTS)) @ _smooth()
    places = places + bent - 0.96 * shaky * normal(2, 1)
    turn = hand.turn + 0.085 * shaky * normal()
    slant = hand.slant + 0.096 * shaky * normal()
    size = np.maximum(hand.size + 0.96 * shaky * normal(), 8.0)
    sine, cosine = np.sin(turn)[:, None], np.cos(turn)[:, None]
    v = cosine * places[:, 0] - sine * places[:, 1]
    u = sine * places[:, 0] + cosine * places[:, 1] + slant[:, None] * v
    scale = (BODY / size)[:, None]
    depth = _looked_up(fields()[hand.font][character], v * scale, u * scale / hand.aspect) / scale
    stroke = hand.stroke + 0.18 * shaky * normal(1)
    ink = np.clip(0.5 + (depth + stroke) / hand.blur, 0, 1) * hand.ink
    # Paper and scanner: a little noise where there is ink, none where there is not, as in EMNIST.
    ink = np.clip(ink + 0.096 * difficulty * normal(_SIDE * _SIDE) * (ink > 0.02), 0, 1)
    return np.rint(255 * ink).astype(np.uint8).reshape(count, _SIDE, _SIDE, 1)


def _looked_up(field: np.ndarray, v: np.ndarray, u: np.ndarray) -> np.ndarray:
    """Bilinear interpolation of ``f32[examples, SIZE, SIZE]`` at places ``f32[examples, pixels]`` from the middle."""
    count = len(field)
    flat = field.reshape(count, -1)
    high = SIZE - 1.001
    v, u = (np.clip(place + (SIZE - 1) / 2, 0, high) for place in (v, u))
    top, left = v.astype(np.int32), u.astype(np.int32)
    down, right = v - top, u - left
    at = top * SIZE + left
    take = lambda index: np.take_along_axis(flat, index, axis=1)  # noqa: E731
    above = take(at) * (1 - right) + take(at + 1) * right
    below = take(at + SIZE) * (1 - right) + take(at + SIZE + 1) * right
    return above * (1 - down) + below * down


def _smooth() -> np.ndarray:
    """Interpolation from knots to pixels, ``f32[knots * knots, pixels]``: smooth bumps around each knot."""
    places = np.linspace(0, _KNOTS - 1, _SIDE)
    bumps = np.exp(-0.5 * ((places[None] - np.arange(_KNOTS)[:, None]) / 0.6) ** 2)
    bumps /= bumps.sum(axis=0)
    return np.einsum("iy,jx->ijyx", bumps, bumps).reshape(_KNOTS * _KNOTS, -1).astype(np.float32)


def _characters(generator: np.random.Generator, count: int, classes: Classes) -> np.ndarray:
    """Which characters somebody writes, ``int[count]``."""
    if classes == 10:
        return generator.integers(0, 10, count)
    digit = generator.random(count) < 0.5
    return np.where(digit, generator.integers(0, 10, count), generator.integers(10, 62, count))


def _class_of(classes: Classes) -> np.ndarray:
    """The class of each character, ``int32[62]``."""
    found = np.arange(62, dtype=np.int32)
    if classes == 47:
        following = 36
        for index in range(26):
            letter = chr(ord("a") + index)
            if letter in _MERGED:
                found[36 + index] = 10 + index
            else:
                found[36 + index] = following
                following += 1
    return found
