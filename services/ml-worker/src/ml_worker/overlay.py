"""Draws a label map over the image it was made from."""

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ml_worker.manifest import Manifest
from ml_worker.prepare import LUMA


def draw_overlay(frame: NDArray[Any], labels: NDArray[np.uint8], manifest: Manifest) -> bytes:
    """A PNG of one frame in grey under the translucent colours of its labels.

    frame: (rows, columns), or with samples behind. labels: uint8 (rows, columns).
    One pixel per voxel. The same arrays give the same bytes.
    """
    style = manifest.overlay
    assert style is not None  # a manifest with a label_map has it
    in_colour = frame.ndim == 3  # noqa: PLR2004 - rows, columns, samples
    one = frame.astype(np.float32) @ LUMA if in_colour else frame
    grey = apply_window(one, style.window_center, style.window_width)
    image = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    for label in manifest.labels:
        if label.color is not None:
            inside = labels == label.value
            image[inside] = (1 - style.opacity) * image[inside] + style.opacity * np.array(
                ImageColor.getrgb(label.color)
            )
    png = BytesIO()
    Image.fromarray(image.round().astype(np.uint8)).save(png, format="PNG")
    return png.getvalue()


def apply_window(values: NDArray[Any], center: float, width: float) -> NDArray[np.float32]:
    """Grey levels 0 to 255 by the linear VOI function of PS3.3 C.11.2.1.2.1.

    What is not a number is black.
    """
    scale = max(width - 1, 1)
    grey = ((values.astype(np.float32) - (center - 0.5)) / scale + 0.5) * 255
    levels: NDArray[np.float32] = np.clip(np.nan_to_num(grey, nan=0.0), 0, 255)
    return levels
