"""Decodes a photograph's pictures; runs in the codecs' child, which sees hostile bytes.

Pillow decodes what has 8 bits, imagecodecs PNG and TIFF of 16, libheif HEIC.
"""

from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from dicom_worker.photographs import heic, jpeg, png, tiff, webp
from dicom_worker.photographs.colours import adobe_rgb, on_white, to_srgb
from dicom_worker.photographs.found import Format, Found
from dicom_worker.photographs.refusals import Refusal, RefusedError
from dicom_worker.pixels.certificate import looks_empty
from dicom_worker.pixels.codecs import warnings_raised

PilImage.MAX_IMAGE_PIXELS = None  # the budget is checked before, and here it is an error
MODES: Final = {
    "1": "L",
    "L": "L",
    "LA": "LA",
    "La": "LA",
    "P": "RGB",
    "PA": "RGBA",
    "RGB": "RGB",
    "RGBA": "RGBA",
    "RGBa": "RGBA",
    "RGBX": "RGB",
    "YCbCr": "RGB",
    "CMYK": "CMYK",
}
"""Pillow's mode of a file → the one that its picture is made in."""
TRANSPARENT: Final = {"L": "LA", "RGB": "RGBA"}
"""The same where one colour, or one of a palette, is transparent."""
WALKS: Final[dict[Format, Callable[[bytes], Found]]] = {
    Format.JPEG: jpeg.walk,
    Format.PNG: png.walk,
    Format.WEBP: webp.walk,
    Format.TIFF: tiff.walk,
    Format.HEIC: heic.walk,
}
WIDE: Final = 16
"""Bits of what has more than a byte."""
INKS: Final = 4
"""Samples of CMYK."""
FLAT_BITS: Final = 1.0
"""Bits per sample that a flat picture may take, where it is coded with loss."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """A picture as it is certified: upright, sRGB, on white.

    array: (rows, columns) grey or (rows, columns, 3) RGB, uint8 or uint16. converted: whether a
    profile changed it. composited: whether it had alpha.
    """

    array: NDArray[Any]
    converted: bool
    composited: bool


def format_of(head: bytes) -> Format:
    """The format that a file with these first 132 bytes has. RefusedError UNKNOWN if none.

    The preamble of a DICOM file may be a TIFF's header (PS3.10 7.1): it is DICOM all the same.
    """
    if head[128:] == b"DICM":
        raise RefusedError(Refusal.UNKNOWN)
    if head.startswith(b"\xff\xd8\xff"):
        return Format.JPEG
    if head.startswith(png.SIGNATURE):
        return Format.PNG
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return Format.WEBP
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return Format.TIFF
    if heic.is_heic(head):
        return Format.HEIC
    raise RefusedError(Refusal.UNKNOWN)


def examine(data: bytes) -> Found:
    """What the file holds, within the budget of a photograph. Nothing is decoded."""
    found = WALKS[format_of(data[:132])](data)
    found.check_budget()
    return found


class Pictures:
    """The pictures of one file, which is kept open from one to the next.

    A film's pictures build on each other: to begin anew for each would take the square of the time.
    """

    def __init__(self, data: bytes) -> None:
        self.data, self.found = data, examine(data)
        self._image: PilImage.Image | None = None

    def picture(self, index: int) -> Decoded:
        """A picture, 0-based. RefusedError."""
        found = self.found
        if found.format is Format.HEIC:
            array, profile = heic.decoded(self.data, found)
        elif found.format is Format.JPEG:
            array, profile = self._jpeg(), self._profile()
        elif found.bits == WIDE:
            array, profile = self._wide(index), self._profile()
        else:
            array, profile = self._narrow(index), self._profile()
        # A decoder that fails without a word leaves one colour.
        if found.is_lossy and looks_empty(found.scan_bytes, array, FLAT_BITS):
            raise RefusedError(Refusal.SUSPICIOUS)
        if not self._is_upright():
            array = upright(array, found.orientation)
        has_alpha = array.shape[2:] == (2,) or (array.shape[2:] == (4,) and not self._is_cmyk())
        alpha = array[..., -1] if has_alpha else None
        if has_alpha:
            array = array[..., 0] if array.shape[2] == 2 else array[..., :3]  # noqa: PLR2004 - grey, alpha
        array, converted = np.ascontiguousarray(array), False
        if profile:
            array, converted = to_srgb(array, profile)
        elif array.shape[2:] == (4,):
            array = np.asarray(PilImage.fromarray(array, "CMYK").convert("RGB"))
        if alpha is not None:
            array = on_white(array, alpha)
        return Decoded(np.ascontiguousarray(array), converted, has_alpha)

    def _opened(self) -> PilImage.Image:
        """The file as Pillow has it."""
        if self._image is None:
            # By its format alone: else Pillow tries fifty.
            self._image = PilImage.open(BytesIO(self.data), formats=[self.found.format.value])
        return self._image

    def _is_upright(self) -> bool:
        """Whether Pillow has turned the picture already, as it does with TIFF alone."""
        return self.found.format is Format.TIFF and self.found.bits != WIDE

    def _is_cmyk(self) -> bool:
        return self._image is not None and self._image.mode == "CMYK"

    def _profile(self) -> bytes:
        if not self.found.has_profile:
            return adobe_rgb() if self.found.is_adobe_rgb and self.found.samples > 1 else b""
        if self.found.format is Format.TIFF:
            return self.found.profile
        # Pillow drops one that is broken or too large without a word.
        if not (profile := self._opened().info.get("icc_profile")):
            raise RefusedError(Refusal.PROFILE)
        return bytes(profile)

    def _jpeg(self) -> NDArray[Any]:
        """OpenCV tells what libjpeg warns of, cut-off scans among it; Pillow has the inks of CMYK.

        Both have libjpeg-turbo, and give the same values.
        """
        import cv2  # noqa: PLC0415 - only where asked for

        found = self.found
        with warnings_raised():
            array = cv2.imdecode(
                np.frombuffer(self.data, np.uint8),
                # `upright` turns the picture, the same for every format; OpenCV would have turned
                # it before.
                cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION,
            )
        if array is None:
            raise RefusedError(Refusal.DECODER)
        if found.samples == INKS:
            return self._narrow(0)
        if array.shape[:2] != (found.rows, found.columns) or array.dtype != np.uint8:
            raise RefusedError(Refusal.BROKEN)
        # OpenCV has blue first.
        return array if array.ndim == 2 else array[..., ::-1]  # noqa: PLR2004 - grey has two

    def _narrow(self, index: int) -> NDArray[Any]:
        image, found = self._opened(), self.found
        if found.frames > 1 or found.pages:
            image.seek(found.pages[index] if found.pages else index)
        size = (found.columns, found.rows)
        if self._is_upright() and found.orientation > 4:  # noqa: PLR2004 - from 5 on, rows are columns
            size = size[::-1]
        # The array was promised to have the size that the walk found, and memory was made for that.
        if image.size != size:
            raise RefusedError(Refusal.BROKEN)
        image.load()
        mode = MODES.get(image.mode)
        if mode is None:
            raise RefusedError(Refusal.KIND)
        if "transparency" in image.info:
            mode = TRANSPARENT.get(mode, mode)
        return np.asarray(image if image.mode == mode else image.convert(mode))

    def _wide(self, index: int) -> NDArray[Any]:
        """16 bits, which Pillow would cut to 8."""
        from imagecodecs import png_decode, tiff_decode  # noqa: PLC0415 - takes most of a second

        found = self.found
        if found.format is Format.PNG:
            if found.frames > 1:
                raise RefusedError(Refusal.KIND)
            array = np.asarray(png_decode(self.data))
        else:
            array = np.asarray(tiff_decode(self.data, index=found.pages[index]))
            if array.shape == (found.samples, found.rows, found.columns):
                array = np.moveaxis(array, 0, -1)
        if array.shape[:2] != (found.rows, found.columns) or array.dtype != np.uint16:
            raise RefusedError(Refusal.BROKEN)
        # WhiteIsZero (TIFF 6.0 section 8): imagecodecs gives the values as they are.
        return ~array if found.inverted else array


def upright(array: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The picture turned and mirrored as Exif's Orientation (CIPA DC-008 4.6.4) says."""
    if orientation > 4:  # noqa: PLR2004 - from 5 on, rows are columns
        array = array.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        array = array[::-1]
    if orientation in (2, 3, 6, 7):
        array = array[:, ::-1]
    return array
