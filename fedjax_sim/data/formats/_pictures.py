"""Encoded images, PNG or JPEG for example, as arrays."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable

import numpy as np

# Without those that run programs of their own (EPS) and those that data sets do not use.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_AS_THEY_ARE = ("L", "LA", "RGB", "RGBA", "I;16")


def pictures(encoded: Iterable[bytes | None], what: str) -> np.ndarray:
    """Images of one shape, ``[rows, height, width]`` or ``[rows, height, width, channels]``; uint8, or uint16.

    Args:
      encoded: the bytes of each.
      what: for messages: ``"column 'image'"``.

    Raises:
      ValueError: one is missing or damaged, or they differ in their shape; names the row.
    """
    found: list[np.ndarray] = []
    for row, raw in enumerate(encoded):
        if raw is None:
            raise ValueError(
                f"{what} names a file in row {row}, expected the image itself. Embed the images."
            )
        try:
            image = _picture(raw)
        except Exception as error:  # decoders raise what they like
            raise ValueError(f"{what} holds no image that can be read in row {row}: {error}") from error
        if found and (image.shape, image.dtype) != (found[0].shape, found[0].dtype):
            raise ValueError(
                f"{what} holds images of shape {list(image.shape)} (row {row}) and {list(found[0].shape)} (row 0), "
                "expected one shape. Bring them to one size by decode={column: function}."
            )
        found.append(image)
    return np.stack(found) if found else np.zeros((0, 0, 0), np.uint8)


def _picture(raw: bytes) -> np.ndarray:
    from PIL import Image  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is far too large, or damaged in a way that leaves grey areas
        try:
            with Image.open(io.BytesIO(raw), formats=_FORMATS) as image:
                if image.mode in _AS_THEY_ARE:
                    return np.array(image)
                grey = image.mode == "1"
                return np.array(
                    image.convert("L" if grey else "RGBA" if image.has_transparency_data else "RGB")
                )
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error
