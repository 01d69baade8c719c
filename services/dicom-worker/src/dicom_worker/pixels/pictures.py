"""Pictures as files: PNG, JPEG and WebP, smaller ones, and several in one."""

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from fluoro.v1.dicom_pb2 import RenderDicom
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from PIL import Image as PilImage

Pixels = NDArray[np.uint8]
"""(rows, columns) grey or (rows, columns, 3) RGB."""

SIDE_LIMITS_PX: Final = {"WEBP": 16_383, "JPEG": 65_500}
"""Longest side of a WebP (RFC 9649) and of a JPEG (JPEG_MAX_DIMENSION of libjpeg)."""
LOSSLESS: Final = 100
"""Quality at which a WebP is lossless."""


@dataclass(frozen=True, slots=True)
class PictureFormat:
    """A format. name: as Pillow has it."""

    name: str
    suffix: str
    media_type: str


FORMATS: Final = {
    RenderDicom.PICTURE_FORMAT_UNSPECIFIED: PictureFormat("PNG", ".png", "image/png"),
    RenderDicom.PICTURE_FORMAT_PNG: PictureFormat("PNG", ".png", "image/png"),
    RenderDicom.PICTURE_FORMAT_JPEG: PictureFormat("JPEG", ".jpg", "image/jpeg"),
    RenderDicom.PICTURE_FORMAT_WEBP: PictureFormat("WEBP", ".webp", "image/webp"),
}


def encoded(picture: Pixels, format_: PictureFormat, quality: int) -> bytes:
    """The picture as a file. IMAGE_TOO_LARGE if the format cannot hold it."""
    limit = SIDE_LIMITS_PX.get(format_.name)
    if limit and max(picture.shape[:2]) > limit:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            f"{format_.name} holds at most {limit} pixels a side. Ask for PNG.",
        )
    options: dict[str, object] = {} if format_.name == "PNG" else {"quality": quality}
    if format_.name == "WEBP" and quality == LOSSLESS:
        options["lossless"] = True
    buffer = BytesIO()
    PilImage.fromarray(picture).save(buffer, format_.name, **options)
    return buffer.getvalue()


def fitted(picture: Pixels, longest_side: int) -> Pixels:
    """The picture made smaller, never larger, until its longest side has so many pixels."""
    rows, columns = picture.shape[:2]
    longest = max(rows, columns)
    if longest <= longest_side:
        return picture
    size = (
        max(1, round(columns * longest_side / longest)),
        max(1, round(rows * longest_side / longest)),
    )
    return np.asarray(PilImage.fromarray(picture).resize(size, PilImage.Resampling.LANCZOS))


def sheet(tiles: Sequence[Pixels], columns: int, tile_px: int) -> Pixels:
    """The tiles line by line on black, each in the middle of its square.

    RGB if one of them is. A tile is at most `tile_px` long and wide.
    """
    lines = -(-len(tiles) // columns)
    depth = (3,) if any(tile.ndim > 2 for tile in tiles) else ()  # noqa: PLR2004 - grey has two
    result = np.zeros((lines * tile_px, columns * tile_px, *depth), np.uint8)
    for number, tile in enumerate(tiles):
        rows, width = tile.shape[:2]
        top = number // columns * tile_px + (tile_px - rows) // 2
        left = number % columns * tile_px + (tile_px - width) // 2
        result[top : top + rows, left : left + width] = (
            tile[..., None] if depth and tile.ndim < 3 else tile  # noqa: PLR2004 - RGB has three
        )
    return result
