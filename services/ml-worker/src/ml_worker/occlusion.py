"""What a class depends on: its probability while each cell of the image is hidden in turn.

Zeiler and Fergus 2014, Visualizing and Understanding Convolutional Networks, section 4.2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any

import numpy as np
from fluoro.v1 import dicom_pb2
from fluoro_jobs.worker.context import StepContext
from numpy.typing import NDArray

from ml_worker.classifying import probabilities
from ml_worker.manifest import Input
from ml_worker.novelty import UNLIKE, novel
from ml_worker.outputs import Classes
from ml_worker.prepare import Box, NotForThisImageError, prepare, visible
from ml_worker.showing import run_ahead, samples_at_once

if TYPE_CHECKING:
    from ml_worker.sessions import Model


@dataclass(frozen=True, slots=True)
class Occluded:
    """How probable a class is, whole and with parts hidden.

    place: of the class among the labels. whole: its probability. drops: (rows, columns) float64,
    how far it falls if the cell is hidden. area: the pixels that the cells cover.
    """

    place: int
    whole: float
    drops: NDArray[np.float64]
    area: Box


def occlude(
    model: "Model",
    tensor: Input,
    frame: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    cells: int,
    place: int | None,
    context: StepContext,
) -> Occluded:
    """Hides each cell of a frame behind the mean of what the model sees of it.

    frame: (rows, columns), or with samples behind. cells: on each side of the grid, at most. place:
    of the class among the labels, None for the most probable one. The model sees cells² + 1
    samples at most, as many at a time as fit. Errors as of `show`, and NotForThisImageError if the
    model calls the frame unlike its training data.
    """
    output = model.manifest.output("classes")
    assert isinstance(output, Classes)  # the caller looked
    step = samples_at_once(model, tensor, frame.shape[:2], image)
    seen, area = visible(frame.shape[:2], image, tensor)
    rows, columns = (edges(side, cells) for side in seen)
    grid = [
        (slice(*down), slice(*across))
        for down, across in product(pairwise(rows), pairwise(columns))
    ]
    whole = prepare(frame[np.newaxis], image, tensor)
    chunks = hidden(whole, tensor, seen, [None, *grid], step)
    parts: list[NDArray[np.float64]] = []
    for _, outputs in run_ahead(model, tensor, chunks, context):
        # The first sample hides nothing; those that do are unlike all training data.
        if not parts and novel(model, outputs)[0]:
            raise NotForThisImageError(UNLIKE)
        parts.append(probabilities(output, outputs["classes"]))
    found = np.concatenate(parts)
    # The most probable of the whole image, before anything is hidden.
    place = int(found[0].argmax()) if place is None else place
    scores = found[:, place]
    drops = (scores[0] - scores[1:]).reshape(len(rows) - 1, len(columns) - 1)
    return Occluded(place, float(scores[0]), drops, area)


def edges(side: slice, cells: int) -> list[int]:
    """Where cells of about one size begin, and where the last one ends; one pixel each at least."""
    length = side.stop - side.start
    count = min(cells, length)
    return [side.start + length * n // count for n in range(count + 1)]


def hidden(
    whole: NDArray[Any], tensor: Input, seen: Box, grid: Sequence[Box | None], step: int
) -> Iterator[tuple[None, NDArray[Any]]]:
    """The tensor with each of these boxes hidden, so many at a time. None hides nothing."""
    sides = tensor.layout.index("H"), tensor.layout.index("W")

    def within(box: Box) -> tuple[slice, ...]:
        places = [slice(None)] * whole.ndim
        places[sides[0]], places[sides[1]] = box
        return tuple(places)

    mean = whole[within(seen)].mean(axis=sides, keepdims=True, dtype=np.float64)
    if whole.dtype.kind in "iu":
        # astype cuts off, which would make the hidden cell darker by half a step.
        mean = np.rint(mean)
    fill = mean.astype(whole.dtype)
    for start in range(0, len(grid), step):
        some = grid[start : start + step]
        samples = np.repeat(whole, len(some), axis=0)
        for sample, box in enumerate(some):
            if box is not None:
                samples[sample : sample + 1][within(box)] = fill
        yield None, samples
