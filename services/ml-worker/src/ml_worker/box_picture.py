"""Draws objects over the frame they were found in."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ml_worker.detecting import Detected
from ml_worker.heat_map import small
from ml_worker.manifest import Label

COLORS: Final = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7")
"""Of labels without a colour, in turn: those of Okabe and Ito that are seen on grey."""
LINE: Final = 2
"""Pixels of the picture."""


def draw_boxes(frame: NDArray[Any], objects: Sequence[Detected], labels: Sequence[Label]) -> bytes:
    """A PNG of the frame in grey with the boxes and points of objects.

    frame: (rows, columns), or with samples behind. The same arrays give the same bytes.
    """
    grey = small(frame).round().astype(np.uint8)
    picture = Image.fromarray(grey).convert("RGB")
    drawing = ImageDraw.Draw(picture)
    scale = np.array([grey.shape[1] / frame.shape[1], grey.shape[0] / frame.shape[0]])
    # The likeliest last, so that it lies on top.
    for each in reversed(objects):
        color = labels[each.label].color or COLORS[each.label % len(COLORS)]
        low = each.box[:2] * scale
        # A box ends before the pixel that follows it.
        high = np.maximum(low, each.box[2:] * scale - 1)
        drawing.rectangle((*low.round(), *high.round()), outline=color, width=LINE)
        for x, y in each.points * scale:
            drawing.ellipse((x - LINE, y - LINE, x + LINE, y + LINE), fill=color)
    png = BytesIO()
    picture.save(png, format="PNG")
    return png.getvalue()
