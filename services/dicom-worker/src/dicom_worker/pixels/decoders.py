"""Decodes frames with one pinned decoder per Transfer Syntax.

pydicom tries plugins until one works. Decoders differ (lossy JPEG by 1 to 3 grey values), so what a
model sees would depend on what is installed. Here each Transfer Syntax has one decoder, named in
the certificate, and a second one that is asked only where a frame looks wrong. The codecs run in a
process of their own, see `sandbox`. docs/conformance.md is written from the table.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any, BinaryIO, Final, NoReturn

import numpy as np
from fluoro_jobs.errors import FluoroError, Reason
from numpy.typing import NDArray
from pydicom.pixels import get_decoder
from pydicom.pixels.processing import convert_color_space

from dicom_worker import limits
from dicom_worker.blame import blame_file
from dicom_worker.pixels.certificate import (
    DecodedFrame,
    StoredFrame,
    certified,
    ends_grey,
    has_hole,
    looks_empty,
)
from dicom_worker.pixels.codecs import FrameSpec
from dicom_worker.pixels.codestream import CodeStream, Parser, parse_j2k, parse_jpeg, parse_rle
from dicom_worker.pixels.frames import group_frames, read_frame, undecodable
from dicom_worker.pixels.image import Image
from dicom_worker.pixels.lossless import fills_scan
from dicom_worker.pixels.sandbox import Ticket, sandbox
from dicom_worker.pixels.stored import cell_values, sample_values
from dicom_worker.reading import DicomFile
from dicom_worker.structure import Fragment


@dataclass(frozen=True, slots=True)
class Decoder:
    """A decoder. name: of its function in `codecs`, "" for native data.

    distribution: the package that holds it. library: what does the work in there.
    """

    distribution: str
    library: str
    name: str = ""

    def __str__(self) -> str:
        """Library, distribution and its version: `OpenJPEG of imagecodecs 2026.3.6`."""
        package = f"{self.distribution} {version(self.distribution)}"
        return package if self.library == self.distribution else f"{self.library} of {package}"


@dataclass(frozen=True, slots=True)
class Codec:
    """How one Transfer Syntax is decoded.

    decoder: the one whose values are passed on. second: who must agree where they look wrong.
    parser: of the frame's own header; None for native data and RLE, which keep all Bits Allocated
    of each value as they are. lossless: two decoders give the same values. flat_bits: bits per
    sample that a frame of one value may take.
    """

    decoder: Decoder
    second: Decoder | None = None
    parser: Parser | None = None
    lossless: bool = True
    flat_bits: float = 0.25


PYDICOM: Final = Decoder("pydicom", "pydicom")
GDCM: Final = Decoder("python-gdcm", "GDCM", "gdcm")
LIBJPEG_TURBO: Final = Decoder("imagecodecs", "libjpeg-turbo", "libjpeg_turbo")
OPENJPEG: Final = Decoder("imagecodecs", "OpenJPEG", "openjpeg")
OPENJPH: Final = Decoder("imagecodecs", "OpenJPH", "openjph")
CHARLS: Final = Decoder("imagecodecs", "CharLS", "charls")
OPENJPEG_HT: Final = Decoder("pylibjpeg-openjpeg", "OpenJPEG", "pylibjpeg_openjpeg")
PACKBITS: Final = Decoder("imagecodecs", "PackBits", "packbits")
PYDICOM_RLE: Final = Decoder("pydicom", "pydicom", "pydicom_rle")

NATIVE: Final = Codec(PYDICOM)
RLE: Final = Codec(PACKBITS, PYDICOM_RLE, flat_bits=2)
JPEG: Final = Codec(LIBJPEG_TURBO, GDCM, parse_jpeg, lossless=False)
JPEG_LOSSLESS: Final = Codec(LIBJPEG_TURBO, GDCM, parse_jpeg, flat_bits=2)
JPEG_LS: Final = Codec(CHARLS, GDCM, parse_jpeg)
J2K: Final = Codec(OPENJPEG, GDCM, parse_j2k)
J2K_LOSSY: Final = Codec(OPENJPEG, GDCM, parse_j2k, lossless=False)
HTJ2K: Final = Codec(OPENJPH, OPENJPEG_HT, parse_j2k)
HTJ2K_LOSSY: Final = Codec(OPENJPH, OPENJPEG_HT, parse_j2k, lossless=False)

CODECS: Final = {
    "1.2.840.10008.1.2": NATIVE,  # Implicit VR Little Endian
    "1.2.840.10008.1.2.1": NATIVE,  # Explicit VR Little Endian
    "1.2.840.10008.1.2.1.99": NATIVE,  # Deflated Explicit VR Little Endian
    "1.2.840.10008.1.2.2": NATIVE,  # Explicit VR Big Endian
    "1.2.840.10008.1.2.4.50": JPEG,  # JPEG Baseline, 8 bit
    "1.2.840.10008.1.2.4.51": JPEG,  # JPEG Extended, 8 and 12 bit
    "1.2.840.10008.1.2.4.57": JPEG_LOSSLESS,  # JPEG Lossless, process 14
    "1.2.840.10008.1.2.4.70": JPEG_LOSSLESS,  # JPEG Lossless, process 14 SV1
    "1.2.840.10008.1.2.4.80": JPEG_LS,  # JPEG-LS Lossless
    "1.2.840.10008.1.2.4.81": JPEG_LS,  # JPEG-LS Near-lossless
    "1.2.840.10008.1.2.4.90": J2K,  # JPEG 2000 Lossless
    "1.2.840.10008.1.2.4.91": J2K_LOSSY,  # JPEG 2000
    "1.2.840.10008.1.2.4.201": HTJ2K,  # HTJ2K Lossless
    "1.2.840.10008.1.2.4.202": HTJ2K,  # HTJ2K Lossless RPCL
    "1.2.840.10008.1.2.4.203": HTJ2K_LOSSY,  # HTJ2K
    "1.2.840.10008.1.2.5": RLE,  # RLE Lossless
}
"""Transfer Syntax UID → codec."""

LOSSY_TOLERANCE: Final = 4
"""How far two decoders of a lossy format may differ, of 256 grey values."""

PHOTOMETRIC: Final = {
    1: frozenset(("MONOCHROME1", "MONOCHROME2", "PALETTE COLOR")),
    3: frozenset(("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")),
}
"""Samples per Pixel → the Photometric Interpretations that can be rendered."""
ALLOCATED: Final = frozenset((1, 8, 16, 32, 64))
"""Bits Allocated that an array can have."""

FLOAT_BITS: Final = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}
"""Keyword of floating point pixel data → its Bits Allocated (PS3.3 C.7.6.24, C.7.6.25)."""


def decoder_name(transfer_syntax: str) -> str:
    """The decoder of a Transfer Syntax and its version, `OpenJPEG of imagecodecs 2026.3.6` say."""
    return str(CODECS[transfer_syntax].decoder)


def decode_frames(file: DicomFile) -> Iterator[DecodedFrame]:
    """The stored values of each frame, in order, each with its certificate.

    One frame is in memory at a time. The dtype is the native one of Bits Allocated and Pixel
    Representation, or of Float or Double Float Pixel Data. FluoroError: NO_PIXEL_DATA,
    TRANSFER_SYNTAX_UNSUPPORTED, IMAGE_TOO_LARGE (all before anything is allocated),
    PIXELS_UNDECODABLE.
    """
    return map(certified, uncertified_frames(file))


def uncertified_frames(file: DicomFile) -> Iterator[StoredFrame]:
    """The same without certificates, which take time of their own."""
    if file.image is None or file.pixels is None:
        raise FluoroError(Reason.NO_PIXEL_DATA, "The instance has no image.")
    codec = CODECS.get(file.transfer_syntax)
    if codec is None:
        raise FluoroError(
            Reason.TRANSFER_SYNTAX_UNSUPPORTED,
            f"There is no decoder for Transfer Syntax {file.transfer_syntax}.",
        )
    check_budget(file.image)
    check_encoding(file.image, codec)
    if (file.pixels.length is not None) != (codec is NATIVE):
        raise undecodable(
            "The pixel data is encapsulated and its Transfer Syntax is not, or the other way round."
        )
    return (
        native_frames(file, file.image)
        if codec is NATIVE
        else encapsulated_frames(file, file.image, codec)
    )


def check_budget(image: Image, palette_bits: int = 8) -> None:
    """IMAGE_TOO_LARGE if a frame, or the array of all frames, or their number is over its limit.

    palette_bits: of a colour in the palette. Who decodes indices alone need not know.
    """
    if image.frames > limits.FRAME_LIMIT:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE, f"The image has more than {limits.FRAME_LIMIT} frames."
        )
    if image.decoded_frame_bytes > limits.FRAME_LIMIT_BYTES:
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            f"A decoded frame has more than {limits.FRAME_LIMIT_BYTES} bytes.",
        )
    if (
        image.frames * image.rows * image.columns * image.array_pixel_bytes(palette_bits)
        > limits.ARRAY_LIMIT_BYTES
    ):
        raise FluoroError(
            Reason.IMAGE_TOO_LARGE,
            f"The decoded image has more than {limits.ARRAY_LIMIT_BYTES} bytes.",
        )


def check_encoding(image: Image, codec: Codec) -> None:
    """PIXELS_UNDECODABLE if the header describes an image that we cannot give the meaning of."""
    if image.photometric not in PHOTOMETRIC.get(image.samples, ()):
        raise undecodable(
            "The Photometric Interpretation is not one that can be rendered with this many samples "
            "per pixel."
        )
    if image.bits_allocated not in ALLOCATED:
        raise undecodable("Bits Allocated is none of 1, 8, 16, 32 and 64.")
    if image.samples > 1 and (image.is_float or image.bits_allocated == 1):
        raise undecodable("The samples of a colour image are floats or have 1 bit.")
    if image.bits_allocated != FLOAT_BITS.get(image.keyword, image.bits_allocated):
        raise undecodable("Bits Allocated is not 32 or 64, as the floating point pixel data is.")
    if codec is not NATIVE and (image.is_float or image.bits_allocated == 1):
        raise undecodable("Floats, or pixels of 1 bit, are encapsulated (PS3.5 A.4).")
    # libjpeg converts at any depth; what is converted here is scaled for bytes (PS3.3 C.7.6.3.1.2).
    if image.photometric.startswith("YBR_FULL") and image.bits_allocated > 8 and codec is not JPEG:  # noqa: PLR2004 - bits of a byte
        raise undecodable("YBR_FULL has more than 8 bits per sample.")


def native_frames(file: DicomFile, image: Image) -> Iterator[StoredFrame]:
    """The frames of uncompressed pixel data."""
    assert file.pixels is not None and file.pixels.length is not None  # noqa: PT018 - one fact
    # One byte of excess is the padding to an even length (PS3.5 7.1.1).
    excess = file.pixels.length - image.native_bytes
    # Half a frame too much means more frames, or YBR_FULL_422 that is not subsampled.
    if excess > 1 and excess * 16 >= image.frame_bits:
        raise undecodable("The pixel data is longer than the header says by half a frame or more.")
    with file.path.open("rb") as stream:
        # Padding is zeros. Anything else is a picture with more rows or columns than the header
        # says, and with a column too few, each row would begin elsewhere.
        stream.seek(file.pixels.offset + image.native_bytes)
        if excess > 1 and stream.read(excess).count(0) != excess:
            raise undecodable("The pixel data goes on after the last frame that the header says.")
        # Only here does a frame begin within a byte; pydicom counts whole bytes.
        if image.bits_allocated == 1:
            for index in range(image.frames):
                values = packed_frame(stream, file.pixels.offset, image, index)
                yield StoredFrame(values, image.bits_stored)
            return
        stream.seek(file.pixels.offset)
        plain = file.little_endian and not image.photometric.startswith("YBR")
        for cells in (plain_cells if plain else native_cells)(file, image, stream):
            yield StoredFrame(cell_values(cells, image), image.bits_stored)


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


def plain_cells(_file: DicomFile, image: Image, stream: BinaryIO) -> Iterator[NDArray[Any]]:
    """The frames of little endian pixel data as it lies there, read straight into arrays."""
    kind = "f" if image.is_float else "i" if image.signed else "u"
    dtype = np.dtype(f"<{kind}{image.bits_allocated // 8}")
    for _ in range(image.frames):
        cells = np.empty(image.shape if not image.planar else image.planes, dtype)
        if stream.readinto(cells.data.cast("B")) != cells.nbytes:  # type: ignore[attr-defined]  # of a file
            raise undecodable("The pixel data cannot be read.")
        yield np.moveaxis(cells, 0, -1) if image.planar else cells


def native_cells(file: DicomFile, image: Image, stream: BinaryIO) -> Iterator[NDArray[Any]]:
    """The frames of uncompressed pixel data by pydicom, RGB for YBR, in native byte order.

    stream: at the first byte of the pixel data. PIXELS_UNDECODABLE if pydicom refuses.
    """
    options: dict[str, Any] = {
        "pixel_keyword": image.keyword,
        "pixel_vr": (file.pixels.vr if file.pixels else None) or "OW",
        "rows": image.rows,
        "columns": image.columns,
        "number_of_frames": image.frames,
        "samples_per_pixel": image.samples,
        "photometric_interpretation": image.photometric,
        "planar_configuration": image.planar,
        "bits_allocated": image.bits_allocated,
        "bits_stored": image.bits_stored,
        "pixel_representation": int(image.signed),
        "correct_unused_bits": False,  # `cell_values` does it, for any High Bit
    }
    decoder = get_decoder(file.transfer_syntax)
    frames = decoder.iter_array(stream, **options)
    for _ in range(image.frames):
        with blame_file(Reason.PIXELS_UNDECODABLE, "The pixel data cannot be read."):
            # pydicom raises many kinds of exceptions on hostile values.
            array, properties = next(frames)
        is_rgb = properties["photometric_interpretation"] == "RGB"
        if array.shape != image.shape or (image.samples > 1 and not is_rgb):
            raise undecodable("The pixel data has another shape or colours than the header says.")
        yield np.asarray(array, dtype=array.dtype.newbyteorder("="))


def encapsulated_frames(file: DicomFile, image: Image, codec: Codec) -> Iterator[StoredFrame]:
    """The frames of compressed pixel data.

    Each is checked against the header before it is decoded, and what it gave after. Meanwhile the
    child decodes the next one.
    """
    assert file.pixels is not None
    with file.path.open("rb") as stream:
        # One frame ahead and no more: the child has two memories, and one of them is being read.
        begun: Callable[[], StoredFrame] | None = None
        for fragments in group_frames(stream, file.pixels.fragments, image.frames):
            following = begin_fragments(stream, fragments, file.transfer_syntax, image, codec)
            if begun is not None:
                yield begun()
            begun = following
        if begun is not None:
            yield begun()


def begin_fragments(
    stream: BinaryIO, fragments: Sequence[Fragment], syntax: str, image: Image, codec: Codec
) -> Callable[[], StoredFrame]:
    """As `begin_frame`, of fragments. Whatever goes wrong is raised when the frame is asked for.

    The one before it may be good.
    """
    try:
        # Joined, the second fragment would be read as part of the first one's segments.
        if codec is RLE and len(fragments) > 1:
            raise undecodable("An RLE frame has more than one fragment (PS3.5 A.4.2).")
        return begin_frame(read_frame(stream, fragments), syntax, image, codec)
    except (FluoroError, OSError, MemoryError) as error:
        return partial(fail, error)


def fail(error: Exception) -> NoReturn:
    """Raises it."""
    raise error


def compressed_frame(data: bytes, syntax: str, image: Image, codec: Codec) -> StoredFrame:
    """One frame: by the pinned decoder, and where that looks wrong by the second one too."""
    return begin_frame(data, syntax, image, codec)()


def begin_frame(data: bytes, syntax: str, image: Image, codec: Codec) -> Callable[[], StoredFrame]:
    """Has a frame decoded; what gives it, once."""
    found = examine(data, image, codec)
    spec = FrameSpec(
        syntax=syntax,
        rows=image.rows,
        columns=image.columns,
        samples=image.samples,
        bits=image.bits_allocated,
        precision=found.precision,
        signed=image.signed if found.signed is None else found.signed,
        dct=found.dct,
        colour=(found.colour if image.samples > 1 else "") or image.photometric,
    )
    ticket = sandbox().begin(codec.decoder.name, spec, data)
    return partial(ended, ticket, data, spec, found, image, codec)


def ended(
    ticket: Ticket, data: bytes, spec: FrameSpec, found: CodeStream, image: Image, codec: Codec
) -> StoredFrame:
    """The frame that was begun. FluoroError as `compressed_frame`."""
    samples = sandbox().samples(ticket, spec)
    values = meaning(samples, spec, found, image, codec)
    second = ""
    if is_suspicious(samples, len(data), found, codec) or is_damaged(samples, data, found, codec):
        confirm(values, data, spec, found, image, codec)
        second = str(codec.second)
    return StoredFrame(values, found.precision, second)


def examine(data: bytes, image: Image, codec: Codec) -> CodeStream:
    """What the code stream says of itself. PIXELS_UNDECODABLE unless its size is the header's."""
    with blame_file(Reason.PIXELS_UNDECODABLE, "A compressed frame is broken or cut off."):
        if codec.parser is None:
            parse_rle(
                data,
                rows=image.rows,
                columns=image.columns,
                samples=image.samples,
                bits=image.bits_allocated,
            )
            return CodeStream(image.rows, image.columns, image.samples, image.bits_stored)
        found = codec.parser(data)
    if (found.rows, found.columns, found.samples) != (image.rows, image.columns, image.samples):
        raise undecodable(
            "A compressed frame has another size or number of samples than the header says."
        )
    return found


def meaning(
    samples: NDArray[Any], spec: FrameSpec, found: CodeStream, image: Image, codec: Codec
) -> NDArray[Any]:
    """Stored values, RGB for colour, of what a decoder gave."""
    if codec.parser is None:
        dtype = samples.dtype.str.replace("u", "i") if image.signed else samples.dtype
        values = cell_values(samples.view(dtype), image)
    else:
        values = sample_values(samples, found, image)
    if image.samples > 1 and not found.dct and spec.colour.startswith("YBR_FULL"):
        with blame_file(Reason.PIXELS_UNDECODABLE, "The colours cannot be converted."):
            values = convert_color_space(values, "YBR_FULL", "RGB")
    return values


def is_suspicious(
    samples: NDArray[Any], stream_bytes: int, found: CodeStream, codec: Codec
) -> bool:
    """Whether the pinned decoder may have failed without saying so."""
    return looks_empty(stream_bytes, samples, codec.flat_bits) or (
        codec.decoder is LIBJPEG_TURBO and ends_grey(samples, found.precision)
    )


def is_damaged(samples: NDArray[Any], data: bytes, found: CodeStream, codec: Codec) -> bool:
    """Whether a JPEG may hold other samples, or more or less, than came out of it."""
    # With 12 bits, nobody could confirm those that are only flat.
    if codec is JPEG:
        return found.precision == 8 and has_hole(data)  # noqa: PLR2004 - bits of a byte
    if codec is not JPEG_LOSSLESS:
        return False
    with blame_file(Reason.PIXELS_UNDECODABLE, "A compressed frame is broken or cut off."):
        return not fills_scan(data, samples)


def confirm(
    values: NDArray[Any],
    data: bytes,
    spec: FrameSpec,
    found: CodeStream,
    image: Image,
    codec: Codec,
) -> None:
    """PIXELS_UNDECODABLE unless the second decoder comes to the same values."""
    refusal = undecodable("A frame looks wrongly decoded, and no second decoder confirms it.")
    if codec.second is None:
        raise refusal
    try:
        samples = sandbox().decode(codec.second.name, spec, data)
        other = meaning(samples, spec, found, image, codec)
    except FluoroError as error:
        # A child that was killed says nothing about the frame: another attempt may confirm it.
        if error.reason is not Reason.PIXELS_UNDECODABLE:
            raise
        raise refusal from error
    # The tolerance is a share of the range, so each bit of precision above 8 doubles it.
    tolerance = 0 if codec.lossless else LOSSY_TOLERANCE << max(0, found.precision - 8)
    # Unsigned differences would wrap around at 0.
    if np.abs(values.astype(np.int64) - other.astype(np.int64)).max() > tolerance:
        raise refusal
