"""The Transfer Syntaxes that can be written, and their encoders.

Arrays are our own, so encoders run in this process; what they gave is decoded again and compared.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fluoro.v1.convert_pb2 import TargetTransferSyntax
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker.deidentify.encoders import J2K_ROOM, RLE_ROOM, ROOM, Room, reserve
from dicom_worker.deidentify.encoders import rle as rle_of
from dicom_worker.pixels.image import Image

BYTE: Final = 8

Encoder = Callable[[NDArray[Any], Image, int], bytes]
"""Stored values, RGB in colour; what the header says; quality → code stream."""


@dataclass(frozen=True, slots=True)
class Target:
    """A Transfer Syntax to write.

    encoder: None for native data. colour: Photometric Interpretation that the encoder makes of RGB.
    method: Lossy Image Compression Method (0028,2114), "" for what is lossless. bits: the most that
    a value may have. room: memory that the encoder takes.
    """

    syntax: str
    encoder: Encoder | None = None
    colour: str = "RGB"
    method: str = ""
    bits: int = 16
    room: Room = ROOM

    @property
    def implicit(self) -> bool:
        """Whether VRs are not written out."""
        return self.syntax == "1.2.840.10008.1.2"


def encode(target: Target, values: NDArray[Any], image: Image, quality: int) -> bytes:
    """A code stream of even length. CHOICE_UNAVAILABLE if there is none for such values."""
    assert target.encoder is not None
    # Before the encoder starts, because a lack of memory must not pass for an impossible image.
    reserve(values, target.room)
    try:
        stream = target.encoder(np.ascontiguousarray(values), image, quality)
    except (RuntimeError, ValueError, TypeError):
        # What imagecodecs and pylibjpeg-rle raise for depths, signs or sizes that they do not know.
        raise impossible() from None
    return stream + b"\0" * (len(stream) % 2)


def rle(values: NDArray[Any], image: Image, _quality: int) -> bytes:
    """RLE (PS3.5 annex G)."""
    return rle_of(values, image, image.bits_stored)


def jpeg_lossless(values: NDArray[Any], image: Image, _quality: int) -> bytes:
    """JPEG lossless, first-order prediction. Signed values are two's complement of Bits Stored."""
    from imagecodecs import jpeg8_encode  # noqa: PLC0415 - takes most of a second

    cells = values
    if image.signed:
        whole = values.view(values.dtype.str.replace("i", "u"))
        # The sign fills all bits above Bits Stored, and the code stream has no room for those.
        cells = whole & whole.dtype.type((1 << image.bits_stored) - 1)
    if image.bits_stored <= BYTE:
        cells = cells.astype(np.uint8)
    space = {"colorspace": "rgb", "outcolorspace": "rgb"} if image.samples > 1 else {}
    options: dict[str, Any] = {"predictor": 1, "bitspersample": image.bits_stored, **space}
    return bytes(jpeg8_encode(cells, lossless=True, **options))


def jpeg_ls(values: NDArray[Any], image: Image, _quality: int) -> bytes:
    """JPEG-LS, of whole bytes. Signed values are two's complement of these."""
    from imagecodecs import jpegls_encode  # noqa: PLC0415 - see above

    if not image.signed and image.bits_stored <= BYTE:
        return bytes(jpegls_encode(values.astype(np.uint8)))
    return bytes(jpegls_encode(values.view(values.dtype.str.replace("i", "u"))))


def j2k(values: NDArray[Any], image: Image, _quality: int) -> bytes:
    """JPEG 2000, reversible."""
    from imagecodecs import jpeg2k_encode  # noqa: PLC0415 - see above

    options: dict[str, Any] = {
        "bitspersample": image.bits_stored,
        "mct": image.photometric == "RGB",
    }
    return bytes(jpeg2k_encode(values, codecformat="j2k", reversible=True, **options))


def j2k_lossy(values: NDArray[Any], image: Image, quality: int) -> bytes:
    """JPEG 2000, irreversible, with this signal to noise ratio in dB."""
    from imagecodecs import jpeg2k_encode  # noqa: PLC0415 - see above

    options: dict[str, Any] = {
        "bitspersample": image.bits_stored,
        "mct": image.photometric == "RGB",
        "level": quality,
    }
    return bytes(jpeg2k_encode(values, codecformat="j2k", reversible=False, **options))


def htj2k(values: NDArray[Any], _image: Image, _quality: int) -> bytes:
    """HTJ2K, reversible, of whole bytes."""
    from imagecodecs import htj2k_encode  # noqa: PLC0415 - see above

    return bytes(htj2k_encode(values, reversible=True))


def jpeg_baseline(values: NDArray[Any], image: Image, quality: int) -> bytes:
    """JPEG of 8 bits, colours subsampled (PS3.5 8.2.1)."""
    from imagecodecs import jpeg8_encode  # noqa: PLC0415 - see above

    if image.signed or values.dtype != np.uint8:
        raise impossible()
    # 4:2:2 is what YBR_FULL_422 promises of the chroma (PS3.3 C.7.6.3.1.2).
    colour = {"colorspace": "rgb", "outcolorspace": "ycbcr", "subsampling": "422"}
    options: dict[str, Any] = colour if image.samples > 1 else {}
    return bytes(jpeg8_encode(values, level=quality, **options))


TARGETS: Final = {
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_EXPLICIT_LITTLE_ENDIAN: Target(
        "1.2.840.10008.1.2.1"
    ),
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_IMPLICIT_LITTLE_ENDIAN: Target("1.2.840.10008.1.2"),
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_RLE_LOSSLESS: Target(
        "1.2.840.10008.1.2.5", rle, bits=64, room=RLE_ROOM
    ),
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_JPEG_LOSSLESS: Target(
        "1.2.840.10008.1.2.4.70", jpeg_lossless
    ),
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_JPEG_LS_LOSSLESS: Target(
        "1.2.840.10008.1.2.4.80", jpeg_ls
    ),
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_JPEG_2000_LOSSLESS: Target(
        "1.2.840.10008.1.2.4.90", j2k, "YBR_RCT", bits=26, room=J2K_ROOM
    ),
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_HTJ2K_LOSSLESS: Target(
        "1.2.840.10008.1.2.4.201", htj2k, "YBR_RCT"
    ),
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_JPEG_BASELINE: Target(
        "1.2.840.10008.1.2.4.50", jpeg_baseline, "YBR_FULL_422", "ISO_10918_1", bits=8
    ),
    TargetTransferSyntax.TARGET_TRANSFER_SYNTAX_JPEG_2000: Target(
        "1.2.840.10008.1.2.4.91", j2k_lossy, "YBR_ICT", "ISO_15444_1", room=J2K_ROOM
    ),
}
"""What a request names → how it is written."""


def impossible() -> FluoroError:
    """The Transfer Syntax has no code stream for the image."""
    return FluoroError(
        Reason.CHOICE_UNAVAILABLE,
        "Images of this depth, sign or colour cannot be written in that Transfer Syntax. Choose "
        "another one.",
    )
