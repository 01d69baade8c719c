"""Decodes frames with one pinned decoder per Transfer Syntax.

pydicom tries plugins until one works. Decoders differ (lossy JPEG by 1 to 3 grey values), so what a
model sees would depend on what is installed. Here each Transfer Syntax has one decoder, named in
the certificate. pylibjpeg-libjpeg, the only decoder for 12-bit JPEG, is GPL and not used. The
codecs run in a process of their own, see `sandbox`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, BinaryIO, Final

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray

from dicom_worker import limits
from dicom_worker.blame import blame_file
from dicom_worker.pixels.codestream import Parser, parse_j2k, parse_jpeg, parse_rle
from dicom_worker.pixels.frames import group_frames, read_frame, undecodable
from dicom_worker.pixels.image import Image
from dicom_worker.pixels.sandbox import sandbox
from dicom_worker.pixels.sandbox_child import decode
from dicom_worker.pixels.stored import stored_values
from dicom_worker.reading import DicomFile


@dataclass(frozen=True, slots=True)
class Codec:
    """How one Transfer Syntax is decoded.

    plugin: name of pydicom's decoding plugin, "" for native data. distribution: the package that
    does the work. parser: of the frame's own header; None for native data and RLE, which keep all
    Bits Allocated of each value as they are.
    """

    distribution: str
    plugin: str = ""
    parser: Parser | None = None


NATIVE: Final = Codec("pydicom")
RLE: Final = Codec("pylibjpeg-rle", "pylibjpeg")
JPEG: Final = Codec("pillow", "pillow", parse_jpeg)
JPEG_LOSSLESS: Final = Codec("python-gdcm", "gdcm", parse_jpeg)
JPEG_LS: Final = Codec("pyjpegls", "pyjpegls", parse_jpeg)
J2K: Final = Codec("pylibjpeg-openjpeg", "pylibjpeg", parse_j2k)

CODECS: Final = {
    "1.2.840.10008.1.2": NATIVE,  # Implicit VR Little Endian
    "1.2.840.10008.1.2.1": NATIVE,  # Explicit VR Little Endian
    "1.2.840.10008.1.2.1.99": NATIVE,  # Deflated Explicit VR Little Endian
    "1.2.840.10008.1.2.2": NATIVE,  # Explicit VR Big Endian
    "1.2.840.10008.1.2.4.50": JPEG,  # JPEG Baseline 8 bit
    "1.2.840.10008.1.2.4.57": JPEG_LOSSLESS,  # JPEG Lossless, process 14
    "1.2.840.10008.1.2.4.70": JPEG_LOSSLESS,  # JPEG Lossless, process 14 SV1
    "1.2.840.10008.1.2.4.80": JPEG_LS,  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.81": JPEG_LS,  # JPEG-LS Near-lossless
    "1.2.840.10008.1.2.4.90": J2K,  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91": J2K,  # JPEG 2000
    "1.2.840.10008.1.2.4.201": J2K,  # HTJ2K Lossless
    "1.2.840.10008.1.2.4.202": J2K,  # HTJ2K Lossless RPCL
    "1.2.840.10008.1.2.4.203": J2K,  # HTJ2K
    "1.2.840.10008.1.2.5": RLE,  # RLE Lossless
}
"""Transfer Syntax UID → codec."""

PHOTOMETRIC: Final = {
    1: frozenset(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")),
    3: frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")),
}
"""Samples per Pixel → the Photometric Interpretations that can be rendered."""


def decoder_name(transfer_syntax: str) -> str:
    """The decoder of a Transfer Syntax and its version, `pylibjpeg-openjpeg 2.6.0` say."""
    distribution = CODECS[transfer_syntax].distribution
    return f"{distribution} {version(distribution)}"


def decode_frames(file: DicomFile) -> Iterator[NDArray[Any]]:
    """The stored values of each frame, in order: (rows, columns), or (rows, columns, 3) RGB.

    One frame is in memory at a time. The dtype is the native one of Bits Allocated and Pixel
    Representation, or of Float or Double Float Pixel Data. FluoroError: NO_PIXEL_DATA,
    TRANSFER_SYNTAX_UNSUPPORTED, IMAGE_TOO_LARGE (all before anything is allocated),
    PIXELS_UNDECODABLE.
    """
    if file.image is None or file.pixels is None:
        raise FluoroError(Reason.NO_PIXEL_DATA, "The instance has no image.")
    codec = CODECS.get(file.transfer_syntax)
    if codec is None:
        raise FluoroError(
            Reason.TRANSFER_SYNTAX_UNSUPPORTED,
            f"There is no decoder for Transfer Syntax {file.transfer_syntax}.",
        )
    check_budget(file.image)
    if file.image.photometric not in PHOTOMETRIC.get(file.image.samples, ()):
        raise undecodable(
            "The Photometric Interpretation is not one that can be rendered with this many samples "
            "per pixel."
        )
    if (file.pixels.length is not None) != (codec is NATIVE):
        raise undecodable(
            "The pixel data is encapsulated and its Transfer Syntax is not, or the other way round."
        )
    return (
        native_frames(file, file.image)
        if codec is NATIVE
        else encapsulated_frames(file, file.image, codec)
    )


def check_budget(image: Image) -> None:
    """IMAGE_TOO_LARGE if a frame, or the array of all frames, is over its limit."""
    if image.decoded_frame_bytes > limits.FRAME_LIMIT_BYTES:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            f"A decoded frame has more than {limits.FRAME_LIMIT_BYTES} bytes.",
        )
    if image.frames * image.rows * image.columns * max(image.samples, 4) > limits.ARRAY_LIMIT_BYTES:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            f"The decoded image has more than {limits.ARRAY_LIMIT_BYTES} bytes.",
        )


def native_frames(file: DicomFile, image: Image) -> Iterator[NDArray[Any]]:
    """The frames of uncompressed pixel data."""
    assert file.pixels is not None and file.pixels.length is not None  # noqa: PT018 - one fact
    excess = file.pixels.length - image.native_bytes
    # Half a frame too much means more frames, or YBR_FULL_422 that is not subsampled.
    if excess > 1 and excess * 16 >= image.frame_bits:
        raise undecodable("The pixel data is longer than the header says by half a frame or more.")
    with file.path.open("rb") as stream:
        for index in range(image.frames):
            # Only here does a frame begin within a byte; pydicom counts whole bytes.
            if image.bits_allocated == 1:
                yield packed_frame(stream, file.pixels.offset, image, index)
                continue
            stream.seek(file.pixels.offset)
            yield stored_values(
                as_array(file, image, NATIVE, stream, index), image, compressed=False
            )


def packed_frame(stream: BinaryIO, start: int, image: Image, index: int) -> NDArray[np.uint8]:
    """A frame of 1 bit per pixel, whose first pixel may be any bit of a byte (PS3.5 8.1.1).

    pydicom 3.0 reads too few bytes for some.
    """
    count = image.rows * image.columns
    first_byte, first_bit = divmod(index * count, 8)
    stream.seek(start + first_byte)
    data = np.frombuffer(stream.read((first_bit + count + 7) // 8), np.uint8)
    return np.unpackbits(data, bitorder="little")[first_bit : first_bit + count].reshape(
        image.shape
    )


def encapsulated_frames(file: DicomFile, image: Image, codec: Codec) -> Iterator[NDArray[Any]]:
    """The frames of compressed pixel data.

    Each is checked against the header before it is decoded, and what it gave after.
    """
    assert file.pixels is not None
    with file.path.open("rb") as stream:
        for fragments in group_frames(stream, file.pixels.fragments, image.frames):
            # Joined, the second fragment would be read as part of the first one's segments.
            if codec is RLE and len(fragments) > 1:
                raise undecodable("An RLE frame has more than one fragment (PS3.5 A.4.2).")
            frame = read_frame(stream, fragments)
            check_frame(frame, image, codec)
            array = as_array(file, image, codec, frame, 0)
            if codec.parser:
                check_values(array, image)
            yield stored_values(array, image, compressed=codec.parser is not None)


def check_frame(frame: bytes, image: Image, codec: Codec) -> None:
    """PIXELS_UNDECODABLE unless the code stream's own header agrees with DICOM's."""
    with blame_file(Reason.PIXELS_UNDECODABLE, "A compressed frame is broken or cut off."):
        if codec.parser is None:
            parse_rle(
                frame,
                rows=image.rows,
                columns=image.columns,
                samples=image.samples,
                bits=image.bits_allocated,
            )
            return
        found = codec.parser(frame)
    if (found.rows, found.columns, found.samples) != (image.rows, image.columns, image.samples):
        raise undecodable(
            "A compressed frame has another size or number of samples than the header says."
        )
    if found.signed is not None and found.signed != image.signed:
        raise undecodable(
            "A compressed frame and the header disagree on whether its values are signed."
        )
    if found.precision > image.bits_allocated or (
        image.signed and found.precision < image.bits_stored
    ):
        raise undecodable("A compressed frame has another precision than the header says.")


def check_values(array: NDArray[Any], image: Image) -> None:
    """PIXELS_UNDECODABLE if decoded values do not fit Bits Stored.

    They would be cut off silently.
    """
    if image.bits_stored == image.bits_allocated:
        return
    low = -(1 << image.bits_stored - 1) if image.signed else 0
    if int(array.min()) < low or int(array.max()) >= 1 << image.bits_stored:
        raise undecodable("A compressed frame has values that do not fit Bits Stored.")


def as_array(
    file: DicomFile, image: Image, codec: Codec, source: bytes | BinaryIO, index: int
) -> NDArray[Any]:
    """One frame by the codec. PIXELS_UNDECODABLE if it refuses, or gives another shape.

    source: native pixel data as a file at its first byte, or the code stream of the frame.
    """
    options = {
        "pixel_keyword": image.keyword,
        "pixel_vr": (file.pixels.vr if file.pixels else None) or "OW",
        "rows": image.rows,
        "columns": image.columns,
        "number_of_frames": image.frames if codec is NATIVE else 1,
        "samples_per_pixel": image.samples,
        "photometric_interpretation": image.photometric,
        "planar_configuration": image.planar,
        "bits_allocated": image.bits_allocated,
        "bits_stored": image.bits_stored,
        "pixel_representation": int(image.signed),
        "correct_unused_bits": False,  # `pixels.stored` does it, for any High Bit
        "apply_j2k_sign_correction": False,  # `check_frame` refuses what it would correct
        "apply_jls_sign_correction": False,
    }
    if isinstance(source, bytes):
        array, photometric = sandbox().decode(file.transfer_syntax, codec.plugin, options, source)
    else:
        with blame_file(Reason.PIXELS_UNDECODABLE, "The pixel data cannot be read."):
            array, photometric = decode(file.transfer_syntax, codec.plugin, options, source, index)
    if array.shape != image.shape or (image.samples > 1 and photometric != "RGB"):
        raise undecodable(
            "The decoded frame has another shape or colour space than the header says."
        )
    return array
