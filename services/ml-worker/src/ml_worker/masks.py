"""Masks: scores in the size that a model sees, as a label for each pixel of the image."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fluoro.v1 import dicom_pb2
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from PIL import Image

from ml_worker.manifest import Input
from ml_worker.outputs import Mask
from ml_worker.prepare import size_in_space, visible

if TYPE_CHECKING:
    from ml_worker.sessions import Model

MOST_LABELS: Final = 256
"""A label map has 8 bits."""

ONE: Final = 1 + 1e-3
"""Largest probability: float16 may give a little more than 1, and as little less than 0."""

Edges = tuple[float, float, float, float]
"""Left, upper, right and lower edge in a mask, in its pixels."""


def labels_pixels(model: "Model", tensor: Input) -> bool:
    """Whether the mask of the model has a label for every pixel of a frame.

    One score per pixel tells two labels apart, outside and inside; otherwise each label has one.
    """
    mask, labels = model.manifest.output("mask"), len(model.manifest.labels)
    if not isinstance(mask, Mask) or model.manifest.overlay is None or tensor.image is None:
        return False
    told = 2 if mask.shape[1] == 1 else mask.shape[1]
    # What `cover` cuts off, the model does not see.
    return told == labels and 1 < labels <= MOST_LABELS and tensor.image.resize != "cover"


def label_map_of(
    model: "Model",
    tensor: Input,
    image: dicom_pb2.RenderedImage,
    size: Sequence[int],
    scores: NDArray[Any],
) -> NDArray[np.uint8]:
    """Labels of a frame of that size (rows, columns). scores: (labels or 1, rows, columns).

    FluoroError MODEL_OUTPUT_INVALID if there are none, or if they should be probabilities and are
    not.
    """
    mask = model.manifest.output("mask")
    assert isinstance(mask, Mask)  # the caller looked
    is_probable = scores.min(initial=0) >= 1 - ONE and scores.max(initial=0) <= ONE
    if scores.size == 0 or (mask.scores == "probabilities" and not is_probable):
        raise FluoroError(
            Reason.MODEL_OUTPUT_INVALID,
            f"{model.manifest.name} gave a mask that is empty, or not of probabilities.",
        )
    edges = edges_of(size, scores.shape[1:], image, tensor)
    if len(scores) > 1:
        return _most_probable(scores, size, edges)
    return _inside(scores[0], mask, size, edges)


def edges_of(
    frame: Sequence[int], mask: Sequence[int], image: dicom_pb2.RenderedImage, tensor: Input
) -> Edges:
    """Where the frame lies in its mask. Both have rows and columns; a mask may be coarser."""
    (down, across), _ = visible(frame, image, tensor)
    rows, columns = size_in_space(frame, image, tensor)
    tall, wide = mask[0] / rows, mask[1] / columns
    return across.start * wide, down.start * tall, across.stop * wide, down.stop * tall


def _inside(
    scores: NDArray[Any], mask: Mask, size: Sequence[int], edges: Edges
) -> NDArray[np.uint8]:
    values = scores.astype(np.float32)
    if mask.scores == "logits":
        # Without overflow at either end.
        values = np.exp(-np.logaddexp(0, -values))
    return (_scaled(values, size, edges) >= mask.threshold).astype(np.uint8)


def _most_probable(scores: NDArray[Any], size: Sequence[int], edges: Edges) -> NDArray[np.uint8]:
    """Label by label: all of them in the size of the image may not fit into memory."""
    best = _scaled(scores[0], size, edges)
    labels = np.zeros(best.shape, np.uint8)
    for label in range(1, len(scores)):
        other = _scaled(scores[label], size, edges)
        labels[other > best] = label
        np.maximum(best, other, out=best)
    return labels


def _scaled(scores: NDArray[Any], size: Sequence[int], edges: Edges) -> NDArray[np.float32]:
    """The part within the edges, in that many rows and columns."""
    picture = Image.fromarray(scores.astype(np.float32))
    rows, columns = size
    scaled = picture.resize((columns, rows), Image.Resampling.BILINEAR, box=edges)
    return np.array(scaled, np.float32)
