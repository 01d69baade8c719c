"""Why a photograph is refused. The child that reads it sends the name alone, never a text."""

from enum import Enum

from fluoro_jobs.errors import FluoroError, Reason

from dicom_worker import limits


class Refusal(Enum):
    """Name → reason and message."""

    UNKNOWN = (
        Reason.NOT_AN_IMAGE,
        "The file is no JPEG, PNG, WebP, TIFF or HEIC. Its name does not count.",
    )
    TRUNCATED = (
        Reason.PIXELS_UNDECODABLE,
        "The file ends before its picture does. Send it again.",
    )
    BROKEN = (Reason.PIXELS_UNDECODABLE, "The file does not follow its own format.")
    DECODER = (Reason.PIXELS_UNDECODABLE, "The decoder refused the picture, or warned of it.")
    CHECKSUM = (Reason.PIXELS_UNDECODABLE, "A checksum in the file is wrong. Send it again.")
    SUSPICIOUS = (
        Reason.PIXELS_UNDECODABLE,
        "The decoder gave far less than the file holds: the picture is not to be trusted.",
    )
    PICTURE_BYTES = (
        Reason.IMAGE_TOO_LARGE,
        f"A decoded picture has more than {limits.PHOTOGRAPH_LIMIT_BYTES} bytes.",
    )
    ALL_BYTES = (
        Reason.IMAGE_TOO_LARGE,
        f"The decoded pictures have more than {limits.ARRAY_LIMIT_BYTES} bytes.",
    )
    FILE_BYTES = (
        Reason.IMAGE_TOO_LARGE,
        f"The file has more than {limits.PHOTOGRAPH_FILE_LIMIT_BYTES} bytes.",
    )
    FRAMES = (
        Reason.IMAGE_TOO_LARGE,
        f"The file has more than {limits.PHOTOGRAPH_FRAME_LIMIT} pictures.",
    )
    PARTS = (Reason.IMAGE_TOO_LARGE, "The file has more scans, chunks or tags than any photograph.")
    KIND = (
        Reason.IMAGE_UNSUPPORTED,
        "The values are of a kind that no photograph has: floats, signed, 12 bits or LAB, say.",
    )
    RAW = (Reason.IMAGE_UNSUPPORTED, "It is a camera's raw file. Develop it first.")
    PAGES = (
        Reason.IMAGE_UNSUPPORTED,
        "The pictures in the file differ in size or kind. Send each as a file of its own.",
    )
    PROFILE = (
        Reason.IMAGE_UNSUPPORTED,
        "The colour profile cannot be used. Convert the picture to sRGB.",
    )
    HDR = (
        Reason.IMAGE_UNSUPPORTED,
        "The colours have a wide gamut or high dynamic range, and no profile. Convert to sRGB.",
    )
    NO_SLIDE = (
        Reason.IMAGE_UNSUPPORTED,
        "The TIFF holds no picture in tiles, nor one in strips alone. Save it as a tiled TIFF.",
    )
    SLIDE_KIND = (
        Reason.IMAGE_UNSUPPORTED,
        "A slide needs RGB or YCbCr of 8 bits: uncompressed, LZW, Deflate, JPEG or JPEG 2000.",
    )
    SLIDE_ORDER = (
        Reason.IMAGE_UNSUPPORTED,
        "The frames of the slide do not fill its grid row by row.",
    )
    SLIDE_PAGES = (
        Reason.IMAGE_TOO_LARGE,
        "The TIFF holds more pictures than a slide has levels. Save the levels of one slide alone.",
    )
    SLIDE_TILE = (
        Reason.IMAGE_TOO_LARGE,
        "A tile or strip of the slide is too large. Save it in tiles of 256 x 256 pixels.",
    )
    SLIDE_SIZE = (
        Reason.IMAGE_TOO_LARGE,
        "The slide has too many rows, columns or tiles, or a row of tiles has too many bytes.",
    )
    SLIDE_TISSUE = (
        Reason.IMAGE_TOO_LARGE,
        f"The tissue has more than {limits.ARRAY_LIMIT_BYTES} bytes. Ask for a coarser level.",
    )
    SLIDE_TILE_LIES = (
        Reason.PIXELS_UNDECODABLE,
        "A tile's own header says another size than the slide's.",
    )

    def error(self) -> FluoroError:
        """What the item fails with."""
        reason, message = self.value
        return FluoroError(reason, message)


class RefusedError(Exception):
    """A photograph is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.name)
        self.refusal = refusal
