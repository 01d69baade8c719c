"""Draws over an image what a class depends on."""

from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml_worker.occlusion import Occluded
from ml_worker.prepare import LUMA

MAX_SIDE: Final = 1024
"""Of the picture, in pixels."""
FOR: Final = (214, 39, 40)
AGAINST: Final = (31, 119, 180)
OPACITY: Final = 0.6
"""Of the cell that matters most."""
LEAST_DROP: Final = 1e-3
"""What changes the probability by less is noise: a picture of it would look like evidence."""


def draw_heat_map(frame: NDArray[Any], found: Occluded) -> bytes:
    """A PNG of the frame in grey under its cells: red speaks for the class, blue against it.

    frame: (rows, columns), or with samples behind. The same arrays give the same bytes.
    """
    grey = small(frame)
    rows, columns = grey.shape
    picture = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    down = cells_of(rows, frame.shape[0], found.area[0], found.drops.shape[0])
    across = cells_of(columns, frame.shape[1], found.area[1], found.drops.shape[1])
    inside = np.ix_(down >= 0, across >= 0)
    drops = found.drops[np.ix_(down[down >= 0], across[across >= 0])][..., np.newaxis]
    strongest = max(float(np.abs(found.drops).max()), LEAST_DROP)
    opacity = OPACITY * np.abs(drops) / strongest * (np.abs(drops) >= LEAST_DROP)
    color = np.where(drops > 0, np.array(FOR), np.array(AGAINST))
    picture[inside] = picture[inside] * (1 - opacity) + color * opacity
    png = BytesIO()
    Image.fromarray(picture.round().astype(np.uint8)).save(png, format="PNG")
    return png.getvalue()


def small(frame: NDArray[Any]) -> NDArray[np.float64]:
    """Grey levels 0 to 255 of a frame, which has MAX_SIDE rows and columns at most then."""
    # Every so many pixels first, so that no large image is copied whole as floats.
    stride = max(1, max(frame.shape[:2]) // (2 * MAX_SIDE))
    some = frame[::stride, ::stride].astype(np.float32)
    grey = some @ LUMA if some.ndim == 3 else some  # noqa: PLR2004 - rows, columns, samples
    finite = grey[np.isfinite(grey)]
    # Percentiles, because one bright pixel would leave the rest of the image black.
    low, high = np.percentile(finite, [1, 99]) if finite.size else (0, 0)
    levels = np.nan_to_num((grey - low) * (255 / max(high - low, 1e-6)), nan=0, neginf=0)
    scale = min(1, MAX_SIDE / max(levels.shape))
    size = [max(1, round(length * scale)) for length in levels.shape]
    picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    return np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BOX), np.float64)


def cells_of(pixels: int, length: int, area: slice, cells: int) -> NDArray[np.intp]:
    """The cell that each pixel of the picture lies in, -1 outside of all.

    pixels: of the picture's side. length: the same side of the image. area: where the cells lie.
    """
    centers = (np.arange(pixels) + 0.5) * length / pixels - area.start
    cell = np.floor(centers * cells / (area.stop - area.start)).astype(np.intp)
    return np.where((cell >= 0) & (cell < cells), cell, -1)
