"""Encodes a masked frame in the Transfer Syntax of its file, without loss.

Only what our decoders read back to the last bit is used: the caller compares. Arrays are our own,
so encoders run in this process.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dicom_worker.pixels.image import Image

PLAIN: Final = frozenset(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR", "RGB"))
WHOLE: Final = frozenset((8, 16))
"""Precisions that an encoder of whole bytes states rightly."""


class Room(NamedTuple):
    """Memory of an encoder: so many times the values, and so many bytes for each of them."""

    times: int
    sample_bytes: int = 0


ROOM: Final = Room(4)
RLE_ROOM: Final = Room(7)
"""pylibjpeg-rle doubles what is too small, and keeps the old one while it copies."""
J2K_ROOM: Final = Room(4, 12)
"""OpenJPEG works on integers of 32 bits."""


def encode(values: NDArray[Any], syntax: str, image: Image, precision: int) -> bytes | None:
    """A code stream of even length; None if there is no encoder for such a frame.

    values: stored ones, RGB in colour. precision: bits per sample of the code stream.
    """
    encoder = ENCODERS.get(syntax)
    # A reversible transform of colours is part of JPEG 2000. Others would have to be done here.
    fits = image.photometric in PLAIN or (encoder is j2k and image.photometric == "YBR_RCT")
    if encoder is None or not fits:
        return None
    # Before the encoder starts, because a lack of memory must not pass for a frame that it cannot
    # encode.
    reserve(values, ROOMS.get(encoder, ROOM))
    try:
        stream = encoder(np.ascontiguousarray(values), image, precision)
    except (RuntimeError, ValueError):
        # What an encoder of imagecodecs raises for depths or signs that it does not know.
        return None
    return stream + b"\0" * (len(stream) % 2) if stream else None


def reserve(values: NDArray[Any], room: Room) -> None:
    """MemoryError unless there is as much memory as an encoder takes for these values.

    Without it, they end the process, or raise what they raise for depths that they do not know.
    """
    np.empty(room.times * values.nbytes + room.sample_bytes * values.size, np.uint8)


def j2k(values: NDArray[Any], image: Image, precision: int) -> bytes:
    """JPEG 2000, reversible."""
    from imagecodecs import jpeg2k_encode  # noqa: PLC0415 - takes most of a second

    transform = image.photometric == "YBR_RCT"
    options: dict[str, Any] = {"bitspersample": precision, "mct": transform}
    return bytes(jpeg2k_encode(values, codecformat="j2k", reversible=True, **options))


def htj2k(values: NDArray[Any], image: Image, precision: int) -> bytes:
    """HTJ2K, reversible. Grey only: the encoder transforms colours."""
    from imagecodecs import htj2k_encode  # noqa: PLC0415 - see above

    if image.samples > 1 or precision not in WHOLE:
        return b""
    return bytes(htj2k_encode(values, reversible=True))


def jpeg_ls(values: NDArray[Any], image: Image, precision: int) -> bytes:
    """JPEG-LS, lossless."""
    from imagecodecs import jpegls_encode  # noqa: PLC0415 - see above

    return bytes(jpegls_encode(values)) if not image.signed and precision in WHOLE else b""


def jpeg_lossless(values: NDArray[Any], image: Image, precision: int) -> bytes:
    """JPEG lossless, first-order prediction (process 14, selection value 1)."""
    from imagecodecs import jpeg8_encode  # noqa: PLC0415 - see above

    if image.samples > 1 or image.signed:
        return b""
    return bytes(jpeg8_encode(values, lossless=True, predictor=1, bitspersample=precision))


def rle(values: NDArray[Any], image: Image, _precision: int) -> bytes:
    """RLE (PS3.5 annex G)."""
    from rle.utils import encode_pixel_data  # noqa: PLC0415 - only where asked for

    size: dict[str, Any] = {
        "rows": image.rows,
        "columns": image.columns,
        "samples_per_pixel": image.samples,
        "bits_allocated": image.bits_allocated,
    }
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    return bytes(encode_pixel_data(little.tobytes(), byteorder="<", **size))


Encoder = Callable[[NDArray[Any], Image, int], bytes]
"""Stored values, what the header says, precision → code stream; empty if it has none for them."""
ROOMS: Final[dict[Encoder, Room]] = {j2k: J2K_ROOM, rle: RLE_ROOM}
"""Encoder → memory that it takes; `ROOM` for the others."""
ENCODERS: Final[dict[str, Encoder]] = {
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (90, 91)), j2k),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (201, 203)), htj2k),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (57, 70)), jpeg_lossless),
    **dict.fromkeys((f"1.2.840.10008.1.2.4.{number}" for number in (80, 81)), jpeg_ls),
    "1.2.840.10008.1.2.5": rle,
}
"""Transfer Syntax → encoder. The lossy ones among them allow lossless frames; lossy JPEG does not.

HTJ2K RPCL (.202) wants an order of packets that the encoder cannot be asked for.
"""
