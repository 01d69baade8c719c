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
    some = shrunk(frame)
    finite = some[np.isfinite(some)]
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0.0, 1.0)
    return float(low), float(high)


def as_shown(frame: NDArray[Any], low: float, high: float, side: int = MAX_SIDE) -> Picture:
    """A frame from black to white, at most `side` rows and columns.

    frame: (rows, columns), or with three samples behind. What is no number is black.
    """
    some = shrunk(frame, side).astype(np.float64)
    # Infinity is as bright as can be; NaN is black, as in overlays.
    levels = np.nan_to_num((some - low) * (255 / max(high - low, 1e-9)), nan=0, posinf=255)
    picture = np.clip(levels, 0, 255).round().astype(np.uint8)
    return np.asarray(Image.fromarray(picture).convert("RGB"))


def shrunk(frame: NDArray[Any], side: int = MAX_SIDE) -> NDArray[np.float32]:
    """The frame with its longest side of that many pixels, if it has more; axes as they are."""
    # Every so many pixels first, so that no large image is copied whole as floats.
    stride = max(1, max(frame.shape[:2]) // (2 * side))
    some = frame[::stride, ::stride].astype(np.float32)
    scale = side / max(some.shape[:2])
    if scale >= 1:
        return some
    return stretched(some, *(max(1, round(length * scale)) for length in some.shape[:2]))


def stretched(values: NDArray[np.float32], rows: int, columns: int) -> NDArray[np.float32]:
    """In that size: each new pixel is the mean of what it shows."""
    if values.ndim == 3:  # noqa: PLR2004 - rows, columns, samples
        planes = [stretched(plane, rows, columns) for plane in np.moveaxis(values, 2, 0)]
        return np.stack(planes, axis=2)
    picture = Image.fromarray(values).resize((columns, rows), Image.Resampling.BOX)
    return np.asarray(picture, np.float32)


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
