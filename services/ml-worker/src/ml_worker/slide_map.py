"""Draws what a model says of the tiles of a slide."""

from collections.abc import Sequence
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ml_worker.box_picture import COLORS
from ml_worker.manifest import Label
from ml_worker.prepare import LUMA

MAX_SIDE: Final = 1024
"""Of the picture, in pixels. A slide of more tiles than that has a pixel for each."""
MAX_TILE: Final = 64
"""Of a tile in the picture: a few large tiles would look like a photograph."""
OPACITY: Final = 0.6
"""Over a tile of which the model is wholly sure."""
WHITE: Final = 255

Squares = NDArray[np.float32]
"""(tiles, side, side)."""


def side_of(down: int, across: int) -> int:
    """Pixels of a tile's side in the picture of a grid."""
    return max(1, min(MAX_TILE, MAX_SIDE // max(down, across)))


def colors_of(labels: Sequence[Label]) -> list[str]:
    """The colour of each label, as #rrggbb."""
    return [each.color or COLORS[place % len(COLORS)] for place, each in enumerate(labels)]


def grey_of(tiles: NDArray[np.uint8], side: int) -> Squares:
    """Tiles, (tiles, rows, columns, 3), as small as in the picture."""
    taken = np.arange(side) * tiles.shape[1] // side
    grey: Squares = tiles[:, taken[:, np.newaxis], taken] @ LUMA
    return grey


def draw_slide_map(
    grid: tuple[int, int],
    places: Sequence[tuple[int, int]],
    grey: Squares,
    scores: NDArray[np.float64],
    colors: Sequence[str],
) -> bytes:
    """A PNG of the tiles, each under the colour of its most probable class; white elsewhere.

    grid: rows and columns of tiles. places: of these tiles in it. scores: (tiles, labels), not
    numbers for a tile without a class, which stays grey. The same tiles give the same bytes.
    """
    side = grey.shape[1]
    paint = np.array([[int(one[at : at + 2], 16) for at in (1, 3, 5)] for one in colors])
    over = paint[scores.argmax(axis=1)][:, np.newaxis, np.newaxis]
    # NaN becomes 0: a tile without a class stays grey.
    opacity = (OPACITY * np.nan_to_num(scores.max(axis=1)))[:, np.newaxis, np.newaxis, np.newaxis]
    painted = (grey[..., np.newaxis] * (1 - opacity) + over * opacity).round()
    canvas = np.full((grid[0] * side, grid[1] * side, 3), WHITE, np.uint8)
    for (row, column), square in zip(places, painted, strict=True):
        canvas[row * side :, column * side :][:side, :side] = square
    buffer = BytesIO()
    # Grain does not compress: more effort takes thrice the time and makes no smaller file.
    Image.fromarray(canvas).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()
