"""Shows the frames of an image to a model, as many at a time as memory and manifest allow."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fluoro.v1 import dicom_pb2
from fluoro_jobs.worker.context import StepContext
from numpy.typing import NDArray

from ml_worker.manifest import Input
from ml_worker.prepare import prepare, size_in_space

if TYPE_CHECKING:
    from ml_worker.sessions import Model


def show(
    model: "Model",
    tensor: Input,
    pixels: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    context: StepContext,
) -> Iterator[tuple[NDArray[Any], dict[str, NDArray[Any]]]]:
    """Batches of frames, and what the model gives for them by the kind of output.

    pixels: (frames, rows, columns), or with samples behind. Errors as of `prepare` and
    `Model.runs`; IMAGE_TOO_LARGE if a run may not have the memory for one frame.
    """
    step = model.samples_per_run(size_in_space(pixels.shape[1:3], image, tensor))
    kinds = {output.name: output.kind for output in model.manifest.outputs}
    with model.runs(context.cancelled) as run:
        for start in range(0, len(pixels), step):
            context.check()
            frames = pixels[start : start + step]
            found = run({tensor.name: prepare(frames, image, tensor)})
            yield frames, {kinds[name]: values for name, values in found.items()}
