"""Overlay planes (PS3.3 C.9.2): bitmaps of their own, or the unused bits of pixel cells."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicom_worker import limits
from dicom_worker.blame import blame_file
from dicom_worker.pixels.image import MAX_INT32, MAX_UINT16, Image
from dicom_worker.reading import DicomFile

# Sixteen groups of even number (PS3.5 7.6).
GROUPS: Final = range(0x6000, 0x6020, 2)
WHITE: Final = 255

Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Overlay:
    """One plane over some frames of the image.

    rows, columns: of the plane. top, left: its first pixel within the image, 0-based; negative
    where it begins outside. first_frame: of the image that its first frame lies over, 0-based.
    frames: of the plane. plane: gives one of these frames, (rows, columns).
    """

    rows: int
    columns: int
    top: int
    left: int
    first_frame: int
    frames: int
    plane: Callable[[int], Mask]

    def draw(self, pixels: NDArray[np.uint8], frame: int) -> None:
        """Paints it white over the picture of frame `frame`, (rows, columns) or (…, 3)."""
        # An overlay may begin at a later frame, and end before the last (PS3.3 C.9.3).
        number = frame - self.first_frame
        if not 0 <= number < self.frames:
            return
        image_rows, image_columns = pixels.shape[:2]
        top, left = max(self.top, 0), max(self.left, 0)
        bottom = min(self.top + self.rows, image_rows)
        right = min(self.left + self.columns, image_columns)
        if top < bottom and left < right:
            part = self.plane(number)[
                top - self.top : bottom - self.top, left - self.left : right - self.left
            ]
            pixels[top:bottom, left:right][part] = WHITE


def overlays_of(file: DicomFile) -> list[Overlay]:
    """The overlays of the file, by group.

    FluoroError: DICOM_INVALID if one cannot be read, IMAGE_TOO_LARGE, CHOICE_UNAVAILABLE if one
    lies in the bits of compressed pixels, which decoders do not keep.
    """
    assert file.image is not None
    return [
        overlay_of(file, file.image, group)
        for group in GROUPS
        if (group, 0x0010) in file.header or (group, 0x0102) in file.header
    ]


def overlay_of(file: DicomFile, image: Image, group: int) -> Overlay:
    """The overlay of one group."""
    header = file.header
    with blame_file(Reason.DICOM_INVALID, "An overlay cannot be read."):
        # The image's first pixel is 1, 1 (PS3.3 C.9.2).
        origin = attribute(header, group, 0x0050) or [1, 1]
        top, left = int(origin[0]) - 1, int(origin[1]) - 1
        frames = int(attribute(header, group, 0x0015) or 1)
        first = int(attribute(header, group, 0x0051) or 1) - 1
        if (group, 0x3000) not in header:
            bit = int(attribute(header, group, 0x0102) or 0)
            return Overlay(
                image.rows, image.columns, 0, 0, 0, image.frames, in_cells(file, image, bit)
            )
        rows, columns = int(attribute(header, group, 0x0010)), int(attribute(header, group, 0x0011))
        if not (0 < rows <= MAX_UINT16 and 0 < columns <= MAX_UINT16 and 0 < frames <= MAX_INT32):
            raise invalid()
        plane = in_bits(file, group, rows, columns, frames)
    return Overlay(rows, columns, top, left, first, frames, plane)


def in_bits(
    file: DicomFile, group: int, rows: int, columns: int, frames: int
) -> Callable[[int], Mask]:
    """Planes of one bit per pixel, which follow each other within a byte (PS3.5 8.1.2)."""
    count = rows * columns
    if count > limits.FRAME_LIMIT_BYTES:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE, f"An overlay has more than {limits.FRAME_LIMIT_BYTES} pixels."
        )
    tag = group << 16 | 0x3000
    element = next(element for element in file.elements if element.tag == tag)
    if element.length is None or element.length * 8 < count * frames:
        raise invalid()
    swapped = not file.little_endian and element.vr == "OW"

    def plane(number: int) -> Mask:
        # By words, because big endian swaps the bytes within each of them.
        first_word, first_bit = divmod(number * count, 16)
        words = -(-(first_bit + count) // 16)
        start = element.offset + 2 * first_word
        packed = np.fromfile(file.path, np.uint8, 2 * words, offset=start)
        # The bytes of a big endian word stand the other way round.
        if swapped:
            packed = packed[: len(packed) // 2 * 2].view("<u2").byteswap().view(np.uint8)
        bits = np.unpackbits(packed, bitorder="little")[first_bit : first_bit + count]
        return bits.reshape(rows, columns).astype(np.bool_)

    return plane


def in_cells(file: DicomFile, image: Image, bit: int) -> Callable[[int], Mask]:
    """Planes in one bit of each pixel cell (retired since 2004, PS3.3 C.9.2.1.1)."""
    used = range(image.high_bit + 1 - image.bits_stored, image.high_bit + 1)
    is_grey = image.samples == 1 and not image.is_float and image.bits_allocated in (8, 16, 32)
    # A bit of the stored values themselves would show anatomy as an overlay.
    if not is_grey or not 0 <= bit < image.bits_allocated or bit in used:
        raise invalid()
    pixels = file.pixels
    if pixels is None or pixels.length is None:
        raise FluoroError(
            Reason.CHOICE_UNAVAILABLE, "An overlay lies in the bits of compressed pixels."
        )
    order = "<" if file.little_endian else ">"
    dtype = np.dtype(f"{order}u{image.bits_allocated // 8}")
    count = image.rows * image.columns

    def plane(number: int) -> Mask:
        start = pixels.offset + number * count * dtype.itemsize
        cells = np.fromfile(file.path, dtype, count, offset=start)
        return ((cells >> bit) & 1).reshape(image.rows, image.columns).astype(np.bool_)

    return plane


def attribute(header: Dataset, group: int, element: int) -> Any:
    """The value, None if absent or empty."""
    return header[group, element].value if (group, element) in header else None


def invalid() -> FluoroError:
    """An overlay contradicts itself."""
    return FluoroError(Reason.DICOM_INVALID, "An overlay contradicts itself or the image.")
