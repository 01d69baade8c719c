"""AnalyzeImages: shows certified pixels to a model, measures what it finds and draws it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from fluoro.v1 import dicom_pb2, ml_pb2, photograph_pb2
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.worker.context import Part, StepContext, StepItem
from fluoro_jobs.worker.handler import handles
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from ml_worker.manifest import AppliesTo
from ml_worker.measurements import measure
from ml_worker.overlay import draw_overlay
from ml_worker.pixels import certified_pixels, not_certified

if TYPE_CHECKING:
    from ml_worker.sessions import Model

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
    from ml_worker.sessions import loaded_models  # noqa: PLC0415 - see above

    return analyze(request, context, loaded_models())


def analyze(
    request: ml_pb2.AnalyzeImages, context: StepContext, models: "Mapping[str, Model]"
) -> ml_pb2.AnalyzeImagesResult:
    """Runs one of these models on every image, each as an item.

    FluoroError MODEL_UNKNOWN if there is no such model.
    """
    model = find_model(models, request.model)
    images = rendered_images(context)
    result = ml_pb2.AnalyzeImagesResult(model=model.reference)
    for item in context.each("analyze"):
        with item:
            part = item.part("pixels")
            if (image := images.get((part.step, part.name))) is None:
                raise not_certified("has no certificate")
            finding = analyze_image(model, image, part, item, context)
            if finding is not None:
                result.findings.append(finding)
    return result


def find_model(models: "Mapping[str, Model]", name: str) -> "Model":
    """The model of that name.

    FluoroError MODEL_UNKNOWN, with the names there are, if there is none.
    """
    if name not in models:
        raise FluoroError(
            Reason.MODEL_UNKNOWN, f"There is no model of this name; there are: {', '.join(models)}."
        )
    return models[name]


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


def analyze_image(
    model: "Model",
    image: dicom_pb2.RenderedImage,
    part: Part,
    item: StepItem,
    context: StepContext,
) -> ml_pb2.ImageFinding | None:
    """What the model finds in one image, None if it is not made for it.

    FluoroError if it must not see the pixels, or cannot.
    """
    pixels = certified_pixels(item.fetch(part), image.certificate, context.check)
    if (why := inapplicable(model.manifest.applies_to, image, pixels)) is not None:
        item.skip(
            Reason.MODEL_NOT_APPLICABLE,
            f"{model.manifest.name} is not made for this image: {why}.",
        )
        return None
    label_map = item.folder / "label-map.npy"
    segmented = segment(model, pixels, label_map, context)
    drawing = draw_overlay(pixels[0], segmented.preview, model.manifest)
    return ml_pb2.ImageFinding(
        input=item.input,
        item=item.key,
        label_map=item.put("label-map", ".npy", "label-map", "application/x-npy", label_map),
        overlay=item.put("overlay", ".png", "overlay", "image/png", drawing),
        measurements=measure(model.manifest.labels, segmented.voxels, segmented.sums, image),
    )


def inapplicable(
    applies_to: AppliesTo, image: dicom_pb2.RenderedImage, pixels: NDArray[Any]
) -> str | None:
    """Why a model is not made for an image, None if it is."""
    if pixels.ndim != len(GREY_DIMENSIONS) or pixels.dtype.kind not in NUMBERS:
        return "it needs one grey value per voxel"
    if image.modality != applies_to.modality:
        return f"it needs Modality {applies_to.modality}"
    if image.certificate.unit != applies_to.unit:
        return f"it needs values in {applies_to.unit}"
    return None


@dataclass(frozen=True, slots=True)
class Segmented:
    """What a model found in all frames.

    preview: labels of the first one (uint8, rows and columns); voxels, sums: per label.
    """

    preview: NDArray[np.uint8]
    voxels: NDArray[np.int64]
    sums: NDArray[np.float64]


def segment(model: "Model", pixels: NDArray[Any], path: Path, context: StepContext) -> Segmented:
    """Shows the pixels (frames, rows, columns) to the model, some frames at a time.

    Writes the label map to an NPY file.
    """
    frames, rows, columns = pixels.shape
    step = model.frames_per_run(rows, columns)
    count = len(model.manifest.labels)
    preview = np.zeros((rows, columns), np.uint8)
    voxels, sums = np.zeros(count, np.int64), np.zeros(count, np.float64)
    # Written, not mapped: on a full disk a write raises OSError, where a mapped page would kill the
    # process and every task in it.
    with path.open("xb") as file, model.runs(context.cancelled) as run:
        write_array_header_1_0(
            file, {"descr": "|u1", "fortran_order": False, "shape": pixels.shape}
        )
        for start in range(0, frames, step):
            context.check()
            found = run(pixels[start : start + step])
            file.write(found.labels.tobytes())
            if start == 0:
                preview = found.labels[0].copy()
            voxels += found.voxels
            sums += found.sums
    return Segmented(preview, voxels, sums)
