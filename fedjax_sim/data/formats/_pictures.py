"""Encoded images, PNG or JPEG for example, as arrays."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from fedjax_sim._src import checks

# Without those that run programs of their own (EPS) and those that data sets do not use.
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_STARTS = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\x00", b"MM\x00*")
_AS_THEY_ARE = ("L", "LA", "RGB", "RGBA", "I;16")


def is_encoded(raw: bytes) -> bool:
    """Whether bytes begin as an image does."""
    return raw.startswith(_STARTS) or (raw[:4] == b"RIFF" and raw[8:12] == b"WEBP")


Form = tuple[tuple[int, int] | None, str | None]
"""Height and width, and Pillow's mode; ``None`` as stored."""


def form(size: Sequence[int] | None, colours: str) -> Form:
    """What a user asked for.

    Raises:
      TypeError, ValueError: no two lengths above 0, or no such colours.
    """
    checks.one_of("colours", colours, ("as stored", "grey", "rgb"))
    if size is not None:
        if len(size) != 2:
            raise ValueError(f"size is {size!r}, expected height and width.")
        for name, length in zip(("size[0]", "size[1]"), size, strict=True):
            checks.positive_int(name, length)
    mode = {"grey": "L", "rgb": "RGB"}.get(colours)
    return None if size is None else (int(size[0]), int(size[1])), mode


def pictures(
    images: Iterable[Any],
    what: str,
    size: tuple[int, int] | None = None,
    mode: str | None = None,
    names: Sequence[str] | None = None,
    fix: str = "decode={column: fs.data.decoders.pictures(size=[height, width])}",
) -> np.ndarray:
    """Images of one shape, ``[rows, height, width]`` or ``[rows, height, width, channels]``; uint8, or uint16.

    Args:
      images: the bytes of each, also as ``{bytes, path}``, or arrays.
      what: for messages: ``"column 'image'"``.
      size: height and width that all get.
      mode: that all get, as Pillow calls it: ``"L"`` or ``"RGB"``.
      names: of the images, for messages, where they have names.
      fix: what brings them to one size, for messages.

    Raises:
      ValueError: one is missing or damaged, or they differ in their shape; names the row.
    """
    found: list[np.ndarray] = []

    def called(row: int) -> str:
        return f"row {row}" if names is None else names[row]

    for row, one in enumerate(images):
        raw = one.get("bytes") if isinstance(one, dict) else one
        if raw is None:
            raise ValueError(
                f"{what} names a file in {called(row)}, expected the image itself. Embed the images."
            )
        try:
            image = _picture(raw, size, mode)
        except Exception as error:  # decoders raise what they like
            raise ValueError(f"{what} holds no image that can be read in {called(row)}: {error}") from error
        if found and (image.shape, image.dtype) != (found[0].shape, found[0].dtype):
            raise ValueError(
                f"{what} holds images of shape {list(image.shape)} ({called(row)}) and {list(found[0].shape)} ({called(0)}), "
                f"expected one shape. Bring them to one size by {fix}."
            )
        found.append(image)
    return np.stack(found) if found else np.zeros((0, 0, 0), np.uint8)


def _picture(raw: bytes | np.ndarray, size: tuple[int, int] | None, mode: str | None) -> np.ndarray:
    from PIL import Image  # slow to import

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # what is far too large, or damaged in a way that leaves grey areas
        try:
            if isinstance(raw, np.ndarray):
                opened = Image.fromarray(raw[..., 0] if raw.ndim == 3 and raw.shape[-1] == 1 else raw)
            else:
                opened = Image.open(io.BytesIO(raw), formats=_FORMATS)
            with opened as image:
                if mode is None and image.mode not in _AS_THEY_ARE:
                    mode = "L" if image.mode == "1" else "RGBA" if image.has_transparency_data else "RGB"
                found = image if mode is None else image.convert(mode)
                if size is not None:
                    found = found.resize((size[1], size[0]), Image.Resampling.BILINEAR)
                return np.array(found)
        except Image.DecompressionBombError as error:
            raise ValueError(str(error)) from error
