"""What is found in a photograph's file beside its pixels."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from dicom_worker import limits
from dicom_worker.photographs.refusals import Refusal, RefusedError


class Format(StrEnum):
    """A file format; the value is the name in the API's enum, after its prefix."""

    JPEG = "JPEG"
    PNG = "PNG"
    WEBP = "WEBP"
    TIFF = "TIFF"
    HEIC = "HEIC"


class Kind(StrEnum):
    """What is removed; the value is the name in the API's enum, after its prefix."""

    EXIF = "EXIF"
    GPS = "GPS"
    MAKER_NOTE = "MAKER_NOTE"
    XMP = "XMP"
    IPTC = "IPTC"
    COMMENT = "COMMENT"
    TEXT = "TEXT"
    THUMBNAIL = "THUMBNAIL"
    EMBEDDED_IMAGE = "EMBEDDED_IMAGE"
    COLOR_PROFILE = "COLOR_PROFILE"
    TRAILING_DATA = "TRAILING_DATA"
    OTHER = "OTHER"


@dataclass(slots=True)
class Found:
    """What a walk over the file found, before any decoder saw it.

    rows, columns: of each picture as stored, before orientation. samples: per pixel, alpha and ink
    counted. bits: per sample. frames: pictures. pages: of a TIFF, those that are pictures.
    orientation: Exif's, 1 to 8. scan_bytes: of compressed picture, 0 where it says nothing.
    is_lossy: whether the picture is coded with loss. inverted: whether 0 is white.
    profile: a TIFF's ICC profile. is_adobe_rgb: whether Exif says that the colours are.
    """

    format: Format
    rows: int = 0
    columns: int = 0
    samples: int = 0
    bits: int = 8
    frames: int = 1
    pages: list[int] = field(default_factory=list)
    orientation: int = 1
    scan_bytes: int = 0
    is_lossy: bool = False
    inverted: bool = False
    has_profile: bool = False
    profile: bytes = b""
    is_adobe_rgb: bool = False
    removed: Counter[Kind] = field(default_factory=Counter)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of an upright picture."""
        turned = self.orientation > 4  # noqa: PLR2004 - from 5 on, rows are columns
        return (self.columns, self.rows) if turned else (self.rows, self.columns)

    def check_budget(self) -> None:
        """RefusedError if the pictures need more than a photograph may, before one is decoded."""
        if self.rows < 1 or self.columns < 1 or self.frames < 1:
            raise RefusedError(Refusal.BROKEN)
        if self.frames > limits.PHOTOGRAPH_FRAME_LIMIT:
            raise RefusedError(Refusal.FRAMES)
        size = self.rows * self.columns * max(1, self.samples) * max(1, self.bits // 8)
        if size > limits.PHOTOGRAPH_LIMIT_BYTES:
            raise RefusedError(Refusal.PICTURE_BYTES)
        if size * self.frames > limits.ARRAY_LIMIT_BYTES:
            raise RefusedError(Refusal.ALL_BYTES)
