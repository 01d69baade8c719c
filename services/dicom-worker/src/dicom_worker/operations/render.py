"""RenderDicom: pictures for people and a certified array for models."""

from dataclasses import asdict
from typing import Final

from fluoro.v1.dicom_pb2 import (
    FrameCertificate,
    FramePicture,
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
from dicom_worker.pixels import animation, pictures
from dicom_worker.pixels.decoders import decoder_name
from dicom_worker.pixels.groups import macro
from dicom_worker.pixels.presets import PRESETS
from dicom_worker.pixels.rendering import (
    Frames,
    Moving,
    Pictures,
    Rendering,
    Wanted,
    render,
)
from dicom_worker.pixels.sheets import Sheets
from dicom_worker.pixels.voi import Choice, Window
from dicom_worker.reading import DicomFile, open_dicom

QUALITY: Final = 90
SUV_WINDOW: Final = Window(5, 10, "LINEAR_EXACT")
"""What pictures of SUV show unless the request says otherwise: 0 to 10."""
FUNCTIONS: Final = {
    "LINEAR": VoiWindow.FUNCTION_LINEAR,
    "SIGMOID": VoiWindow.FUNCTION_SIGMOID,
    "LINEAR_EXACT": VoiWindow.FUNCTION_LINEAR_EXACT,
}


@handles(RenderDicom)
def render_dicom(request: RenderDicom, context: StepContext) -> RenderDicomResult:
    """Leaves artifacts `preview-0000.png` and `pixels-0000.npy` for each input that has an image.

    On demand also a thumbnail, an animation and pictures of frames, and a contact sheet of each
    series. Skips inputs without an image.
    """
    wanted = wanted_of(request)
    sheets = Sheets(request.contact_sheet, context.scratch) if wanted.tiles else None
    result = RenderDicomResult()
    for item in context.each("render"):
        with item:
            file = open_dicom(item.fetch(), item.folder)
            if file.image is None:
                item.skip(Reason.NO_PIXEL_DATA, "The instance has no image.")
            else:
                array = item.folder / "pixels.npy"
                rendering = render(file, array, wanted, tick=context.check)
                # It may refuse the item, of which nothing must be kept then.
                if sheets:
                    sheets.add(item.key, file.header, rendering.pictures.tiles)
                result.images.append(keep(item, file, rendering, wanted))
    if sheets:
        result.contact_sheets.extend(sheets.put(context))
    return result


def wanted_of(request: RenderDicom) -> Wanted:
    """What the client asks for; the rules in dicom.proto let nothing impossible through."""
    suv = request.values == RenderDicom.VALUES_SUV_BODY_WEIGHT
    layout = request.contact_sheet
    return Wanted(
        choice=choice_of(request, suv=suv),
        format=pictures.FORMATS[request.format],
        quality=request.quality or QUALITY,
        frames=Frames(request.frames.first or 1, request.frames.last, request.frames.step or 1),
        every_frame=request.every_frame,
        thumbnail_px=request.thumbnail_px,
        moving=Moving(
            animation.FORMATS[request.animation.format],
            request.animation.longest_side_px or animation.SIDE_PX,
            request.animation.frame_ms or None,
        )
        if request.HasField("animation")
        else None,
        tiles=(layout.max_tiles or Sheets.TILES) if request.HasField("contact_sheet") else 0,
        tile_px=layout.tile_px or Sheets.TILE_PX,
        overlays=request.overlays,
        suv=suv,
    )


def choice_of(request: RenderDicom, *, suv: bool) -> Choice:
    """Which window to show."""
    if request.HasField("window"):
        function = request.window.function or VoiWindow.FUNCTION_LINEAR
        name = VoiWindow.Function.Name(function).removeprefix("FUNCTION_")
        return Choice(window=Window(request.window.center, request.window.width, name))
    if suv:
        return Choice(window=SUV_WINDOW)
    if request.preset:
        return Choice(hounsfield=PRESETS[request.preset].window)
    if request.file_window.WhichOneof("choice") == "index":
        return Choice(index=request.file_window.index)
    return Choice(explanation=request.file_window.explanation)


def keep(item: StepItem, file: DicomFile, rendering: Rendering, wanted: Wanted) -> RenderedImage:
    """Stores the artifacts and says what is in them.

    Spacing and thickness are those of the first frame (Pixel Measures macro, PS3.3 C.7.6.16.2.1).
    """
    measures = macro(file.header, 0, "PixelMeasuresSequence")
    spacing = decimals(measures, "PixelSpacing")
    thickness = decimals(measures, "SliceThickness")
    image = RenderedImage(
        input=item.input,
        item=item.key,
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
            bits_stored=rendering.bits,
            frames=[FrameCertificate(**asdict(frame)) for frame in rendering.certificates],
        ),
        window=window_message(rendering.window),
        modality=text(file.header, "Modality"),
        pixel_spacing_mm=spacing if len(spacing) == 2 else [],  # noqa: PLR2004 - rows, columns
        slice_thickness_mm=thickness[0] if thickness else 0,
        sop_instance_uid=text(file.header, "SOPInstanceUID"),
        series_instance_uid=text(file.header, "SeriesInstanceUID"),
    )
    image.image_orientation.extend(orientation_of(file, rendering.shape[0]))
    image.image_positions_mm.extend(positions_of(file, rendering.shape[0]))
    keep_pictures(item, rendering.pictures, wanted, image)
    return image


def orientation_of(file: DicomFile, frames: int) -> list[float]:
    """Image Orientation (Patient) of all frames (Plane Orientation macro, PS3.3 C.7.6.16.2.4)."""
    found = [
        decimals(macro(file.header, frame, "PlaneOrientationSequence"), "ImageOrientationPatient")
        for frame in range(frames)
    ]
    # The result has room for one orientation. Where frames differ, none is true of all.
    return found[0] if len(found[0]) == 6 and found.count(found[0]) == frames else []  # noqa: PLR2004 - two vectors


def positions_of(file: DicomFile, frames: int) -> list[float]:
    """Image Position (Patient) of each frame (Plane Position macro, PS3.3 C.7.6.16.2.3)."""
    found = [
        decimals(macro(file.header, frame, "PlanePositionSequence"), "ImagePositionPatient")
        for frame in range(frames)
    ]
    # All or none: a list with a gap would give frames the positions of others.
    return [each for one in found for each in one] if {len(one) for one in found} == {3} else []


def keep_pictures(item: StepItem, made: Pictures, wanted: Wanted, image: RenderedImage) -> None:
    """Stores the pictures and enters their names."""
    suffix, media_type = wanted.format.suffix, wanted.format.media_type
    image.preview = item.put("preview", suffix, "preview", media_type, made.preview)
    image.preview_frame = made.first + 1
    if made.thumbnail:
        image.thumbnail = item.put("thumbnail", suffix, "thumbnail", media_type, made.thumbnail)
    if made.animation and wanted.moving:
        moving = wanted.moving.format
        image.animation = item.put(
            "animation", moving.suffix, "animation", moving.media_type, made.animation
        )
    for frame, path in made.frames:
        name = item.put(f"frame-{frame + 1}", suffix, "frame", media_type, path)
        image.frame_pictures.append(FramePicture(frame=frame + 1, name=name))


def window_message(window: Window | None) -> VoiWindow | None:
    """A window as the API has it."""
    if window is None:
        return None
    return VoiWindow(center=window.center, width=window.width, function=FUNCTIONS[window.function])
