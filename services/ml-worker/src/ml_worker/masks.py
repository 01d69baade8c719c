"""Masks: scores in the size that a model sees, as a label for each pixel of the image."""

from collections.abc import Iterable, Sequence
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

ONE: Final = 1 + 1e-3
"""Largest probability: float16 may give a little more than 1, and as little less than 0."""

Edges = tuple[float, float, float, float]
"""Left, upper, right and lower edge in a mask, in its pixels."""


def labels_pixels(model: "Model", tensor: Input) -> bool:
    """Whether the mask of the model has a label for every pixel of a frame."""
    manifest = model.manifest
    # What `cover` cuts off, the model does not see.
    sees_all = tensor.image is not None and tensor.image.resize != "cover"
    return sees_all and manifest.mask_has_all_labels and manifest.overlay is not None


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
    # The order of labels is the same for logits, but a threshold is a probability.
    if mask.scores == "logits" and len(scores) == 1:
        scores = probable(scores)
    edges = edges_of(size, scores.shape[1:], image, tensor)
    return labels_by((_scaled(one, size, edges) for one in scores), mask.threshold)


def labels_by(scores: Iterable[NDArray[np.float32]], threshold: float) -> NDArray[np.uint8]:
    """Labels (rows, columns) by scores of the same size: one for each label, the highest counts.

    A single one is the probability of label 1, from `threshold` on; the rest has label 0. Scores
    are taken one by one: all of them in the size of an image may not fit into memory.
    """
    each = iter(scores)
    best, label = next(each), 0
    labels = np.zeros(best.shape, np.uint8)
    for label, other in enumerate(each, 1):
        labels[other > best] = label
        best = np.maximum(best, other)
    return labels if label else (best >= threshold).astype(np.uint8)


def probable(logits: NDArray[Any]) -> NDArray[np.float32]:
    """Their probabilities, without overflow at either end."""
    found: NDArray[np.float32] = np.exp(-np.logaddexp(0, -logits.astype(np.float32)))
    return found


def edges_of(
    frame: Sequence[int], mask: Sequence[int], image: dicom_pb2.RenderedImage, tensor: Input
) -> Edges:
    """Where the frame lies in its mask. Both have rows and columns; a mask may be coarser."""
    (down, across), _ = visible(frame, image, tensor)
    rows, columns = size_in_space(frame, image, tensor)
    tall, wide = mask[0] / rows, mask[1] / columns
    return across.start * wide, down.start * tall, across.stop * wide, down.stop * tall


def _scaled(scores: NDArray[Any], size: Sequence[int], edges: Edges) -> NDArray[np.float32]:
    """The part within the edges, in that many rows and columns."""
    picture = Image.fromarray(scores.astype(np.float32))
    rows, columns = size
    scaled = picture.resize((columns, rows), Image.Resampling.BILINEAR, box=edges)
    return np.array(scaled, np.float32)
