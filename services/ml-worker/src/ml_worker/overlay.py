"""Draws a label map over the image it was made from."""

from io import BytesIO
from typing import Any

import numpy as np
from fluoro.v1 import dicom_pb2
from numpy.typing import NDArray
from PIL import Image, ImageColor

from ml_worker.manifest import Manifest
from ml_worker.prepare import LUMA


def draw_overlay(
    frame: NDArray[Any],
    labels: NDArray[np.uint8],
    manifest: Manifest,
    shown: dicom_pb2.VoiWindow | None = None,
) -> bytes:
    """A PNG of one frame in grey under the translucent colours of its labels.

    frame: (rows, columns), or with samples behind. labels: uint8 (rows, columns). shown: the window
    of a manifest that has none; without it, from the smallest to the largest value.
    One pixel per voxel. The same arrays give the same bytes.
    """
    style = manifest.overlay
    assert style is not None  # a manifest with a label_map has it
    in_colour = frame.ndim == 3  # noqa: PLR2004 - rows, columns, samples
    one = frame.astype(np.float32) @ LUMA if in_colour else frame
    center, width = style.window_center, style.window_width
    if center is None or width is None:
        # One NaN would make both ends NaN, and the picture black.
        low, high = float(np.nanmin(one)), float(np.nanmax(one))
        center, width = (shown.center, shown.width) if shown else ((low + high) / 2, high - low)
    grey = apply_window(one, center, width)
    image = np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    # Labels without a colour, as a background, leave the image as it is.
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
    # A width of 1 would divide by 0; the standard makes it a step (PS3.3 C.11.2.1.2.1).
    scale = max(width - 1, 1)
    grey = ((values.astype(np.float32) - (center - 0.5)) / scale + 0.5) * 255
    levels: NDArray[np.float32] = np.clip(np.nan_to_num(grey, nan=0.0), 0, 255)
    return levels
