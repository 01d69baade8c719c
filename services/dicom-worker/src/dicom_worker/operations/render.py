"""RenderDicom: a picture for people and a certified array for models."""

from pathlib import Path
from tempfile import TemporaryDirectory

from fluoro.v1.dicom_pb2 import (
    PixelCertificate,
    RenderDicom,
    RenderDicomResult,
    RenderedImage,
    VoiWindow,
)
from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.worker.context import StepContext
from fluoro_jobs.worker.handler import handles

from dicom_worker.attributes import decimals, text
from dicom_worker.pixels.decoders import decoder_name
from dicom_worker.pixels.groups import macro
from dicom_worker.pixels.rendering import Rendering, render
from dicom_worker.pixels.voi import Window
from dicom_worker.reading import DicomFile, open_dicom


@handles(RenderDicom)
def render_dicom(request: RenderDicom, context: StepContext) -> RenderDicomResult:
    """Leaves artifacts `preview-0000.png` and `pixels-0000.npy` for each input that has an image; skips those that have none."""
    chosen = chosen_window(request)
    result = RenderDicomResult()
    for done, number in enumerate(context.numbers, 1):
        with context.item(number), TemporaryDirectory(dir=context.scratch) as folder:
            file = open_dicom(context.fetch(context.inputs[number]), Path(folder))
            if file.image is None:
                context.skip(number, Reason.NO_PIXEL_DATA, "The instance has no image.")
            else:
                rendering = render(file, Path(folder) / "pixels.npy", chosen, tick=context.check)
                result.images.append(keep(number, file, rendering, context))
        context.progress("render", done, len(context.numbers))
    return result


def chosen_window(request: RenderDicom) -> Window | None:
    """The window the client asks for. INVALID_ARGUMENT if the standard does not allow it."""
    if not request.HasField("window"):
        return None
    window = Window(request.window.center, request.window.width)
    if not window.is_valid():
        violation = FieldViolation(
            "window.width", "Give a finite centre and a finite width of at least 1."
        )
        raise FluoroError(
            Reason.INVALID_ARGUMENT, "The window is not possible.", violations=[violation]
        )
    return window


def keep(number: int, file: DicomFile, rendering: Rendering, context: StepContext) -> RenderedImage:
    """Stores both artifacts and says what is in them. number: of the input."""
    image = image_of(number, file, rendering)
    context.put(image.preview, "preview", "image/png", rendering.preview, input=number)
    context.put(image.pixels, "pixels", "application/x-npy", rendering.array, input=number)
    return image


def image_of(number: int, file: DicomFile, rendering: Rendering) -> RenderedImage:
    """The result's entry.

    Spacing and thickness are those of the first frame (Pixel Measures macro, PS3.3 C.7.6.16.2.1).
    """
    measures = macro(file.header, 0, "PixelMeasuresSequence")
    spacing = decimals(measures, "PixelSpacing")
    thickness = decimals(measures, "SliceThickness")
    return RenderedImage(
        input=number,
        preview=f"preview-{number:04}.png",
        pixels=f"pixels-{number:04}.npy",
        certificate=PixelCertificate(
            sha256=rendering.sha256,
            shape=rendering.shape,
            dtype=rendering.dtype,
            unit=rendering.unit,
            minimum=rendering.minimum,
            maximum=rendering.maximum,
            transfer_syntax_uid=file.transfer_syntax,
            decoder=decoder_name(file.transfer_syntax),
        ),
        window=VoiWindow(center=rendering.window.center, width=rendering.window.width)
        if rendering.window
        else None,
        modality=text(file.header, "Modality"),
        pixel_spacing_mm=spacing if len(spacing) == 2 else [],  # noqa: PLR2004 - between rows and between columns
        slice_thickness_mm=thickness[0] if thickness else 0,
        sop_instance_uid=text(file.header, "SOPInstanceUID"),
    )
