"""Shows the frames of an image to a model, as many at a time as memory and manifest allow."""

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, TypeVar

from fluoro.v1 import dicom_pb2
from fluoro_jobs.worker.context import StepContext
from numpy.typing import NDArray

from ml_worker.manifest import Input
from ml_worker.prepare import prepare, size_in_space

if TYPE_CHECKING:
    from ml_worker.sessions import Model
    from ml_worker.waiting import Work

Told = TypeVar("Told")

CHUNK_VOXELS: Final = 8 * 2**20
"""Most voxels of a chunk of frames: 32 MiB of float32 for each channel. Every slot holds AHEAD."""
AHEAD: Final = 2
"""Chunks of an image that are prepared at a time: one that runs, and the one after it."""


def show(
    model: "Model",
    tensor: Input,
    pixels: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    context: StepContext,
) -> Iterator[tuple[NDArray[Any], dict[str, NDArray[Any]]]]:
    """Chunks of frames, and what the model gives for them by the kind of output.

    pixels: (frames, rows, columns), or with samples behind. While a chunk runs, the next one is
    prepared. Errors as of `prepare` and `Model.run`; IMAGE_TOO_LARGE if a run may not have the
    memory for one frame.
    """
    step = samples_at_once(model, tensor, pixels.shape[1:3], image)

    def chunks() -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
        for start in range(0, len(pixels), step):
            frames = pixels[start : start + step]
            yield frames, prepare(frames, image, tensor)

    return run_ahead(model, tensor, chunks(), context)


def samples_at_once(
    model: "Model", tensor: Input, frame: Sequence[int], image: dicom_pb2.RenderedImage
) -> int:
    """How many samples of a frame of that size (rows, columns) make a chunk.

    Errors as of `show`.
    """
    size = size_in_space(frame, image, tensor)
    # By what a run may have and by what a slot may hold: a chunk is in memory before it runs.
    return min(model.samples_per_run(size), max(1, CHUNK_VOXELS // math.prod(size)))


def run_ahead(
    model: "Model",
    tensor: Input,
    chunks: Iterator[tuple[Told, NDArray[Any]]],
    context: StepContext,
) -> Iterator[tuple[Told, dict[str, NDArray[Any]]]]:
    """What the model gives for each chunk, by the kind of output, while the next one is made.

    chunks: the input's tensor, and what is told of it beside the outputs.
    """
    kinds = {output.name: output.kind for output in model.manifest.outputs}
    ahead: deque[tuple[Told, Work]] = deque()

    def first() -> tuple[Told, dict[str, NDArray[Any]]]:
        told, work = ahead[0]
        # Still in `ahead` meanwhile: if waiting for it is broken off, it is left with the others.
        found = model.batcher.result(work)
        ahead.popleft()
        return told, {kinds[name]: values for name, values in found.items()}

    try:
        for told, values in chunks:
            # Between chunks, because a film of thousands of frames may take minutes.
            context.check()
            ahead.append((told, model.submit({tensor.name: values}, context)))
            # One chunk runs while the next one is prepared. More would only take memory in every
            # slot.
            if len(ahead) == AHEAD:
                yield first()
        while ahead:
            yield first()
    finally:
        # Whoever stops early leaves, or runs would go on that nobody waits for.
        for _, work in ahead:
            model.batcher.leave(work)
