"""The images of a step that runs a model: certified pixels, each an item."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol

from fluoro.v1 import dicom_pb2, photograph_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from numpy.typing import NDArray

from ml_worker.manifest import AppliesTo, Input
from ml_worker.pixels import certified_pixels, not_certified
from ml_worker.prepare import NotForThisImageError

if TYPE_CHECKING:
    from ml_worker.sessions import Model


class Models(Protocol):
    """Where models are looked up: `ml_worker.registry.Registry`."""

    def find(self, name: str, version: str = "") -> "Model":
        """The model. FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE."""


Work = Callable[[StepItem, dicom_pb2.RenderedImage, NDArray[Any]], None]
"""What is done with an image and its pixels: (frames, rows, columns), or with samples behind."""

GREY_DIMENSIONS: Final = ("frames", "rows", "columns")
"""What a grey image's array has; colour has samples beside."""

NUMBERS: Final = "iuf"
"""Kinds of NumPy dtypes that are real numbers: signed, unsigned, floating."""


def frames_input(model: "Model") -> Input | None:
    """The input that takes single frames of images, None if the model has no such input."""
    tensor = model.manifest.image_input
    return tensor if tensor is not None and "D" not in tensor.layout else None


def for_each_image(model: "Model", context: StepContext, stage: str, work: Work) -> None:
    """Hands over every image that the model is made for, each as an item.

    The others are skipped. Pixels that nobody vouches for fail with PIXELS_NOT_CERTIFIED. stage: as
    in `StepContext.each`. work: may raise NotForThisImageError.
    """
    for_each_image_of([model], context, stage, work)


def for_each_image_of(
    models: Sequence["Model"], context: StepContext, stage: str, work: Work
) -> None:
    """The same for several models: every image that all of them are made for."""

    def work_if_suited(
        item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]
    ) -> None:
        name = ""
        try:
            for model in models:
                name = model.manifest.name
                applies_to = model.manifest.applies_to
                assert applies_to is not None  # a manifest with an image input has it
                check_suits(applies_to, image, pixels)
            work(item, image, pixels)
        # Skipped and not failed: nothing is wrong with the image, nor with the model.
        except NotForThisImageError as error:
            item.skip(Reason.MODEL_NOT_APPLICABLE, f"{name} is not made for this image: {error}.")

    for_each_certified(context, stage, work_if_suited)


def for_each_certified(context: StepContext, stage: str, work: Work) -> None:
    """Hands over every image, each as an item.

    Pixels that nobody vouches for fail with PIXELS_NOT_CERTIFIED. stage: as in `StepContext.each`.
    """
    images = rendered_images(context)
    for item in context.each(stage):
        with item:
            part = item.part("pixels")
            # An array that no earlier step vouches for may be anything: an upload, or a leftover.
            if (image := images.get((part.step, part.name))) is None:
                raise not_certified("has no certificate")
            work(item, image, certified_pixels(item.fetch(part), image.certificate, context.check))


def wrong_kind(model: "Model", needed: str) -> FluoroError:
    """The refusal of a model for what its outputs are. needed: a sentence."""
    manifest = model.manifest
    return FluoroError(
        Reason.MODEL_NOT_APPLICABLE,
        f"{manifest.name} gives {', '.join(manifest.kinds)}. {needed}",
    )


def rendered_images(context: StepContext) -> dict[tuple[str, str], dicom_pb2.RenderedImage]:
    """What RenderDicom and ImportImages vouch for, by step and name of the pixel array."""
    images: dict[tuple[str, str], dicom_pb2.RenderedImage] = {}
    for step, result in context.results.items():
        if isinstance(result, dicom_pb2.RenderDicomResult):
            images |= {(step, image.pixels): image for image in result.images}
        elif isinstance(result, photograph_pb2.ImportImagesResult):
            taken_in = (image.rendered for image in result.images)
            images |= {(step, image.pixels): image for image in taken_in}
    return images


def check_suits(
    applies_to: AppliesTo, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]
) -> None:
    """NotForThisImageError unless the model is made for such an image."""
    in_colour = pixels.ndim > len(GREY_DIMENSIONS)
    # Complex numbers and booleans have no meaning as values of an image.
    if pixels.dtype.kind not in NUMBERS or (in_colour and pixels.shape[-1] != len("RGB")):
        raise NotForThisImageError("it needs real numbers, one or three per voxel")
    if ("colour" if in_colour else "grey") not in applies_to.photometric:
        raise NotForThisImageError(f"it needs {' or '.join(applies_to.photometric)} images")
    if applies_to.modalities and image.modality not in applies_to.modalities:
        raise NotForThisImageError(f"it needs Modality {' or '.join(applies_to.modalities)}")
    if image.certificate.unit != applies_to.unit:
        raise NotForThisImageError(f"it needs values in {applies_to.unit}")
