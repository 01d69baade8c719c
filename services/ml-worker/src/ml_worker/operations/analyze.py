"""AnalyzeImages: shows certified pixels to a model, measures what it finds and draws it."""

from typing import TYPE_CHECKING, Any

from fluoro.v1 import dicom_pb2, ml_pb2
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.classifying import classify
from ml_worker.images import Models, for_each_image, frames_input, wrong_kind
from ml_worker.manifest import Input
from ml_worker.measurements import measure
from ml_worker.overlay import draw_overlay
from ml_worker.segmenting import segment, segments
from ml_worker.series import analyze_volumes, takes_volumes

if TYPE_CHECKING:
    from ml_worker.sessions import Model


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
    # Before `suited_input`, which knows models of single frames alone.
    if takes_volumes(model):
        return analyze_volumes(model, context)
    tensor = suited_input(model)
    result = ml_pb2.AnalyzeImagesResult(model=model.reference)

    def find(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        result.findings.append(find_in_image(model, tensor, image, pixels, item, context))

    for_each_image(model, context, "analyze", find)
    return result


def suited_input(model: "Model") -> Input:
    """The input that takes frames of images.

    FluoroError MODEL_NOT_APPLICABLE unless the model gives classes, or a label for each pixel.
    """
    tensor = frames_input(model)
    if tensor is None or not (segments(model, tensor) or "classes" in model.manifest.kinds):
        raise wrong_kind(
            model,
            "AnalyzeImages needs a model of single frames that gives classes, a label_map in the "
            "size of the image, or a mask of all labels with [overlay] and without `cover`; or one "
            "whose manifest has [applies_to.volume].",
        )
    return tensor


def find_in_image(
    model: "Model",
    tensor: Input,
    image: dicom_pb2.RenderedImage,
    pixels: NDArray[Any],
    item: StepItem,
    context: StepContext,
) -> ml_pb2.ImageFinding:
    """What the model finds in one image.

    NotForThisImageError if it is not made for it; FluoroError if it cannot see the pixels.
    """
    manifest = model.manifest
    finding = ml_pb2.ImageFinding(input=item.input, item=item.key, model=model.reference)
    if not segments(model, tensor):
        finding.classes.extend(classify(model, tensor, pixels, image, context))
        return finding
    file = item.folder / "label-map.npy"
    found = segment(model, tensor, pixels, image, file, context)
    window = image.window if image.HasField("window") else None
    # One picture for each image: a film has thousands of frames, and the label map has them all.
    drawing = draw_overlay(pixels[0], found.preview, manifest, window)
    finding.label_map = item.put("label-map", ".npy", "label-map", "application/x-npy", file)
    finding.overlay = item.put("overlay", ".png", "overlay", "image/png", drawing)
    finding.measurements.extend(measure(manifest.labels, found.voxels, found.sums, image))
    return finding
