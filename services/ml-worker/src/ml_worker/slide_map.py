"""Draws what a model says of the tiles of a slide."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

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


class SlideMap:
    """The picture, tile by tile. Where no tile is, it is white."""

    def __init__(self, down: int, across: int, labels: Sequence[Label]) -> None:
        """down, across: the grid."""
        self.side = max(1, min(MAX_TILE, MAX_SIDE // max(down, across)))
        self.colors = [
            each.color or COLORS[place % len(COLORS)] for place, each in enumerate(labels)
        ]
        self._paint = np.array(
            [[int(one[at : at + 2], 16) for at in (1, 3, 5)] for one in self.colors]
        )
        self._canvas = np.full((down * self.side, across * self.side, 3), WHITE, np.uint8)

    def add(
        self, places: Sequence[tuple[int, int]], tiles: NDArray[np.uint8], scores: NDArray[Any]
    ) -> None:
        """Tiles in the colours of their most probable classes.

        places: their rows and columns in the grid. tiles: (tiles, rows, columns, 3). scores:
        (tiles, labels).
        """
        taken = np.arange(self.side) * tiles.shape[1] // self.side
        grey = (tiles[:, taken[:, np.newaxis], taken] @ LUMA)[..., np.newaxis]
        best = scores.argmax(axis=1)
        opacity = (OPACITY * scores.max(axis=1))[:, np.newaxis, np.newaxis, np.newaxis]
        paint = self._paint[best][:, np.newaxis, np.newaxis]
        painted = (grey * (1 - opacity) + paint * opacity).round()
        for (row, column), square in zip(places, painted, strict=True):
            top, left = row * self.side, column * self.side
            self._canvas[top : top + self.side, left : left + self.side] = square

    def png(self) -> bytes:
        """The picture. The same tiles give the same bytes."""
        buffer = BytesIO()
        Image.fromarray(self._canvas).save(buffer, format="PNG")
        return buffer.getvalue()
