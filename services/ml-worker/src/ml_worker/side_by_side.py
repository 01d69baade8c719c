"""Pictures in a row."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

import numpy as np
from fluoro.v1 import dicom_pb2
from numpy.typing import NDArray
from PIL import Image

MAX_SIDE: Final = 1024
"""Of one picture, in pixels."""
GAP: Final = 8
"""Between two pictures, in pixels."""
BACKGROUND: Final = 32
"""Grey level between and below pictures: neither black nor white, as their edges may be."""

Picture = NDArray[np.uint8]
"""(rows, columns, 3)."""


def gamut(frame: NDArray[Any], image: dicom_pb2.RenderedImage) -> tuple[float, float]:
    """Which values of a frame are black and white.

    Of unsigned integers in no unit what they can hold, so that pictures of several images can be
    compared; of others the 1st and 99th percentile.
    """
    if frame.dtype.kind == "u" and image.certificate.unit == "1":
        bits = image.certificate.bits_stored or frame.dtype.itemsize * 8
        return 0.0, float(2**bits - 1)
    some = thinned(frame, MAX_SIDE).astype(np.float64)
    finite = some[np.isfinite(some)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    return float(low), float(high)


def as_shown(frame: NDArray[Any], low: float, high: float, side: int = MAX_SIDE) -> Picture:
    """A frame from black to white, at most `side` rows and columns.

    frame: (rows, columns), or with three samples behind. What is no number is black.
    """
    some = thinned(frame, side).astype(np.float64)
    levels = np.nan_to_num((some - low) * (255 / max(high - low, 1e-9)), nan=0, posinf=255)
    grey_or_rgb = np.clip(levels, 0, 255).round().astype(np.uint8)
    picture = Image.fromarray(grey_or_rgb).convert("RGB")
    return scaled(np.asarray(picture), side)


def thinned(frame: NDArray[Any], side: int) -> NDArray[Any]:
    """Every so many pixels, so that no large image is copied whole as floats."""
    stride = max(1, max(frame.shape[:2]) // (2 * side))
    return frame[::stride, ::stride]


def scaled(picture: Picture, side: int) -> Picture:
    """The picture with its longest side of that many pixels, if it has more."""
    rows, columns = picture.shape[:2]
    scale = side / max(rows, columns)
    if scale >= 1:
        return picture
    size = (max(1, round(columns * scale)), max(1, round(rows * scale)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BOX))


def row_of(pictures: Sequence[Picture]) -> bytes:
    """A PNG of pictures from left to right, their tops in line. The same arrays, the same bytes."""
    rows = max(len(picture) for picture in pictures)
    columns = sum(picture.shape[1] for picture in pictures) + GAP * (len(pictures) - 1)
    whole = np.full((rows, columns, 3), BACKGROUND, np.uint8)
    left = 0
    for picture in pictures:
        whole[: len(picture), left : left + picture.shape[1]] = picture
        left += picture.shape[1] + GAP
    png = BytesIO()
    Image.fromarray(whole).save(png, format="PNG")
    return png.getvalue()
