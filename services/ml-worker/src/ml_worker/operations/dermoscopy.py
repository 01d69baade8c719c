"""AssessDermoscopy: outlines a lesion and scores it by the ABCD rule of dermatoscopy."""

import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fluoro.v1 import dermoscopy_pb2, dicom_pb2
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.typing import NDArray

from ml_worker.dermoscopy import (
    NACHBAR_1994,
    Assessment,
    LesionRefusedError,
    Rule,
    Verdict,
    assess,
)
from ml_worker.images import Models, for_each_image, frames_input, wrong_kind
from ml_worker.manifest import Input
from ml_worker.overlay import draw_overlay
from ml_worker.prepare import NotForThisImageError
from ml_worker.segmenting import segment, segments

if TYPE_CHECKING:
    from ml_worker.sessions import Model

Lesion = dermoscopy_pb2.AssessedLesion

LESION: Final = "lesion"
"""What the label of the outline is called."""
VERDICTS: Final = {
    Verdict.BENIGN: Lesion.VERDICT_BENIGN,
    Verdict.SUSPICIOUS: Lesion.VERDICT_SUSPICIOUS,
    Verdict.HIGHLY_SUSPICIOUS: Lesion.VERDICT_HIGHLY_SUSPICIOUS,
}


@handles(dermoscopy_pb2.AssessDermoscopy)
def assess_dermoscopy(
    request: dermoscopy_pb2.AssessDermoscopy, context: StepContext
) -> dermoscopy_pb2.AssessDermoscopyResult:
    """Scores the lesion of every photograph that earlier steps certified."""
    # ONNX Runtime takes half a second to import, and the table of handlers does not need it.
    from ml_worker.registry import models  # noqa: PLC0415 - see above

    return assess_all(request, context, models())


def assess_all(
    request: dermoscopy_pb2.AssessDermoscopy, context: StepContext, models: Models
) -> dermoscopy_pb2.AssessDermoscopyResult:
    """Outlines by one of these models, and scores, each image as an item.

    FluoroError MODEL_UNKNOWN or MODEL_UNAVAILABLE if there is no such model, MODEL_NOT_APPLICABLE
    if it gives no label map in the size of the image.
    """
    model = models.find(request.outline.model, request.outline.version)
    tensor, lesion_label = suited_input(model), label_of_lesion(model)
    result = dermoscopy_pb2.AssessDermoscopyResult(rule=told_rule(NACHBAR_1994))

    def work(item: StepItem, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]) -> None:
        # Thresholds of colour are those of 8-bit sRGB.
        if pixels.dtype != np.uint8:
            raise NotForThisImageError("it needs 8 bits per sample")
        # The rule is for one picture of one lesion.
        first = pixels[:1]
        file = item.folder / "label-map.npy"
        mask = segment(model, tensor, first, image, file, context).preview
        inside = mask == lesion_label
        # `assess` takes seconds and never looks whether the attempt is cancelled.
        context.check()
        scale = request.mm_per_pixel if request.HasField("mm_per_pixel") else scale_of(image)
        try:
            found = assess(first[0], inside, scale)
        except LesionRefusedError as error:
            # Not a failure: an image without a lesion, or without skin around it, has no score.
            raise NotForThisImageError(str(error)) from error
        lesion = told_lesion(found)
        lesion.input, lesion.item = item.input, item.key
        lesion.model.CopyFrom(model.reference)
        lesion.fraction = float(inside.mean())
        lesion.label_map = item.put("label-map", ".npy", "label-map", "application/x-npy", file)
        drawing = draw_overlay(first[0], mask, model.manifest)
        lesion.overlay = item.put("overlay", ".png", "overlay", "image/png", drawing)
        result.lesions.append(lesion)

    for_each_image(model, context, "assess", work)
    return result


def suited_input(model: "Model") -> Input:
    """The input that takes frames of images.

    FluoroError MODEL_NOT_APPLICABLE unless the model gives a label for each pixel.
    """
    tensor = frames_input(model)
    if tensor is None or not segments(model, tensor):
        raise wrong_kind(
            model,
            "AssessDermoscopy needs a model of single frames that gives a label_map in the size "
            "of the image, or a mask of all labels with [overlay] and without `cover`.",
        )
    return tensor


def label_of_lesion(model: "Model") -> int:
    """The label named `lesion`. FluoroError MODEL_NOT_APPLICABLE if there is none."""
    for label in model.manifest.labels:
        if label.display_name == LESION:
            return label.value
    raise wrong_kind(model, f"AssessDermoscopy needs a label named {LESION}.")


def scale_of(image: dicom_pb2.RenderedImage) -> float | None:
    """Side of a pixel in millimetres, if the image tells one and pixels are square."""
    match list(image.pixel_spacing_mm):
        # A diameter needs one scale; pixels that are not square have two.
        case [row, column] if row > 0 and math.isclose(row, column, rel_tol=0.01):
            return (row + column) / 2
        case _:
            return None


def told_rule(rule: Rule) -> dermoscopy_pb2.AbcdRule:
    """The rule in the words of the API."""
    return dermoscopy_pb2.AbcdRule(
        asymmetry_weight=rule.asymmetry,
        border_weight=rule.border,
        colors_weight=rule.colors,
        structures_weight=rule.structures,
        suspicious_from=rule.suspicious_from,
        highly_suspicious_above=rule.highly_suspicious_above,
        source=rule.source,
        counter_evidence=rule.counter_evidence,
    )


def told_lesion(found: Assessment) -> dermoscopy_pb2.AssessedLesion:
    """The scores in the words of the API."""
    return Lesion(
        asymmetry=found.asymmetry.score,
        border=found.border.score,
        colors=found.colors.found,
        structures=found.structures.found,
        total=found.total,
        verdict=VERDICTS[found.verdict],
        diameter_mm=found.diameter_mm,
        area_mm2=found.area_mm2,
    )
