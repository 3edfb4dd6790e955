"""Shapes of characters as distance fields, from the fonts that matplotlib ships."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import scipy

CHARACTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""In the order of EMNIST's classes "by class"."""

FONTS = (
    "DejaVuSans", "DejaVuSans-Oblique", "DejaVuSansMono", "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Italic",
    "STIXGeneral", "STIXGeneralItalic", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip

SIZE = 48
"""Height and width of a field. The longer side of a character's outline is ``BODY`` of it, in its middle."""
BODY = 32

_EM = 72  # pixels of the font where distances are measured; a capital is some 50 high


@functools.cache
def fields() -> np.ndarray:
    """Distance from the outline, in pixels of the field, positive inside: ``f32[fonts, characters, SIZE, SIZE]``."""
    # Slow to import, and `import fedjax_sim` does not need them.
    import matplotlib
    from PIL import ImageFont

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return np.stack(
        [
            np.stack([_field(font, character) for character in CHARACTERS])
            for font in (ImageFont.truetype(str(folder / f"{name}.ttf"), _EM) for name in FONTS)
        ]
    )


def _field(font, character: str) -> np.ndarray:
    mask = font.getmask(character, mode="L")
    inside = np.asarray(mask, np.uint8).reshape(mask.size[::-1]) > 127
    inside = inside[inside.any(axis=1)][:, inside.any(axis=0)]  # without the font's own margins
    longer = max(inside.shape)
    canvas = np.zeros((2 * longer, 2 * longer), bool)
    top, left = ((2 * longer - side) // 2 for side in inside.shape)
    canvas[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    # Where the pixels of the field lie on the canvas; both have the character in their middle.
    scale = longer / BODY
    places = (np.arange(SIZE) - (SIZE - 1) / 2) * scale + longer - 0.5
    places = np.clip(places, 0, 2 * longer - 1)
    within, without = (np.asarray(scipy.ndimage.distance_transform_edt(part)) for part in (canvas, ~canvas))
    distance = within - without
    grid = np.meshgrid(places, places, indexing="ij")
    return (scipy.ndimage.map_coordinates(distance, grid, order=1) / scale).astype(np.float32)
