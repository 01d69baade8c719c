"""What an image-to-image model makes of a frame."""

from typing import TYPE_CHECKING, Any

import numpy as np
from fluoro.v1 import dicom_pb2
from fluoro_jobs.worker.context import StepContext
from numpy.typing import NDArray
from PIL import Image

from ml_worker.manifest import Input
from ml_worker.outputs import Picture as PictureOutput
from ml_worker.prepare import Box, size_in_space, visible
from ml_worker.showing import show
from ml_worker.side_by_side import MAX_SIDE, Picture, as_shown, gamut

if TYPE_CHECKING:
    from ml_worker.sessions import Model


def before_after(
    model: "Model",
    tensor: Input,
    pixels: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    context: StepContext,
) -> tuple[Picture, Picture]:
    """What the model sees of one frame, and what it makes of it, in the same size.

    pixels: (1, rows, columns), or with samples behind. Padding that the model adds is cut off
    again. Errors as of `show`.
    """
    output = model.manifest.output("image")
    assert isinstance(output, PictureOutput)  # the caller looked
    frame = pixels[0]
    seen, area = visible(frame.shape[:2], image, tensor)
    size = size_in_space(frame.shape[:2], image, tensor)
    ((_, found),) = show(model, tensor, pixels, image, context)
    # Channels first, as graphs give them; pictures have them last.
    made = found["image"][0].transpose(1, 2, 0)
    made = made[part_of(made.shape, size, seen)]
    if made.shape[2] == 1:
        made = made[..., 0]
    before = as_shown(frame[area], *gamut(frame[area], image))
    after = as_shown(made, *output.values)
    rows, columns = before.shape[:2]
    # In the larger of the two sizes: a model may make an image finer.
    if after.shape[0] * after.shape[1] > rows * columns:
        rows, columns = after.shape[:2]
    return resized(before, rows, columns), resized(after, rows, columns)


def part_of(made: tuple[int, ...], size: tuple[int, ...], seen: Box) -> Box:
    """Which rows and columns of what was made are of the image.

    made: its rows and columns. size: those of the tensor. seen: where the tensor shows the image.
    """
    down, across = (
        # Outwards to whole pixels, so that none of the image is cut off.
        slice(side.start * length // there, max(1, -(-side.stop * length // there)))
        for side, length, there in zip(seen, made, size, strict=False)
    )
    return down, across


def resized(picture: Picture, rows: int, columns: int) -> Picture:
    """The picture in that size, which has MAX_SIDE rows and columns at most."""
    assert max(rows, columns) <= MAX_SIDE
    if picture.shape[:2] == (rows, columns):
        return picture
    return np.asarray(Image.fromarray(picture).resize((columns, rows), Image.Resampling.BILINEAR))
