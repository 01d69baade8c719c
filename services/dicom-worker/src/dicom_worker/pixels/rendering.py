"""From a DICOM file to the PNG a person looks at and the array a model sees.

In the order of PS3.3 C.7.6.3, C.11.1 and C.11.2.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from dicom_worker.pixels.certificate import FrameCertificate
from dicom_worker.pixels.colour import apply_palette, eight_bits, palette_of
from dicom_worker.pixels.decoders import decode_frames
from dicom_worker.pixels.modality import modality_of
from dicom_worker.pixels.npy import NpyWriter
from dicom_worker.pixels.voi import WHITE, Window, full_range, padding_mask, voi_lut_of, window_of
from dicom_worker.reading import DicomFile


@dataclass(frozen=True, slots=True)
class Rendering:
    """What was made of one file.

    preview: an 8-bit PNG of the first frame, one pixel per stored pixel. Pixels that are not square
    are not resampled, and overlays are not drawn. array: an NPY file, (frames, rows, columns) of
    modality values, or (frames, rows, columns, 3) RGB at the depth of the file; the other fields
    describe it. unit: `HU` or `1`. window: what the preview shows; None where a VOI LUT or colour
    leaves nothing to choose. frames: what is certified of each one's stored values.
    """

    preview: bytes
    array: Path
    sha256: bytes
    shape: tuple[int, ...]
    dtype: str
    unit: str
    minimum: float
    maximum: float
    window: Window | None
    frames: list[FrameCertificate] = field(default_factory=list)


def render(
    file: DicomFile, array: Path, chosen: Window | None, tick: Callable[[], None]
) -> Rendering:
    """Renders a file with memory bounded by a frame.

    array: path to write to. chosen: overrides the file's window. tick: called per frame.

    FluoroError: NO_PIXEL_DATA, TRANSFER_SYNTAX_UNSUPPORTED, PIXELS_UNDECODABLE, IMAGE_TOO_LARGE,
    DICOM_INVALID.
    """
    frames = decode_frames(file)
    assert file.image is not None
    writer = NpyWriter(array)
    grey = file.image.photometric.startswith("MONOCHROME")
    palette = (
        palette_of(file.header, little_endian=file.little_endian)
        if file.image.photometric == "PALETTE COLOR"
        else None
    )
    preview, window, units, certificates = b"", None, set(), []
    for index, frame in enumerate(frames):
        tick()
        stored = frame.values
        certificates.append(frame.certificate)
        if grey:
            modality = modality_of(file.header, index, little_endian=file.little_endian)
            values = modality.apply(stored)
            units.add(modality.unit)
        else:
            values = apply_palette(stored, palette) if palette else stored
        if index == 0:
            if grey:
                shown, window = grey_scale(file, stored, values, chosen)
            else:
                shown = values if palette else eight_bits(values, file.image.bits_stored)
            preview = png(shown)
        writer.append(values)
    sha256 = writer.close()
    return Rendering(
        preview=preview,
        array=array,
        sha256=sha256,
        shape=(writer.frames, *writer.shape),
        dtype=writer.dtype.str if writer.dtype else "",
        unit="HU" if units == {"HU"} else "1",
        minimum=writer.minimum,
        maximum=writer.maximum,
        window=window,
        frames=certificates,
    )


def grey_scale(
    file: DicomFile, stored: NDArray[Any], values: NDArray[Any], chosen: Window | None
) -> tuple[NDArray[np.uint8], Window | None]:
    """The first frame as a screen shows it, 0 black to 255 white, and its window.

    MONOCHROME1 is inverted last (C.7.6.3.1.2).
    """
    lut = None if chosen else voi_lut_of(file.header, little_endian=file.little_endian)
    if lut:
        window = None
        grey = np.rint(
            np.minimum(lut.apply(values) * (WHITE / ((1 << lut.bits) - 1)), WHITE)
        ).astype(np.uint8)
    else:
        window = (
            chosen
            or window_of(file.header, 0)
            or full_range(values, padding_mask(stored, file.header))
        )
        grey = window.apply(values)
    assert file.image is not None
    return (255 - grey if file.image.photometric == "MONOCHROME1" else grey), window


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A PNG of (rows, columns) grey or (rows, columns, 3) RGB."""
    buffer = BytesIO()
    PilImage.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
