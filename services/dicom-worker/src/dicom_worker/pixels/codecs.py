"""The decoders themselves, one function each; they run in `sandbox_child`.

Which one is asked for which Transfer Syntax is said in `decoders`. A decoder gives what the code
stream holds: samples of its precision, in the lowest bits, RGB where the lossy formats transform
colours. Whether that fits the header is not its business. `room` is where the samples are to be in
the end: a decoder that writes them there saves the copy.
"""

import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from math import prod
from tempfile import TemporaryFile
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray


class FrameSpec(NamedTuple):
    """What a decoder is told of a frame.

    bits: Bits Allocated. precision: bits per sample of the code stream. signed: of its samples, or
    Pixel Representation where the format cannot say. dct: lossy JPEG, which transforms colours.
    colour: of its samples, a Photometric Interpretation.
    """

    syntax: str
    rows: int
    columns: int
    samples: int
    bits: int
    precision: int
    signed: bool
    dct: bool
    colour: str


THREADS: Final = min(4, len(os.sched_getaffinity(0)))
"""Of OpenJPEG, the slowest decoder. Each takes address space, which is limited."""

MOST_SCRATCH_BYTES: Final = 64 * 2**20
"""Most that is kept from frame to frame; of a larger one all memory is needed elsewhere."""
_scratch = np.empty(0, np.uint8)

Decoder = Callable[[bytes, FrameSpec, memoryview], NDArray[Any]]
"""Code stream → (rows, columns) or (rows, columns, samples). Raises anything on a broken one."""


def libjpeg_turbo(data: bytes, frame: FrameSpec, _room: memoryview) -> NDArray[Any]:
    """JPEG, 8 and 12 bits, and lossless JPEG, 2 to 16 bits."""
    from imagecodecs import jpeg8_decode  # noqa: PLC0415 - takes most of a second, here once

    if frame.samples == 1:
        return np.asarray(jpeg8_decode(data))
    # Without a colour space, libjpeg guesses one from markers and component numbers. The caller has
    # weighed those against the header. Lossless JPEG stores colours as they are.
    ybr = frame.dct and frame.colour != "RGB"
    space = "ycbcr" if ybr else "rgb"
    return np.asarray(jpeg8_decode(data, colorspace=space, outcolorspace="rgb"))


def charls(data: bytes, frame: FrameSpec, room: memoryview) -> NDArray[Any]:
    """JPEG-LS."""
    from imagecodecs import jpegls_decode  # noqa: PLC0415 - see above

    if frame.samples > 1:
        return np.asarray(jpegls_decode(data))
    shape = (frame.rows, frame.columns)
    values = np.frombuffer(room, f"u{-(-frame.precision // 8)}", prod(shape)).reshape(shape)
    return np.asarray(jpegls_decode(data, out=values))


def openjpeg(data: bytes, _frame: FrameSpec, _room: memoryview) -> NDArray[Any]:
    """JPEG 2000."""
    from imagecodecs import jpeg2k_decode  # noqa: PLC0415 - see above

    return np.asarray(jpeg2k_decode(data, numthreads=THREADS))


def openjph(data: bytes, _frame: FrameSpec, _room: memoryview) -> NDArray[Any]:
    """HTJ2K."""
    from imagecodecs import htj2k_decode  # noqa: PLC0415 - see above

    return np.asarray(htj2k_decode(data))


def pylibjpeg_openjpeg(data: bytes, _frame: FrameSpec, _room: memoryview) -> NDArray[Any]:
    """HTJ2K by OpenJPEG."""
    from openjpeg.utils import decode  # noqa: PLC0415 - only where asked for

    return np.asarray(decode(BytesIO(data)))


def packbits(data: bytes, frame: FrameSpec, room: memoryview) -> NDArray[Any]:
    """RLE: a segment for each byte of a sample, the highest first (PS3.5 G.2)."""
    from imagecodecs import packbits_decode  # noqa: PLC0415 - see above

    # The header has the number of segments, which `parse_rle` has checked, then where each starts
    # (PS3.5 G.5).
    count, pixels = frame.samples * frame.bits // 8, frame.rows * frame.columns
    offsets = struct.unpack_from(f"<{count}L", data, 4)
    stream, planes = memoryview(data), scratch(count * pixels).reshape(count, pixels)
    for plane, start, end in zip(planes, offsets, (*offsets[1:], len(data)), strict=True):
        segment = stream[start:end]
        try:
            whole = packbits_decode(segment, out=plane.data)  # type: ignore[arg-type]  # any buffer does
        except RuntimeError:
            # More follows the image. Padding is zeros; anything else is a picture with more rows or
            # columns than the header says, and with a column too few each row begins elsewhere.
            whole = packbits_decode(bytes(segment))
            if whole.count(0, pixels) < len(whole) - pixels:
                raise ValueError("a segment goes on after the image") from None
            plane[:] = np.frombuffer(whole, np.uint8, pixels)
        # The scratch is not cleared: the rest of the plane would be that of the frame before,
        # perhaps of another patient.
        if len(whole) < pixels:
            raise ValueError("a segment is too short")
    size = frame.bits // 8
    # Colours change places, so their copy stays.
    place = room if frame.samples == 1 else bytearray(pixels * count)
    values = np.frombuffer(place, f"u{size}", pixels * frame.samples)
    join(planes.reshape(-1, size, pixels), values.reshape(-1, pixels))
    return oriented(values, frame)


def scratch(size: int) -> NDArray[np.uint8]:
    """So many bytes, until the next call. Fresh ones cost as much as a decoder's work on them."""
    # A large one is not kept: the child lives on, and its memory is limited.
    if size > MOST_SCRATCH_BYTES:
        return np.empty(size, np.uint8)
    global _scratch  # noqa: PLW0603 - of this process, which does one thing at a time
    if _scratch.size < size:
        _scratch = np.empty(size, np.uint8)
    return _scratch[:size]


def oriented(planes: NDArray[Any], frame: FrameSpec) -> NDArray[Any]:
    """(rows, columns) or (rows, columns, samples) of one plane for each sample."""
    samples = planes.reshape(frame.samples, frame.rows, frame.columns)
    return samples[0] if frame.samples == 1 else samples.transpose(1, 2, 0)


def join(planes: NDArray[np.uint8], values: NDArray[Any]) -> None:
    """Makes values of their bytes: (samples, bytes, pixels), the highest first."""
    size = planes.shape[1]
    if size == 1:
        values[...] = planes[:, 0]
        return
    np.left_shift(planes[:, 0], 8, out=values, dtype=values.dtype)
    for at in range(1, size):
        values |= planes[:, at]
        if at < size - 1:
            values <<= 8


def gdcm(data: bytes, frame: FrameSpec, _room: memoryview) -> NDArray[Any]:
    """GDCM, which has copies of its own of the IJG's libjpeg, CharLS and OpenJPEG.

    It prints what libjpeg warns of, cut-off scans among it, and decodes on: here that is an error.
    """
    with warnings_raised():
        return by_pydicom(data, frame, "gdcm")


@contextmanager
def warnings_raised() -> Iterator[None]:
    """ValueError if the body prints on standard error, as decoders do that go on with a guess."""
    with TemporaryFile() as warnings:
        # The descriptor, not sys.stderr: C libraries write past Python.
        kept = os.dup(2)
        os.dup2(warnings.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        if warnings.seek(0, os.SEEK_END):
            raise ValueError("the decoder warns of the frame")


def pydicom_rle(data: bytes, frame: FrameSpec, _room: memoryview) -> NDArray[Any]:
    """RLE in Python."""
    array = by_pydicom(data, frame, "pydicom")
    # Unsigned, as `packbits` gives them: `decoders.meaning` sets the sign for both alike.
    return array.view(array.dtype.str.replace("i", "u"))


def by_pydicom(data: bytes, frame: FrameSpec, plugin: str) -> NDArray[Any]:
    """One frame by a plugin of pydicom."""
    from pydicom.encaps import encapsulate  # noqa: PLC0415 - only where asked for
    from pydicom.pixels import get_decoder  # noqa: PLC0415 - only where asked for

    container = 8 if frame.precision <= 8 else 16  # noqa: PLR2004 - bits of a byte
    is_rle = plugin == "pydicom"
    # All corrections are off: `stored` gives samples their meaning, the same for every decoder. Two
    # decoders that agree would else be two plugins with the same correction.
    options: dict[str, Any] = {
        "pixel_keyword": "PixelData",
        "pixel_vr": "OW",
        "rows": frame.rows,
        "columns": frame.columns,
        "number_of_frames": 1,
        "samples_per_pixel": frame.samples,
        "photometric_interpretation": frame.colour,
        "planar_configuration": 0,
        "bits_allocated": frame.bits if is_rle else container,
        "bits_stored": frame.bits if is_rle else frame.precision,
        "pixel_representation": int(frame.signed),
        "correct_unused_bits": False,
        "apply_j2k_sign_correction": False,
        "apply_jls_sign_correction": False,
    }
    array, properties = get_decoder(frame.syntax).as_array(
        encapsulate([data]), index=0, raw=not frame.dct, decoding_plugin=plugin, **options
    )
    if frame.dct and frame.samples > 1 and properties["photometric_interpretation"] != "RGB":
        raise ValueError("colours are not RGB")
    return np.asarray(array, dtype=array.dtype.newbyteorder("="))


FUNCTIONS: Final[dict[str, Decoder]] = {
    decoder.__name__: decoder
    for decoder in (
        libjpeg_turbo,
        charls,
        openjpeg,
        openjph,
        pylibjpeg_openjpeg,
        packbits,
        gdcm,
        pydicom_rle,
    )
}
"""Name → decoder."""
