"""RenderDicom: a picture for people and a certified array for models."""

from dataclasses import asdict

from fluoro.v1.dicom_pb2 import (
    FrameCertificate,
    PixelCertificate,
    RenderDicom,
    RenderDicomResult,
    RenderedImage,
    VoiWindow,
)
from fluoro_jobs.errors import Reason
from fluoro_jobs.worker.context import StepContext, StepItem
from fluoro_jobs.worker.handler import handles

from dicom_worker.attributes import decimals, text
from dicom_worker.pixels.decoders import decoder_name
from dicom_worker.pixels.groups import macro
from dicom_worker.pixels.rendering import Rendering, render
from dicom_worker.pixels.voi import Window
from dicom_worker.reading import DicomFile, open_dicom


@handles(RenderDicom)
def render_dicom(request: RenderDicom, context: StepContext) -> RenderDicomResult:
    """Leaves artifacts `preview-0000.png` and `pixels-0000.npy` for each input that has an image.

    Skips inputs without one.
    """
    chosen = chosen_window(request)
    result = RenderDicomResult()
    for item in context.each("render"):
        with item:
            file = open_dicom(item.fetch(), item.folder)
            if file.image is None:
                item.skip(Reason.NO_PIXEL_DATA, "The instance has no image.")
            else:
                array = item.folder / "pixels.npy"
                rendering = render(file, array, chosen, tick=context.check)
                result.images.append(keep(item, file, rendering))
    return result


def chosen_window(request: RenderDicom) -> Window | None:
    """The window the client asks for; the rules in dicom.proto let no impossible one through."""
    if not request.HasField("window"):
        return None
    return Window(request.window.center, request.window.width)


def keep(item: StepItem, file: DicomFile, rendering: Rendering) -> RenderedImage:
    """Stores both artifacts and says what is in them.

    Spacing and thickness are those of the first frame (Pixel Measures macro, PS3.3 C.7.6.16.2.1).
    """
    measures = macro(file.header, 0, "PixelMeasuresSequence")
    spacing = decimals(measures, "PixelSpacing")
    thickness = decimals(measures, "SliceThickness")
    return RenderedImage(
        input=item.input,
        item=item.key,
        preview=item.put("preview", ".png", "preview", "image/png", rendering.preview),
        pixels=item.put("pixels", ".npy", "pixels", "application/x-npy", rendering.array),
        certificate=PixelCertificate(
            sha256=rendering.sha256,
            shape=rendering.shape,
            dtype=rendering.dtype,
            unit=rendering.unit,
            minimum=rendering.minimum,
            maximum=rendering.maximum,
            transfer_syntax_uid=file.transfer_syntax,
            decoder=decoder_name(file.transfer_syntax),
            bits_stored=file.image.bits_stored if file.image else 0,
            frames=[FrameCertificate(**asdict(frame)) for frame in rendering.frames],
        ),
        window=VoiWindow(center=rendering.window.center, width=rendering.window.width)
        if rendering.window
        else None,
        modality=text(file.header, "Modality"),
        pixel_spacing_mm=spacing if len(spacing) == 2 else [],  # noqa: PLR2004 - rows, columns
        slice_thickness_mm=thickness[0] if thickness else 0,
        sop_instance_uid=text(file.header, "SOPInstanceUID"),
    )
