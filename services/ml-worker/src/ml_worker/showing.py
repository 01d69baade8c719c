"""Shows the frames of an image to a model, as many at a time as memory and manifest allow."""

import math
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final

from fluoro.v1 import dicom_pb2
from fluoro_jobs.worker.context import StepContext
from numpy.typing import NDArray

from ml_worker.manifest import Input
from ml_worker.prepare import prepare, size_in_space

if TYPE_CHECKING:
    from ml_worker.sessions import Model
    from ml_worker.waiting import Work

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
    size = size_in_space(pixels.shape[1:3], image, tensor)
    step = min(model.samples_per_run(size), max(1, CHUNK_VOXELS // math.prod(size)))
    kinds = {output.name: output.kind for output in model.manifest.outputs}
    ahead: deque[tuple[NDArray[Any], Work]] = deque()

    def first() -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
        frames, work = ahead[0]
        found = model.batcher.result(work)
        ahead.popleft()
        return frames, {kinds[name]: values for name, values in found.items()}

    try:
        for start in range(0, len(pixels), step):
            context.check()
            frames = pixels[start : start + step]
            shown = {tensor.name: prepare(frames, image, tensor)}
            ahead.append((frames, model.submit(shown, context)))
            if len(ahead) == AHEAD:
                yield first()
        while ahead:
            yield first()
    finally:
        for _, work in ahead:
            model.batcher.leave(work)
