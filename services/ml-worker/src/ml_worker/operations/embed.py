"""EmbedImages: shows certified pixels to a model that makes vectors of them."""

from io import BytesIO
from typing import TYPE_CHECKING, Any

import numpy as np
from fluoro.v1 import dicom_pb2, embedding_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.images import Models, for_each_image, frames_input, wrong_kind
from ml_worker.manifest import Input
from ml_worker.showing import show

if TYPE_CHECKING:
    from ml_worker.sessions import Model


@handles(embedding_pb2.EmbedImages)
def embed_images(
    request: embedding_pb2.EmbedImages, context: StepContext
) -> embedding_pb2.EmbedImagesResult:
    """Runs a model of this process on every image that earlier steps certified."""
    # ONNX Runtime takes half a second to import, and the table of handlers does not need it.
    from ml_worker.registry import models  # noqa: PLC0415 - see above

    return embed(request, context, models())


def embed(
    request: embedding_pb2.EmbedImages, context: StepContext, models: Models
) -> embedding_pb2.EmbedImagesResult:
    """Makes vectors of every image by one of these models, each image as an item.

    FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE if there is no such model, MODEL_NOT_APPLICABLE
    if it makes no vectors of images.
    """
    model = models.find(request.model, request.version)
    tensor = suited_input(model)
    result = embedding_pb2.EmbedImagesResult(model=model.reference)

    def embed_image(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        vectors = np.concatenate(
            [
                unit_vectors(found["embedding"], model)
                for _, found in show(model, tensor, pixels, image, context)
            ]
        )
        frames, dimensions = vectors.shape
        result.embeddings.add(
            input=item.input,
            item=item.key,
            vectors=item.put("embedding", ".npy", "embedding", "application/x-npy", npy(vectors)),
            frames=frames,
            dimensions=dimensions,
            # FindSimilar compares vectors of one manifest alone.
            manifest_sha256=model.manifest_sha256,
        )

    for_each_image(model, context, "embed", embed_image)
    return result


def suited_input(model: "Model") -> Input:
    """The input that takes frames. FluoroError MODEL_NOT_APPLICABLE unless it makes vectors."""
    tensor = frames_input(model)
    if tensor is None or "embedding" not in model.manifest.kinds:
        raise wrong_kind(model, "EmbedImages needs a model of single frames that gives embedding.")
    return tensor


def unit_vectors(values: NDArray[Any], model: "Model") -> NDArray[np.float32]:
    """Rows of length 1, little-endian float32.

    values: (samples, dimensions), numbers of any size. FluoroError MODEL_OUTPUT_INVALID if a row is
    all zeros.
    """
    rows = values.astype(np.float64)
    # First by the largest number, whose square could be too large or too small for a float64.
    largest = np.abs(rows).max(axis=1, keepdims=True)
    if not largest.all():
        raise FluoroError(
            Reason.MODEL_OUTPUT_INVALID,
            f"{model.manifest.name} gave a vector of zeros for this image, which points nowhere.",
        )
    rows /= largest
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype("<f4")


def npy(array: NDArray[Any]) -> bytes:
    """As a file."""
    file = BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()
