"""CompareImages: puts images side by side, and tells how alike they are to a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fluoro.v1 import compare_pb2, dicom_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.images import Models, for_each_certified, for_each_image
from ml_worker.operations.embed import suited_input, unit_vectors
from ml_worker.operations.similar import DECIMALS
from ml_worker.showing import show
from ml_worker.side_by_side import GAP, as_shown, gamut, row_of, shrunk, stretched

if TYPE_CHECKING:
    from ml_worker.sessions import Model

SIDE: Final = 512
"""Most rows and columns of one image in the picture."""
MOST_IMAGES: Final = 16
PICTURE: Final = "comparison.png"


@dataclass(frozen=True, slots=True)
class Shown:
    """An image to compare.

    frame: its first one, SIDE pixels a side at most. black, white: values that are shown so. unit:
    of the values. size_mm: of the whole frame, None if unknown. vector: of length 1, if there is a
    model.
    """

    input: int
    key: str
    frame: NDArray[np.float32]
    black: float
    white: float
    unit: str
    size_mm: tuple[float, float] | None
    vector: NDArray[np.float32] | None


@handles(compare_pb2.CompareImages)
def compare_images(
    request: compare_pb2.CompareImages, context: StepContext
) -> compare_pb2.CompareImagesResult:
    """Compares images that earlier steps certified with the first of them."""
    # ONNX Runtime takes half a second to import, and the table of handlers does not need it.
    from ml_worker.registry import models  # noqa: PLC0415 - see above

    return compare(request, context, models() if request.model else None)


def compare(
    request: compare_pb2.CompareImages, context: StepContext, models: Models | None
) -> compare_pb2.CompareImagesResult:
    """Compares images, each an item; with vectors by one of these models if one is named.

    FluoroError CHOICE_UNAVAILABLE for a key that no image has and for too many images,
    NO_APPLICABLE_INPUT if less than two can be compared, and errors as of EmbedImages.
    """
    keys = chosen(request.items, [each.key for each in context.inputs])
    model = models.find(request.model, request.version) if models else None
    found: dict[str, Shown] = {}

    def look(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        if item.key in keys:
            found[item.key] = shown(item, image, pixels, vector_of(pixels, image, model, context))

    if model is None:
        for_each_certified(context, "compare", look)
    else:
        suited_input(model)
        for_each_image(model, context, "compare", look)
    images = [found[key] for key in keys if key in found]
    if len(images) < 2 or keys[0] not in found:  # noqa: PLR2004 - one is no comparison
        raise FluoroError(
            Reason.NO_APPLICABLE_INPUT,
            "A comparison needs the reference, which is the first image, and one other that can be "
            "read. ListItems says what became of each.",
        )
    return laid_out(images, model, context)


def chosen(asked: Sequence[str], there: Sequence[str]) -> list[str]:
    """Keys of the images to compare, the reference first. FluoroError CHOICE_UNAVAILABLE."""
    if unknown := len(set(asked) - set(there)):
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE,
            f"No image of this step has the key of {unknown} of the items. ListItems has the keys.",
        )
    keys = list(asked or there)
    if len(keys) > MOST_IMAGES:
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE,
            f"{len(keys)} images are too many to lie side by side. Name {MOST_IMAGES} at most in "
            "`items`.",
        )
    return keys


def vector_of(
    pixels: NDArray[Any],
    image: dicom_pb2.RenderedImage,
    model: "Model | None",
    context: StepContext,
) -> NDArray[np.float32] | None:
    """The first frame as a vector of length 1, None without a model."""
    if model is None:
        return None
    ((_, outputs),) = show(model, suited_input(model), pixels[:1], image, context)
    vector: NDArray[np.float32] = unit_vectors(outputs["embedding"], model)[0]
    return vector


def shown(
    item: StepItem,
    image: dicom_pb2.RenderedImage,
    pixels: NDArray[Any],
    vector: NDArray[np.float32] | None,
) -> Shown:
    """What is kept of an image."""
    frame, spacing = pixels[0], list(image.pixel_spacing_mm)
    known = len(spacing) == 2 and all(np.isfinite(spacing)) and min(spacing) > 0  # noqa: PLR2004
    size_mm = (frame.shape[0] * spacing[0], frame.shape[1] * spacing[1]) if known else None
    unit, small = image.certificate.unit, shrunk(frame, SIDE)
    return Shown(item.input, item.key, small, *gamut(frame, image), unit, size_mm, vector)


def laid_out(
    images: Sequence[Shown], model: "Model | None", context: StepContext
) -> compare_pb2.CompareImagesResult:
    """The picture, and how alike the images are."""
    frames = [image.frame for image in images]
    sizes = [image.size_mm for image in images if image.size_mm is not None]
    if is_true := len(sizes) == len(images):
        scale = SIDE / max(max(size) for size in sizes)
        pixels = [tuple(max(1, round(length * scale)) for length in size) for size in sizes]
        frames = [stretched(one, *size) for one, size in zip(frames, pixels, strict=True)]
    # What is equally bright is shown equally bright, as far as there is one scale for all.
    if len({image.unit for image in images}) == 1:
        ends = (min(image.black for image in images), max(image.white for image in images))
        gamuts = [ends] * len(images)
    else:
        gamuts = [(image.black, image.white) for image in images]
    pictures = [as_shown(one, *ends, SIDE) for one, ends in zip(frames, gamuts, strict=True)]
    context.put(PICTURE, "comparison", "image/png", row_of(pictures))
    result = compare_pb2.CompareImagesResult(
        model=model.reference if model else None, picture=PICTURE, is_true_to_scale=is_true
    )
    reference, left = images[0].vector, 0
    for number, (image, picture) in enumerate(zip(images, pictures, strict=True)):
        height, width = picture.shape[:2]
        entry = result.images.add(
            input=image.input, item=image.key, left=left, width=width, height=height
        )
        if number and reference is not None and image.vector is not None:
            cosine = float(np.clip(reference @ image.vector, -1, 1))
            entry.similarity = round(cosine, DECIMALS)
        left += width + GAP
    return result
