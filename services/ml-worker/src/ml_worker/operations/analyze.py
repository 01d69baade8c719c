"""AnalyzeImages: shows certified pixels to a model, measures what it finds and draws it."""

from typing import TYPE_CHECKING, Any, Final, Protocol

from fluoro.v1 import dicom_pb2, ml_pb2, photograph_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import Part, StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.classifying import classify
from ml_worker.manifest import AppliesTo, Input
from ml_worker.measurements import measure
from ml_worker.overlay import draw_overlay
from ml_worker.pixels import certified_pixels, not_certified
from ml_worker.prepare import NotForThisImageError
from ml_worker.segmenting import segment

if TYPE_CHECKING:
    from ml_worker.sessions import Model


class Models(Protocol):
    """Where models are looked up: `ml_worker.registry.Registry`."""

    def find(self, name: str, version: str = "") -> "Model":
        """The model. FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE."""


GREY_DIMENSIONS: Final = ("frames", "rows", "columns")
"""What a grey image's array has; colour has samples beside."""

NUMBERS: Final = "iuf"
"""Kinds of NumPy dtypes that are real numbers: signed, unsigned, floating."""


@handles(ml_pb2.AnalyzeImages)
def analyze_images(
    request: ml_pb2.AnalyzeImages, context: StepContext
) -> ml_pb2.AnalyzeImagesResult:
    """Runs a model of this process on every image that earlier steps certified."""
    # ONNX Runtime takes half a second to import, and the table of handlers does not need it.
    from ml_worker.registry import models  # noqa: PLC0415 - see above

    return analyze(request, context, models())


def analyze(
    request: ml_pb2.AnalyzeImages, context: StepContext, models: Models
) -> ml_pb2.AnalyzeImagesResult:
    """Runs one of these models on every image, each as an item.

    FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE if there is no such model, MODEL_NOT_APPLICABLE
    if it neither segments nor classifies images.
    """
    model = models.find(request.model, request.version)
    tensor = suited_input(model)
    images = rendered_images(context)
    result = ml_pb2.AnalyzeImagesResult(model=model.reference)
    for item in context.each("analyze"):
        with item:
            part = item.part("pixels")
            if (image := images.get((part.step, part.name))) is None:
                raise not_certified("has no certificate")
            try:
                found = find_in_image(model, tensor, image, part, item, context)
            except NotForThisImageError as error:
                item.skip(
                    Reason.MODEL_NOT_APPLICABLE,
                    f"{model.manifest.name} is not made for this image: {error}.",
                )
            else:
                result.findings.append(found)
    return result


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


def suited_input(model: "Model") -> Input:
    """The input that takes frames of images.

    FluoroError MODEL_NOT_APPLICABLE unless the model gives classes, or a label map in the size of
    the image.
    """
    manifest = model.manifest
    tensor = manifest.image_input
    if tensor is not None and "D" not in tensor.layout:
        keeps_size = "label_map" in manifest.kinds and not tensor.changes_size
        if keeps_size or "classes" in manifest.kinds:
            return tensor
    raise FluoroError(
        Reason.MODEL_NOT_APPLICABLE,
        f"{manifest.name} gives {', '.join(manifest.kinds)}. AnalyzeImages needs a model of single "
        "frames that gives classes, or a label_map in the size of the image.",
    )


def find_in_image(
    model: "Model",
    tensor: Input,
    image: dicom_pb2.RenderedImage,
    part: Part,
    item: StepItem,
    context: StepContext,
) -> ml_pb2.ImageFinding:
    """What the model finds in one image.

    NotForThisImageError if it is not made for it; FluoroError if it must not see the pixels, or
    cannot.
    """
    manifest = model.manifest
    assert manifest.applies_to is not None  # a manifest with an image input has it
    pixels = certified_pixels(item.fetch(part), image.certificate, context.check)
    if (why := inapplicable(manifest.applies_to, image, pixels)) is not None:
        raise NotForThisImageError(why)
    finding = ml_pb2.ImageFinding(input=item.input, item=item.key)
    if "label_map" not in manifest.kinds or tensor.changes_size:
        finding.classes.extend(classify(model, tensor, pixels, image, context))
        return finding
    file = item.folder / "label-map.npy"
    found = segment(model, tensor, pixels, image, file, context)
    drawing = draw_overlay(pixels[0], found.preview, manifest)
    finding.label_map = item.put("label-map", ".npy", "label-map", "application/x-npy", file)
    finding.overlay = item.put("overlay", ".png", "overlay", "image/png", drawing)
    finding.measurements.extend(measure(manifest.labels, found.voxels, found.sums, image))
    return finding


def inapplicable(
    applies_to: AppliesTo, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]
) -> str | None:
    """Why a model is not made for an image, None if it is."""
    in_colour = pixels.ndim > len(GREY_DIMENSIONS)
    if pixels.dtype.kind not in NUMBERS or (in_colour and pixels.shape[-1] != len("RGB")):
        return "it needs real numbers, one or three per voxel"
    if ("colour" if in_colour else "grey") not in applies_to.photometric:
        return f"it needs {' or '.join(applies_to.photometric)} images"
    if applies_to.modalities and image.modality not in applies_to.modalities:
        return f"it needs Modality {' or '.join(applies_to.modalities)}"
    if image.certificate.unit != applies_to.unit:
        return f"it needs values in {applies_to.unit}"
    return None
